# SPDX-License-Identifier: Apache-2.0
"""Affinity with real sockets: each client's connections, to any port of the service, end at one server, until that one
is drained."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab.lab import Lab
from reconciler.lab.prove import prove_service

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

EXAMPLES = Path(__file__).parents[2] / "examples/configs"
VIP, PORTS = IPv4Address("20.20.20.1"), (80, 443)
ENDPOINTS = ("10.2.0.11", "10.2.0.12", "10.2.0.13")


def write(directory: Path, mode: str, drained: str = "") -> Path:
    directory.mkdir(exist_ok=True)
    endpoints = [f"{{address: {e}{', state: draining' if e == drained else ''}}}" for e in ENDPOINTS]
    (directory / "site.yaml").write_text(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: shop}}
spec: {{vip: {VIP}, ports: {list(PORTS)}, pool: shop, mode: {mode}, affinity: {{}}}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: shop}}
spec: {{endpoints: [{", ".join(endpoints)}]}}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
  snatAddresses: [10.2.0.201]
""")
    return directory


def servers(lab: Lab, clients: int) -> dict[str, str]:
    """The server of each client, whose connections to all ports must end there."""
    found: dict[str, set[str]] = defaultdict(set)
    for port in PORTS:
        outcomes = lab.load(VIP, port, count=clients * 10, concurrency=4, clients=clients).wait()
        assert not [o for o in outcomes if o.error], port
        assert len({outcome.source for outcome in outcomes}) == clients
        for outcome in outcomes:
            found[outcome.source].add(outcome.endpoint.rpartition(":")[0])
    assert {len(of_client) for of_client in found.values()} == {1}, found
    return {client: next(iter(of_client)) for client, of_client in found.items()}


@pytest.mark.parametrize("mode", ["nat", "fullnat"])
def test_a_client_has_one_server_until_that_is_drained_and_others_have_others(
    start_lab: LabMaker, tmp_path: Path, mode: str
) -> None:
    directory = write(tmp_path / "manifests", mode)
    lab = start_lab(load(directory).fleet)
    lab.serve_http()
    lab.apply(directory)
    had = servers(lab, clients=16)
    assert set(had.values()) == set(ENDPOINTS), "new clients take turns"
    drained = min(had.values())
    lab.apply(write(directory, mode, drained))
    now = servers(lab, clients=16)
    assert drained not in now.values()
    assert {client: server for client, server in now.items() if had[client] != drained} == {
        client: server for client, server in had.items() if server != drained
    }


def test_the_example_works(start_lab: LabMaker) -> None:
    directory = EXAMPLES / "nat-affinity"
    lab = start_lab(load(directory).fleet)
    lab.serve_http()
    lab.apply(directory)
    prove_service(lab, "basket")
