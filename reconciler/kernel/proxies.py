# SPDX-License-Identifier: Apache-2.0
"""Addresses for which the kernel answers ARP or neighbour solicitations on an interface that doesn't have them.

Our entries carry our protocol number (NDA_PROTOCOL). The kernel answers if the interface forwards and, for IPv6, its
`proxy_ndp` is on; for IPv4, if a route leads to the address by another interface (arp_process() in net/ipv4/arp.c).
Works on the network namespace of the calling thread. Layouts: include/uapi/linux/neighbour.h; what the kernel does for
IPv6: ndisc_recv_ns() in net/ipv6/ndisc.c.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from reconciler.errors import KernelError
from reconciler.kernel import netlink
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.neighbours import change
from reconciler.kernel.objects import Neighbour
from reconciler.kernel.port import Outcome
from reconciler.kernel.rtnetlink import (
    FAMILIES,
    NDA_DST,
    NDA_PROTOCOL,
    NEIGHBOUR,
    NTF_PROXY,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)


def read(mark: int = PROTOCOL) -> tuple[list[Neighbour], list[Neighbour]]:
    """Our entries, and those of others. OSError if the kernel refuses."""
    names = dict(socket.if_nameindex())
    ours: list[Neighbour] = []
    others: list[Neighbour] = []
    with netlink.route() as route:
        asked = [NEIGHBOUR.pack(family, 0, 0, NTF_PROXY, 0) for family in FAMILIES.values()]
        for answer in (answer for body in asked for answer in route.dump(RTM_GETNEIGH, body)):
            family, index, _, flags, _ = NEIGHBOUR.unpack_from(answer)
            found = netlink.attributes(answer[NEIGHBOUR.size :])
            if family in FAMILIES.values() and flags & NTF_PROXY and index in names:
                proxy = Neighbour(str(ip_address(found[NDA_DST])), names[index])
                (ours if found.get(NDA_PROTOCOL, b"\0")[0] == mark else others).append(proxy)
    return ours, others


def add(proxies: Sequence[Neighbour], mark: int = PROTOCOL) -> list[Outcome]:
    """Have the kernel answer for these; one outcome each. Entries of others are left alone, without an error."""
    _, others = read(mark)
    return change(RTM_NEWNEIGH, proxies, set(proxies) - set(others), mark, NTF_PROXY, _refusal)


def remove(proxies: Sequence[Neighbour], mark: int = PROTOCOL) -> list[Outcome]:
    """Remove entries; one outcome each. Absent entries and those of others are left alone, without an error."""
    ours, _ = read(mark)
    return change(RTM_DELNEIGH, proxies, set(proxies) & set(ours), mark, NTF_PROXY, _refusal)


def _refusal(proxy: Neighbour, error: OSError) -> KernelError:
    return KernelError(f"the kernel can't answer for {proxy.address} on {proxy.interface}: {error.strerror}")
