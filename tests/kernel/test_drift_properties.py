# SPDX-License-Identifier: Apache-2.0
"""Any state of an endpoint, any damage by hand, beside objects of others: it comes back to what manifests ask for, by
one write for each difference, and nothing of the others is touched."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.real import RealKernel
from reconciler.live import read_live
from reconciler.model import Endpoint, Fleet, Interface, Mode, Node, Pool, Protocol, Role, Service, VipBinding
from reconciler.plan import plan
from reconciler.resource import Desired
from reconciler.view import view

from .conftest import entered

pytestmark = pytest.mark.kernel

VIPS = [f"20.20.20.{number}" for number in range(1, 5)]
STRANGERS = (  # Docker's bridge, a CNI's routes, somebody's addresses and local routes
    "link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0", "link set docker0 up",
    "route add 10.244.0.0/16 dev eth0 proto 80 metric 5", "addr add 20.20.30.1/32 dev lo",
    "route add local 20.20.30.2 dev lo proto static table local", "route add 20.20.20.0/24 dev eth0 proto bird",
    "neigh add 10.2.0.9 lladdr 02:00:00:00:00:09 dev eth0",
)  # fmt: skip
SETTINGS = ("arp_ignore", "arp_announce", "rp_filter")
_numbers = itertools.count()


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=60)


def of_others() -> list[object]:
    """All addresses, routes, links and neighbours that don't carry our mark."""
    found: list[object] = []
    for words in (["addr"], ["route", "show", "table", "all"], ["neigh"], ["link"]):
        shown = subprocess.run(["ip", "-N", "-j", *words], check=True, capture_output=True, text=True).stdout
        for item in json.loads(shown):
            if str(item.get("protocol")) == str(protocol_of("lbd")) or item.get("dst") in VIPS:
                continue
            if "addr_info" in item:
                item["addr_info"] = [a for a in item["addr_info"] if a.get("local") not in VIPS]
            item.pop("altnames", None)
            found.append(item)
    return found


def fleet(vips: list[str], binding: VipBinding) -> Fleet:
    node = Node("web1", (Interface("eth0"),), role=Role.ENDPOINT, address=ip_address("10.2.0.1"), vip_binding=binding)
    pool = Pool("web", (Endpoint(ip_address("10.2.0.1")),))
    services = tuple(
        Service(f"s{number}", (ip_address(vip),), Protocol.TCP, (80,), "web", Mode.DSR_L2)
        for number, vip in enumerate(vips)
    )
    return Fleet(services, (pool,), (node, Node("lb1", (Interface("eth0"),))))


class Counting(RealKernel):
    """Counts what it writes, object by object."""

    writes = 0

    def add_local_vips(self, vips):  # type: ignore[no-untyped-def]
        self.writes += len(vips)
        return super().add_local_vips(vips)

    def write_sysctl(self, name: str, value: str) -> None:
        self.writes += 1
        super().write_sysctl(name, value)


wishes = st.tuples(st.lists(st.sampled_from(VIPS), min_size=1, unique=True), st.sampled_from(VipBinding))
damages = st.lists(
    st.tuples(st.just("vip"), st.sampled_from(VIPS)) | st.tuples(st.sampled_from(SETTINGS), st.sampled_from("01")),
    max_size=4, unique_by=lambda damage: damage[0] if damage[0] != "vip" else damage[1],
)  # fmt: skip


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Counting]:
    name = f"lbd-{os.getpid()}-{next(_numbers)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with entered(name):
            # IPv6 makes addresses by itself, and changes them when nobody else has them.
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            ip("link set lo up", "link add eth0 type veth peer far", "addr add 10.2.0.1/24 dev eth0",
               "link set eth0 up", "link set far up", *STRANGERS)  # fmt: skip
            yield Counting("lbd", tmp_path / "run")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@given(st.lists(st.tuples(wishes, damages), min_size=1, max_size=2))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_always_comes_back_and_touches_nothing_of_others(kernel, steps):
    before = of_others()
    for (vips, binding), damage in steps:
        desired = compile_node(replace_view(fleet(vips, binding)))
        bring(kernel, desired)
        changed = break_by_hand(vips, damage, kernel)
        kernel.writes = 0
        bring(kernel, desired)
        assert kernel.writes == changed
        assert of_others() == before
    bring(kernel, Desired())
    assert of_others() == before
    assert kernel.local_vips() == [] and kernel.former_sysctls() == {}


def replace_view(of: Fleet):  # type: ignore[no-untyped-def]
    return replace(view(of, "web1", ""), decapsulates=False)


def bring(kernel: Counting, desired: Desired) -> None:
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    left = plan(desired, read_live(kernel, desired.resources))
    assert not left.changes and not left.blocked


def break_by_hand(vips: list[str], damage: list[tuple[str, str]], kernel: Counting) -> int:
    """How many objects are other than they should be by then."""
    held = {vip.address: vip.form for vip in kernel.local_vips()}
    broken = 0
    for what, value in damage:
        if what != "vip":
            name = f"net/ipv4/conf/eth0/{what}"
            broken += kernel.read_sysctl(name) != value
            kernel.write_sysctl(name, value)
        elif value in held:
            word = "route del local {} dev lo table local" if held[value] == "route" else "addr del {}/32 dev lo"
            ip(word.format(value))
            broken += 1
    return broken
