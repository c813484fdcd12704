# SPDX-License-Identifier: Apache-2.0
"""Interfaces for VLANs. Where the kernel has none, macvlan stands in for them: it is made, marked, addressed and
removed in the same way, and has a mode where they have a tag."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import netlink, vlans
from reconciler.kernel.objects import VlanLink
from reconciler.kernel.rtnetlink import (
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_VLAN_ID,
    LINK,
)

WANTED = VlanLink("front.4", "front", 4, 1400, ("10.1.0.1/24", "2001:db8:1::1/64"))
OWN, OTHER = "lbctl:default", "lbctl:other"
BRIDGE, VEPA = 4, 2


@pytest.fixture
def links(inside: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(vlans, "_FORM", "macvlan")
    monkeypatch.setattr(vlans, "_SETTING", "IFLA_MACVLAN_MODE")
    monkeypatch.setattr(vlans, "_TAG", struct.Struct("=I"))
    ip("link", "add", "front", "type", "veth", "peer", "far")
    ip("link", "set", "front", "up")
    yield


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


def shown(name: str) -> dict[str, object]:
    found: list[dict[str, object]] = json.loads(ip("-json", "-details", "address", "show"))
    return next(({**link} for link in found if link.get("ifname") == name), {})


@pytest.mark.kernel
def test_what_was_made_reads_back_and_goes_without_a_trace(links: None) -> None:
    before = ip("link")
    assert vlans.read(OWN) == []
    vlans.add(WANTED, OWN)
    (held,) = vlans.read(OWN)
    assert replace(held, addresses=WANTED.addresses) == WANTED
    assert set(WANTED.addresses) <= set(held.addresses)  # and a link-local one
    made = shown("front.4")
    assert (made["link"], made["mtu"], made["ifalias"]) == ("front", 1400, OWN)
    assert "UP" in str(made["flags"])
    vlans.add(WANTED, OWN)
    assert vlans.read(OWN) == [held]
    vlans.remove("front.4", OWN)
    vlans.remove("front.4", OWN)
    assert ip("link") == before


@pytest.mark.kernel
def test_what_somebody_changed_is_mended_in_its_place(links: None) -> None:
    vlans.add(WANTED, OWN)
    number = shown("front.4")["ifindex"]
    ip("link", "set", "front.4", "down", "mtu", "1300")
    ip("address", "del", "10.1.0.1/24", "dev", "front.4")
    ip("address", "add", "10.9.0.1/24", "dev", "front.4")
    vlans.add(WANTED, OWN)
    (held,) = vlans.read(OWN)
    assert held.is_up and held.mtu_bytes == 1400
    assert {*WANTED.addresses, "10.9.0.1/24"} <= set(held.addresses)
    assert shown("front.4")["ifindex"] == number
    with pytest.raises(KernelError, match=r"front\.4 is VLAN 4 of front") as refusal:
        vlans.add(replace(WANTED, tag=VEPA), OWN)
    assert refusal.value.hint == "ip link del front.4"


@pytest.mark.kernel
def test_those_of_others_stay(links: None) -> None:
    ip("link", "add", "link", "front", "name", "front.4", "type", "macvlan", "mode", "bridge")
    assert vlans.read(OWN) == []
    with pytest.raises(ForeignError, match="not lbctl's"):
        vlans.add(WANTED, OWN)
    vlans.remove("front.4", OWN)
    vlans.add(replace(WANTED, name="front.5"), OTHER)
    vlans.remove("front.5", OWN)
    assert shown("front.4") and shown("front.5")


@pytest.mark.kernel
def test_one_that_can_not_be_made_whole_leaves_nothing(links: None) -> None:
    before = ip("link")
    with pytest.raises(KernelError, match=r"can't set up front\.4"):
        vlans.add(replace(WANTED, mtu_bytes=60_000), OWN)
    with pytest.raises(KernelError, match="there is no interface fornt"):
        vlans.add(replace(WANTED, trunk="fornt"), OWN)
    assert ip("link") == before


@pytest.mark.kernel
def test_a_kernel_without_vlans_says_so(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlans, "_FORM", "nolan")
    monkeypatch.setitem(ifinfmsg.ifinfo.data_map, "nolan", ifinfmsg.ifinfo.data_map["vlan"])
    ip("link", "add", "front", "type", "veth", "peer", "far")
    with pytest.raises(KernelError, match="VLAN 4 of front") as refusal:
        vlans.add(WANTED, OWN)
    assert "8021q" in refusal.value.hint


def test_the_message_has_the_tag_and_the_trunk() -> None:
    message = vlans._new(replace(WANTED, tag=4094), 7)
    parts = netlink.attributes(message.body, LINK.size)
    assert (parts[IFLA_IFNAME], parts[IFLA_LINK]) == (b"front.4\0", struct.pack("=I", 7))
    info = netlink.attributes(parts[IFLA_LINKINFO])
    assert info[IFLA_INFO_KIND] == b"vlan\0"
    assert netlink.attributes(info[IFLA_INFO_DATA]) == {IFLA_VLAN_ID: struct.pack("=H", 4094)}
    assert message.flags & netlink.EXCLUSIVE
