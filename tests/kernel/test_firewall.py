# SPDX-License-Identifier: Apache-2.0
"""Firewalls that drop what is forwarded: chains of nftables and the older iptables, made as their tools make them."""

from __future__ import annotations

import ctypes
import socket
import struct
from pathlib import Path

import pytest

from reconciler.kernel import firewall
from reconciler.kernel.objects import Firewall
from reconciler.kernel.real import RealKernel
from tests.nft import ACCEPT, DROP, FORWARD, INET, INPUT, IP, IP6, accepting, chain, nft

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("inside")]



def test_a_node_without_a_firewall_has_none_and_gets_none(kernel: RealKernel) -> None:
    assert kernel.firewalls(["front"]) == []
    assert b"filter" not in Path("/proc/thread-self/net/ip_tables_names").read_bytes()


def test_chains_that_drop_what_is_forwarded_are_found_and_no_others(kernel: RealKernel) -> None:
    nft(*chain(IP, b"filter", b"INPUT", INPUT, DROP), *chain(INET, b"loose", b"forward", FORWARD, ACCEPT))
    assert kernel.firewalls(["front"]) == []
    nft(*chain(IP, b"filter", b"FORWARD", FORWARD, DROP), *chain(INET, b"site", b"through", FORWARD, DROP))
    rule = "nft insert rule {} iifname {{}} accept"
    assert sorted(kernel.firewalls(["front", "back"]), key=lambda wall: wall.name) == [
        Firewall("nft inet site through", (4, 6), ("back", "front"), rule.format("inet site through")),
        Firewall("nft ip filter FORWARD", (4,), ("back", "front"), rule.format("ip filter FORWARD")),
    ]


def test_an_interface_that_a_rule_names_is_taken_care_of(kernel: RealKernel) -> None:
    nft(*chain(IP6, b"t", b"f", FORWARD, DROP), *chain(IP, b"t", b"f", FORWARD, DROP))
    nft(accepting(IP6, b"t", b"f", b"front"))
    found = {wall.name: wall.unnamed for wall in kernel.firewalls(["front", "back", "fron"])}
    assert found == {"nft ip6 t f": ("back", "fron"), "nft ip t f": ("back", "fron", "front")}


@pytest.mark.parametrize("version", [4, 6])
def test_the_policy_of_the_older_iptables_is_read(kernel: RealKernel, version: int) -> None:
    command, names, family, level, target_field = firewall._LEGACY[version]
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        info = firewall._ask(sock, level, 64, b"filter".ljust(84, b"\0"))  # makes the table, as iptables does
        assert b"filter" in (Path("/proc/thread-self/net") / names).read_bytes()
        assert kernel.firewalls(["front"]) == []
        number, size = struct.unpack_from("=II", info, 76)
        asked = struct.pack("=32sI4x", b"filter", size)
        rules = bytearray(firewall._ask(sock, level, 65, asked + bytes(size))[40:])
        place = struct.unpack_from("=5I", info, 56)[FORWARD]
        verdict = place + struct.unpack_from("=H", rules, place + target_field)[0] + 32
        assert struct.unpack_from("=i", rules, verdict) == (-ACCEPT - 1,)
        struct.pack_into("=i", rules, verdict, -DROP - 1)
        counters = ctypes.create_string_buffer(16 * number)
        head = struct.pack("=32sIII", b"filter", struct.unpack_from("=I", info, 32)[0], number, size) + info[36:76]
        head += struct.pack("=IQ" if len(head) % 8 == 4 else "=I4xQ", number, ctypes.addressof(counters))
        sock.setsockopt(level, 64, head + bytes(rules))  # IPT_SO_SET_REPLACE
    (found,) = kernel.firewalls(["front"])
    assert found == Firewall(f"{command} FORWARD", (version,), ("front",), f"{command} -I FORWARD -i {{}} -j ACCEPT")
