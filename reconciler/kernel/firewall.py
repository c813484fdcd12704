# SPDX-License-Identifier: Apache-2.0
"""Firewalls that drop forwarded packets unless one of their rules says otherwise: chains of nftables, including those
of iptables-nft, and the table of the older iptables. Only reads, in the network namespace of the calling thread.

Layouts: include/uapi/linux/netfilter/nf_tables.h, include/uapi/linux/netfilter_ipv4/ip_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from reconciler.kernel import netlink
from reconciler.kernel.objects import Firewall

_NFTABLES, _GET_CHAIN, _GET_RULE = 10 << 8, 4, 7
_TABLE, _NAME, _HOOK, _POLICY, _HOOK_NUMBER = 1, 3, 4, 5, 1
_RULE_TABLE = 1
_FAMILIES = {1: ("inet", (4, 6)), 2: ("ip", (4,)), 10: ("ip6", (6,))}
_NUMBER = struct.Struct("!I")
_FORWARD, _DROP = 2, 0  # NF_INET_FORWARD, NF_DROP

_FILTER = b"filter"
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO, and so on
_INFO = struct.Struct("=32sI5I5III")  # name, hooks, entries of the hooks, their policies, number, bytes
_ENTRIES = struct.Struct("=32sI4x")
_LEGACY = {
    4: ("iptables", "ip_tables_names", socket.AF_INET, 0, 88),
    6: ("ip6tables", "ip6_tables_names", socket.AF_INET6, 41, 140),
}
"""By family: the command, the file that lists tables in use, the socket's family and level, the offset in an entry of
the offset of its target."""
_TARGET_HEADER_BYTES, _VERDICT_DROP = 32, -_DROP - 1

_libc = ctypes.CDLL(None, use_errno=True)


def firewalls(interfaces: Collection[str]) -> list[Firewall]:
    """The firewalls that drop forwarded packets by default. OSError if the kernel gives no answer."""
    return [*_nftables(interfaces), *(wall for version in _LEGACY for wall in _legacy(version, interfaces))]


def _unnamed(interfaces: Collection[str], rules: bytes) -> tuple[str, ...]:
    """The interfaces that no rule names. Rules that name one are not interpreted: their author decided about it."""
    return tuple(sorted(name for name in interfaces if netlink.content(name) not in rules))


def _nftables(interfaces: Collection[str]) -> Iterator[Firewall]:
    with netlink.netfilter() as nfnetlink:
        chains = list(_dropping_chains(nfnetlink.dump(_NFTABLES | _GET_CHAIN, _request(0))))
        for family, table, chain in chains:
            answers = nfnetlink.dump(_NFTABLES | _GET_RULE, _request(family))
            rules = b"".join(a for a in answers if netlink.attributes(a[4:]).get(_RULE_TABLE) == table)
            word, versions = _FAMILIES[family]
            where = f"{word} {_text(table)} {_text(chain)}"
            yield Firewall(
                f"nft {where}", versions, _unnamed(interfaces, rules), f"nft insert rule {where} iifname {{}} accept"
            )


def _request(family: int) -> bytes:
    return struct.pack("=BBH", family, 0, 0)


def _dropping_chains(answers: Collection[bytes]) -> Iterator[tuple[int, bytes, bytes]]:
    """Family, table and name of the chains that forwarded packets run into and that drop by default."""
    for answer in answers:
        held = netlink.attributes(answer[4:])
        hook = netlink.attributes(held.get(_HOOK, b""))
        said = hook.get(_HOOK_NUMBER), held.get(_POLICY)
        if answer[0] in _FAMILIES and said == (_NUMBER.pack(_FORWARD), _NUMBER.pack(_DROP)):
            yield answer[0], held[_TABLE], held[_NAME]


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode(errors="replace")


def _legacy(version: int, interfaces: Collection[str]) -> Iterator[Firewall]:
    command, names, family, level, target_field = _LEGACY[version]
    if _FILTER not in _tables_in_use(names):  # asking about a table would create it
        return
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        info = _INFO.unpack(_ask(sock, level, _GET_INFO, _FILTER.ljust(_INFO.size, b"\0")))
        policy, size = info[7 + _FORWARD], info[-1]
        entries = _ask(sock, level, _GET_ENTRIES, _ENTRIES.pack(_FILTER, size).ljust(_ENTRIES.size + size, b"\0"))
    rules = entries[_ENTRIES.size :]
    target = policy + struct.unpack_from("=H", rules, policy + target_field)[0]
    if struct.unpack_from("=i", rules, target + _TARGET_HEADER_BYTES)[0] == _VERDICT_DROP:
        yield Firewall(
            f"{command} FORWARD", (version,), _unnamed(interfaces, rules), f"{command} -I FORWARD -i {{}} -j ACCEPT"
        )


def _tables_in_use(names: str) -> Collection[bytes]:
    try:
        return (Path("/proc/thread-self/net") / names).read_bytes().split()
    except FileNotFoundError:
        return ()


def _ask(sock: socket.socket, level: int, option: int, question: bytes) -> bytes:
    """getsockopt() with a buffer that holds a question when it is called; Python's own can't pass one."""
    buffer, length = ctypes.create_string_buffer(question, len(question)), ctypes.c_uint32(len(question))
    if _libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw
