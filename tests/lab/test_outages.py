# SPDX-License-Identifier: Apache-2.0
"""Six endpoints that break under load, each in another way, one after the other: how long clients see errors, and that
nobody but those of the broken endpoint does. `pytest -s` shows the figures."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of
from reconciler.lab.traffic import Outcome
from tests.nft import DROP, INPUT, IP, chain, nft

from .conftest import WebMaker
from .web import PATIENCE_S, VIP, addresses

pytestmark = pytest.mark.kernel

ENDPOINTS = addresses(7)
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


MODES = {"nat": "", "fullnat": "", "dsr-l2": ", through: vip", "dsr-l3": ", through: vip"}


@dataclass(frozen=True, slots=True)
class Outage:
    """`out_s`: when the endpoint was seen to be in no ring any more."""

    way: str
    address: IPv4Address
    began_s: float
    out_s: float


@pytest.mark.parametrize("mode", MODES)
def test_who_breaks_is_out_and_takes_nobody_with_it(start_web: WebMaker, mode: str) -> None:
    check = f"{{type: http, interval: 500ms, timeout: 400ms, fall: 2{MODES[mode]}}}"
    web = start_web(mode, check, len(ENDPOINTS))
    lab, members = web.lab, web.members
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


def test_how_long_it_takes_with_the_check_as_it_is_by_default(start_web: WebMaker) -> None:
    """Of a server that refuses, and of a host that is silent. The times are for people: the machine may be busy."""
    site = start_web("nat", "{type: http}", 3)
    site.await_up(*addresses(3))
    for address, way in zip(addresses(2), ("kill", "firewall"), strict=True):
        began_s = time.monotonic()
        WAYS[way](site.lab, address)
        left = site.members() - {address}
        wait_until(f"{address} is out: {way}", lambda left=left: site.members() == left, PATIENCE_S)
        print(f"by default, {way}: out of the ring after {time.monotonic() - began_s:.1f} s")
        site.await_said(f"because: {address} is down: http check: {'refused' if way == 'kill' else 'no answer'}")
    assert site.answering() == {addresses(3)[2]}


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
