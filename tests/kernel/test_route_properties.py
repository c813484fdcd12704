# SPDX-License-Identifier: Apache-2.0
"""Any routes and neighbours of a balancer, any damage by hand, beside objects of others: it comes back to what is
asked for by one write for each difference, and nothing of the others is touched.

Kinds write by themselves here: the order of what needs what is a matter of other tests."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.kernel.mark import protocol_of
from reconciler.kernel.real import RealKernel
from reconciler.kinds import KINDS
from reconciler.kinds.announcement import Announcement
from reconciler.kinds.blackhole import Blackhole
from reconciler.kinds.neighbour import Neighbour
from reconciler.kinds.neighbour_proxy import NeighbourProxy
from reconciler.live import read_live
from reconciler.plan import Plan, plan
from reconciler.resource import Desired, Key, Resource

from .test_drift_properties import STRANGERS, ip, of_others

pytestmark = pytest.mark.kernel

OURS = ("announcement", "blackhole", "neighbour", "neighbour-proxy")
WRITERS = {kind.resource.kind: kind for kind in KINDS}
MARK = protocol_of("lbr")
OF_OTHERS = (
    "route add 20.20.20.9/32 dev lo table 251 proto bird metric 100", "route add blackhole 10.200.9.0/24 proto static",
    "neigh add 10.2.0.19 dev eth0 managed", "neigh add proxy 10.2.0.29 dev eth0",
)  # fmt: skip

announcements = st.builds(
    Announcement, st.sampled_from([ip_address(f"20.20.20.{n}") for n in (1, 2)] + [ip_address("2001:db8:20::1")]),
    st.just(251), st.sampled_from((100, 900)),
)  # fmt: skip
blackholes = st.builds(Blackhole, st.sampled_from(("10.200.0.0/24", "10.201.0.0/24", "2001:db8:f::/64")))
neighbours = st.builds(Neighbour, st.sampled_from([ip_address(f"10.2.0.{n}") for n in (11, 12)]), st.just("eth0"))
proxies = st.builds(NeighbourProxy, st.sampled_from([ip_address("10.2.0.31")]), st.just("eth0"))
wishes = st.lists(
    announcements | blackholes | neighbours | proxies, max_size=5, unique_by=lambda resource: resource.key
)  # fmt: skip


@pytest.fixture
def kernel(inside: str, tmp_path: Path) -> Iterator[RealKernel]:
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
    ip("link add eth0 type veth peer far", "addr add 10.2.0.1/24 dev eth0", "link set far up", "link set eth0 up",
       *STRANGERS, *OF_OTHERS)  # fmt: skip
    yield RealKernel("lbr", tmp_path / "run")


def strangers() -> list[dict[str, object]]:
    """What doesn't carry our mark, but for what the kernel says and learns of links by itself."""
    own = {"fe80", "ff00"}
    return [
        {name: value for name, value in item.items() if name != "state"} for item in of_others()
        if str(item.get("protocol")) != str(MARK) and str(item.get("dst", ""))[:4] not in own and "ifindex" not in item
        and not str(item.get("dst", "")).startswith("10.2.0.3")
    ]  # fmt: skip


def planned(kernel: RealKernel, wanted: dict[Key, Resource]) -> Plan:
    return plan(Desired(wanted), read_live(kernel, wanted, OURS))


def bring(kernel: RealKernel, wanted: dict[Key, Resource]) -> int:
    """How many changes that took."""
    found = planned(kernel, wanted)
    for change in found.changes:
        assert WRITERS[change.key.kind](kernel).write([change]) == [None]
    left = planned(kernel, wanted)
    assert not left.changes and not left.blocked
    return len(found.changes)


def undo_by_hand(resource: Resource) -> str:
    """The command that removes an object behind lbctl's back."""
    match resource:
        case Announcement(address=address, table=table, metric=metric):
            return f"route del {address} dev lo table {table} metric {metric}"
        case Blackhole(network=network):
            return f"route del blackhole {network}"
        case Neighbour(address=address, interface=interface):
            return f"neigh del {address} dev {interface}"
        case NeighbourProxy(address=address, interface=interface):
            return f"neigh del proxy {address} dev {interface}"
    raise AssertionError(resource)


@given(st.lists(st.tuples(wishes, st.sets(st.integers(0, 4))), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_always_comes_back_by_the_fewest_writes_and_touches_nothing_of_others(kernel, steps):
    before = strangers()
    for wish, damaged in steps:
        wanted = {resource.key: resource for resource in wish}
        bring(kernel, wanted)
        gone = [wish[index] for index in damaged if index < len(wish)]
        ip(*map(undo_by_hand, gone))
        assert bring(kernel, wanted) == len(gone)
        assert strangers() == before
    bring(kernel, {})
    assert strangers() == before
    assert (kernel.routes(), kernel.announced_routes(), kernel.neighbours()[0]) == ([], [], [])
