# SPDX-License-Identifier: Apache-2.0
"""NAT between hosts that are each behind a narrow hop: path MTU discovery works in both directions.

    far ── client's host ── [balancer] ── endpoint's host ── deep
       1,300 bytes                             1,300 bytes

Both ends have an MTU of 1,500 bytes and say so. So each sends packets that are too big, until an error of the router
at the other end has come to it through the balancer.
"""

from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab import netns
from reconciler.lab.topology import CLIENT, host_of

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

VIP, ROUTER, DEEP, FAR = "20.20.20.1", "10.2.0.11", "10.88.0.2", "10.99.0.2"
BYTES, PATIENCE_S = 50_000, 60.0
MANIFESTS = """\
apiVersion: lbctl/v1
kind: Service
metadata: {name: web}
spec: {vip: 20.20.20.1, ports: [80], targetPort: 8080, algorithm: round-robin, pool: web}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {name: web}
spec: {endpoints: [{address: ENDPOINT}]}
---
apiVersion: lbctl/v1
kind: Node
metadata: {name: lb1}
spec: {interfaces: [{name: front, addresses: [10.1.0.1/24]}, {name: back, addresses: [10.2.0.1/24]}]}
"""


def write(directory: Path, endpoint: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "web.yaml").write_text(MANIFESTS.replace("ENDPOINT", endpoint))
    return directory


def exchange(connection: socket.socket) -> int:
    """Send as many bytes as the other side does, at the same time; returns how many came."""
    sender = threading.Thread(target=connection.sendall, args=(bytes(BYTES),), daemon=True)
    sender.start()
    came = 0
    while came < BYTES and (more := connection.recv(65_536)):
        came += len(more)
    sender.join(PATIENCE_S)
    return came


def put_behind(prefix: str, router: str, network: str, name: str, *ways: str) -> str:
    """A host behind another one, by a hop that takes 1,300 bytes; returns its namespace."""
    namespace, first, last = netns.name(prefix, name), f"{network}.1", f"{network}.2"
    netns.ip([f"netns add {namespace}"])
    netns.ip([f"link add {name} type veth peer name eth0 netns {namespace}"], router)
    netns.ip([f"address add {first}/32 dev {name}", f"link set {name} up",
              f"route add {last} dev {name} mtu lock 1300", *ways], router)  # fmt: skip
    netns.ip([f"address add {last}/24 dev eth0", "link set eth0 up", f"route add default via {first}"], namespace)
    netns.write_sysctls(router, {"net/ipv4/ip_forward": "1"})
    return namespace


def test_50_000_bytes_pass_both_ways_through_narrow_hops_on_both_sides(start_lab: LabMaker, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    lab = start_lab(load(write(manifests, ROUTER)).fleet)
    client = str(lab.topology.client[0])
    far = put_behind(lab.prefix, lab.netns(CLIENT), "10.99.0", "far")
    deep = put_behind(lab.prefix, lab.netns(host_of(IPv4Address(ROUTER))), "10.88.0", "deep")
    netns.ip([f"route add {FAR} via {client}", f"route add {DEEP} via {ROUTER}"], lab.balancer)
    lab.apply(write(manifests, DEEP))

    listener = netns.inside(deep, socket.create_server, (DEEP, 8080))
    listener.settimeout(PATIENCE_S)
    came = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            came.append(exchange(connection))

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with listener, netns.inside(far, socket.create_connection, (VIP, 80), PATIENCE_S) as connection:
        came.append(exchange(connection))
        server.join(PATIENCE_S)
    assert came == [BYTES, BYTES]
    assert "mtu 1300" in lab.run("far", "ip", "route", "get", VIP)
    assert "mtu 1300" in lab.run("deep", "ip", "route", "get", FAR)
