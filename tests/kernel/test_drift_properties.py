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
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.objects import VlanLink
from reconciler.kernel.real import RealKernel
from reconciler.kinds.sysctl import Sysctl
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
TAGGED, TAG, OWN = "eth0.7", 7, "10.7.0.1/24"
"""Where the kernel has VLANs: an interface that manifests ask for, beside somebody's."""
OF_SOMEBODY = (
    "link add link eth0 name eth0.9 type vlan id 9", "addr add 10.9.0.1/24 dev eth0.9", "link set eth0.9 up",
    "route add 10.245.0.0/16 dev eth0.9 proto 80",
)  # fmt: skip
SLIPS = {"del": f"link del {TAGGED}", "down": f"link set {TAGGED} down", "addr": f"addr del {OWN} dev {TAGGED}",
         "mtu": f"link set {TAGGED} mtu 1200"}  # fmt: skip
_numbers = itertools.count()


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=60)


def of_others() -> list[object]:
    """All addresses, routes, links and neighbours that don't carry our mark, nor are on a link that does."""
    found: list[object] = []
    for words in (["addr"], ["route", "show", "table", "all"], ["neigh"], ["link"]):
        shown = subprocess.run(["ip", "-N", "-j", *words], check=True, capture_output=True, text=True).stdout
        for item in json.loads(shown):
            if TAGGED in (item.get("ifname"), item.get("dev")):
                continue
            if str(item.get("protocol")) == str(protocol_of("lbd")) or item.get("dst") in VIPS:
                continue
            if "addr_info" in item:
                item["addr_info"] = [a for a in item["addr_info"] if a.get("local") not in VIPS]
            item.pop("altnames", None)
            item.pop("operstate", None)  # the kernel tells of what a link carries a little later than it is up
            item["flags"] = sorted({*item.get("flags", ())} - {"LOWER_UP", "NO-CARRIER", "linkdown"})
            found.append(item)
    return found


def fleet(vips: list[str], binding: VipBinding, mtu_bytes: int | None) -> Fleet:
    tagged = Interface(TAGGED, trunk="eth0", tag=TAG, addresses=(ip_interface(OWN),), mtu_bytes=mtu_bytes or 0)
    faces = (Interface("eth0"), tagged) if mtu_bytes else (Interface("eth0"),)
    node = Node("web1", faces, role=Role.ENDPOINT, address=ip_address("10.2.0.1"), vip_binding=binding)
    pool = Pool("web", (Endpoint(ip_address("10.2.0.1")),))
    services = tuple(
        Service(f"s{number}", (ip_address(vip),), Protocol.TCP, (80,), "web", Mode.DSR_L2)
        for number, vip in enumerate(vips)
    )
    return Fleet(services, (pool,), (node, Node("lb1", (Interface("eth0"),))))


class Counting(RealKernel):
    """Counts what it writes, object by object."""

    writes, has_vlans = 0, False

    def add_local_vips(self, vips):  # type: ignore[no-untyped-def]
        self.writes += len(vips)
        return super().add_local_vips(vips)

    def add_vlan_link(self, link: VlanLink) -> None:
        self.writes += 1
        super().add_vlan_link(link)

    def write_sysctl(self, name: str, value: str) -> None:
        self.writes += 1
        super().write_sysctl(name, value)


vip_lists = st.lists(st.sampled_from(VIPS), min_size=1, unique=True)
lost = st.tuples(st.just("vip"), st.sampled_from(VIPS))
turned = st.tuples(st.sampled_from(SETTINGS), st.sampled_from("01"))
slips = st.tuples(st.just("vlan"), st.sampled_from(sorted(SLIPS)))


def steps_of(mtus: st.SearchStrategy[int | None], damage: st.SearchStrategy[tuple[str, str]]):  # type: ignore[no-untyped-def]
    """One or two states of the node, and what is broken by hand in each. `mtus`: of the VLAN, or None, without it."""
    broken = st.lists(damage, max_size=4, unique_by=lambda each: each[0] if each[0] != "vip" else each[1])
    return st.lists(st.tuples(vip_lists, st.sampled_from(VipBinding), mtus, broken), min_size=1, max_size=2)


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
            made = Counting("lbd", tmp_path / "run")
            made.has_vlans = subprocess.run(["ip", *OF_SOMEBODY[0].split()], check=False).returncode == 0
            if made.has_vlans:
                subprocess.run(["ethtool", "-K", "eth0", "rxvlan", "off"], check=True, capture_output=True)
                ip(*OF_SOMEBODY[1:])
            yield made
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@given(steps_of(st.none(), lost | turned))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_always_comes_back_and_touches_nothing_of_others(kernel, steps):
    comes_back(kernel, steps)


@given(steps_of(st.sampled_from((None, 1400, 1500)), lost | turned | slips))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_vlans_come_back_and_those_of_others_stay(kernel, steps):
    if not kernel.has_vlans:
        pytest.skip("this kernel has no VLANs (8021q); `make test-vm` boots one that has")
    comes_back(kernel, steps)


def comes_back(kernel, steps) -> None:  # type: ignore[no-untyped-def]
    before = of_others()
    for vips, binding, mtu_bytes, damage in steps:
        desired = compile_node(replace_view(fleet(vips, binding, mtu_bytes)))
        bring(kernel, desired)
        changed = break_by_hand(desired, damage, kernel)
        kernel.writes = 0
        bring(kernel, desired)
        assert kernel.writes == changed
        assert of_others() == before
    bring(kernel, Desired())
    assert of_others() == before
    assert kernel.local_vips() == [] and kernel.former_sysctls() == {} and kernel.vlan_links() == []


def replace_view(of: Fleet):  # type: ignore[no-untyped-def]
    return replace(view(of, "web1", ""), decapsulates=False)


def bring(kernel: Counting, desired: Desired) -> None:
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    left = plan(desired, read_live(kernel, desired.resources))
    assert not left.changes and not left.blocked


def break_by_hand(desired: Desired, damage: list[tuple[str, str]], kernel: Counting) -> int:
    """How many objects are other than they should be by then."""
    held = {vip.address: vip.form for vip in kernel.local_vips()}
    broken = 0
    for what, value in damage:
        if what == "vlan":
            if kernel.vlan_links():
                ip(SLIPS[value])
                broken += 1 + (forgotten(desired, kernel) if value == "del" else 0)
        elif what != "vip":
            name = f"net/ipv4/conf/eth0/{what}"
            broken += kernel.read_sysctl(name) != value
            kernel.write_sysctl(name, value)
        elif value in held:
            word = "route del local {} dev lo table local" if held[value] == "route" else "addr del {}/32 dev lo"
            ip(word.format(value))
            broken += 1
    return broken


def forgotten(desired: Desired, kernel: Counting) -> int:
    """How many settings of the VLAN's interface go with it: a new one has what is the default."""
    wanted = [each for each in desired.resources.values() if isinstance(each, Sysctl) and TAGGED in each.key.id]
    assert wanted
    return sum(kernel.read_sysctl(each.key.id.replace(TAGGED, "default")) != each.value for each in wanted)
