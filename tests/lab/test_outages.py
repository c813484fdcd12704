# SPDX-License-Identifier: Apache-2.0
"""Six endpoints that break under load, each in another way, one after the other: how long clients see errors, and that
nobody but those of the broken endpoint does. `pytest -s` shows the figures."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.health import store
from reconciler.health.state import Health
from reconciler.kernel.real import RealKernel
from reconciler.kinds.ring import Ring
from reconciler.kinds.rings import RingKind
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of
from reconciler.lab.traffic import Outcome
from tests.nft import DROP, INPUT, IP, chain, nft

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

VIP = IPv4Address("20.20.20.1")
ENDPOINTS = tuple(IPv4Address(f"10.2.0.{number}") for number in range(11, 18))
PATIENCE_S = 60
TIMEOUT_S = 1.0
KEPT = 14

Break = Callable[[Lab, IPv4Address], object]


def _signal(number: signal.Signals) -> Break:
    return lambda lab, address: lab.servers[address].send_signal(number)


WAYS: dict[str, Break] = {
    "kill": _signal(signal.SIGKILL),
    "freeze": _signal(signal.SIGSTOP),
    "slow drip": _signal(signal.SIGUSR1),
    "half break": _signal(signal.SIGUSR2),
    "firewall": lambda lab, address: netns.inside(
        lab.netns(host_of(address)), nft, *chain(IP, b"wall", b"input", INPUT, DROP)
    ),
    "unplug": lambda lab, address: lab.run(host_of(address), "ip", "link", "set", "eth0", "down"),
}


def manifests(mode: str) -> str:
    endpoints = ", ".join(f"{{address: {address}}}" for address in ENDPOINTS)
    way, own = ("", "") if mode == "nat" else (", through: vip", "healthAddress: {ipv4: 10.1.0.9}\n  ")
    nodes = "" if mode == "nat" else "".join(
        f"---\napiVersion: lbctl/v1\nkind: Node\nmetadata: {{name: e{address.packed[3]}}}\n"
        f"spec: {{role: endpoint, interfaces: [{{name: eth0, addresses: [{address}/24]}}]}}\n"
        for address in ENDPOINTS
    )  # fmt: skip
    return f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: [80], mode: {mode}, pool: web}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec:
  endpoints: [{endpoints}]
  healthCheck: {{type: http, interval: 500ms, timeout: 400ms, fall: 2{way}}}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  {own}interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
{nodes}"""


@dataclass(frozen=True, slots=True)
class Outage:
    """`out_s`: when the endpoint was seen to be in no ring any more."""

    way: str
    address: IPv4Address
    began_s: float
    out_s: float


@pytest.mark.parametrize("mode", ["nat", "dsr-l2", "dsr-l3"])
def test_who_breaks_is_out_and_takes_nobody_with_it(start_lab: LabMaker, tmp_path: Path, mode: str) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "all.yaml").write_text(manifests(mode))
    fleet = load(directory).fleet
    assert fleet
    lab = start_lab(fleet, node_name="lb1")
    lab.serve_http()
    lab.apply(directory)
    kernel = RealKernel(lab.balancer, lab.run_dir)
    lab.start_lbctl("run", str(directory), "--node", "lb1")

    def members() -> set[IPv4Address]:
        rings = [ring for ring in RingKind(kernel).read({}).resources if isinstance(ring, Ring)]
        return {IPv4Address(member.partition(":")[0]) for ring in rings for member in ring.members}

    def count_up() -> int:
        entries = store.read(lab.run_dir / lab.balancer / store.FILE).entries
        return sum(entry.state.health is Health.UP for entry in entries.values())

    wait_until("all are up", lambda: count_up() == len(ENDPOINTS), PATIENCE_S)
    kept = lab.load(VIP, 80, requests_per_connection=0, concurrency=KEPT, rate=35, clients=KEPT, timeout_s=TIMEOUT_S)
    fresh = lab.load(VIP, 80, concurrency=12, rate=60, clients=16, timeout_s=TIMEOUT_S)
    wait_until("all are open", lambda: len({o.source for o in kept.outcomes() if o.endpoint}) == KEPT, PATIENCE_S)
    outages = []
    for address, (way, break_it) in zip(ENDPOINTS, WAYS.items(), strict=False):
        began_s = time.monotonic()
        break_it(lab, address)
        left = members() - {address}
        wait_until(f"{address} is out: {way}", lambda left=left: members() == left, PATIENCE_S)
        outages.append(Outage(way, address, began_s, time.monotonic()))
    assert members() == {ENDPOINTS[-1]}
    out_s = outages[-1].out_s
    wait_until("others go on", lambda: sum(o.started_s > out_s for o in fresh.outcomes()) > KEPT, PATIENCE_S)
    others = fresh.stop()
    for outage in outages:
        errors = [o for o in others if o.error and outage.began_s <= o.started_s < outage.out_s]
        ends_s = max((o.started_s + o.duration_s for o in errors), default=outage.began_s)
        print(
            f"{mode}, {outage.way}: out of the ring after {outage.out_s - outage.began_s:.1f} s; "
            f"{len(errors)} new connections failed, the last after {ends_s - outage.began_s:.1f} s"
        )
    # What is begun when the endpoint is out of the ring is well; what began before an outage may still have met it.
    assert [o for o in others if o.error and not any(_may_meet(outage, o) for outage in outages)] == []
    assert {o.endpoint for o in others if o.started_s > out_s} == {f"{ENDPOINTS[-1]}:80"}
    assert _strangers(kept.stop(), outages) == []


def _may_meet(outage: Outage, outcome: Outcome) -> bool:
    return outage.began_s <= outcome.started_s + outcome.duration_s and outcome.started_s <= outage.out_s


def _strangers(outcomes: list[Outcome], outages: list[Outage]) -> list[Outcome]:
    """Those of kept connections that failed although their endpoint was well. After a failure the client connects
    anew, and may meet whoever is in the ring."""
    broken_s = {str(outage.address): outage.began_s for outage in outages}
    homes: dict[str, str] = {}
    strangers = []
    for outcome in sorted(outcomes):
        ends_s = outcome.started_s + outcome.duration_s
        if outcome.endpoint and not outcome.error:
            homes[outcome.source] = outcome.endpoint.partition(":")[0]
        elif not outcome.new_connection and broken_s.get(homes[outcome.source], ends_s) >= ends_s:
            strangers.append(outcome)
    return strangers
