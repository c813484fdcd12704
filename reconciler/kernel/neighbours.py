# SPDX-License-Identifier: Apache-2.0
"""Neighbours that the kernel keeps resolved by itself: `managed` entries (Linux 5.16).

An XDP program sends without the kernel's knowledge, so the kernel has no reason to ask whether a neighbour still
has the same MAC. For a managed entry it asks again and again: once the last answer is no longer fresh
(base_reachable_time), within interval_probe_time. So a new MAC shows within about a minute. An entry for which nobody
answers is forgotten as soon as the kernel has more than gc_thresh1 entries, unless it is marked as learnt from
outside (NTF_EXT_LEARNED): so ours have this mark as well.

Entries carry our protocol number (NDA_PROTOCOL). Permanent entries, and managed entries of others, need no help and
are left alone. Works on the network namespace of the calling thread. Layouts:
include/uapi/linux/neighbour.h; what the kernel does: neigh_managed_work() in net/core/neighbour.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from reconciler.errors import KernelError
from reconciler.kernel import netlink
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.netlink import Message, Route
from reconciler.kernel.port import Neighbour, Outcome

_NEW, _DELETE, _GET = 28, 29, 30
_NDA_DST, _NDA_PROTOCOL, _NDA_FLAGS_EXT = 1, 12, 15
_EXT_LEARNED = 0x10
_MANAGED, _RESERVED = 0x1, 0x8000_0000
_PERMANENT = 0x80
_NOBODY = 0x7FFF_FFFF  # no interface has this index
_HEADER = struct.Struct("=BxxxiHBB")  # family, padding, interface, state, flags, type
_EXTENDED = struct.Struct("=I")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def can_keep() -> bool:
    """Whether the kernel knows managed entries. OSError if it refuses to say.

    The request has a reserved extended flag and names an interface that doesn't exist, so nothing is ever written. A
    kernel that reads extended flags complains of the flag, any other of the interface.
    """
    body = _HEADER.pack(socket.AF_INET, _NOBODY, 0, 0, 0) + netlink.attribute(_NDA_DST, bytes(4))
    body += netlink.attribute(_NDA_FLAGS_EXT, _EXTENDED.pack(_RESERVED | _MANAGED))
    with netlink.route() as route:
        (outcome,) = route.change([Message(_NEW, netlink.CREATE, body)])
    if outcome is not None and outcome.errno == errno.EPERM:
        raise outcome
    return outcome is not None and outcome.errno not in (errno.ENODEV, errno.ENXIO)


def read(mark: int = PROTOCOL) -> tuple[list[Neighbour], list[Neighbour]]:
    """Our entries, and the managed or permanent ones of others. OSError if the kernel refuses."""
    ours, others = [], []
    with netlink.route() as route:
        for neighbour, protocol, is_managed, is_permanent in _entries(route):
            if protocol == mark and is_managed:
                ours.append(neighbour)
            elif is_managed or is_permanent:
                others.append(neighbour)
    return ours, others


def keep(neighbours: Sequence[Neighbour], mark: int = PROTOCOL) -> list[Outcome]:
    """Have the kernel keep these; one outcome each. Entries of others are left alone, without an error."""
    _, others = read(mark)
    return _change(_NEW, netlink.CREATE | netlink.REPLACE, neighbours, set(neighbours) - set(others), mark)


def forget(neighbours: Sequence[Neighbour], mark: int = PROTOCOL) -> list[Outcome]:
    """Remove entries; one outcome each. Absent entries and those of others are left alone, without an error."""
    ours, _ = read(mark)
    return _change(_DELETE, 0, neighbours, set(neighbours) & set(ours), mark)


def _change(
    type_: int, flags: int, neighbours: Sequence[Neighbour], chosen: set[Neighbour], mark: int
) -> list[Outcome]:
    outcomes: dict[Neighbour, Outcome] = {}
    messages: dict[Neighbour, Message] = {}
    for neighbour in neighbours:
        if neighbour not in chosen:
            continue
        try:
            messages[neighbour] = Message(type_, flags, _body(neighbour, mark))
        except OSError:
            outcomes[neighbour] = KernelError(f"there is no interface {neighbour.interface}")
    with netlink.route() as route:
        for neighbour, error in zip(messages, route.change(list(messages.values())), strict=True):
            if error and not (type_ == _DELETE and error.errno == errno.ENOENT):
                full = error.errno == errno.ENOBUFS
                outcomes[neighbour] = KernelError(
                    f"the kernel can't keep {neighbour.address} on {neighbour.interface}: "
                    + ("its table of neighbours is full" if full else error.strerror or str(error)),
                    hint="raise net.ipv4.neigh.default.gc_thresh3 (or ipv6)" if full else "",
                )
    return [outcomes.get(neighbour) for neighbour in neighbours]


def _body(neighbour: Neighbour, mark: int) -> bytes:
    address = ip_address(neighbour.address)
    index = socket.if_nametoindex(neighbour.interface)
    return (
        _HEADER.pack(_FAMILIES[address.version], index, 0, _EXT_LEARNED, 0)
        + netlink.attribute(_NDA_DST, address.packed)
        + netlink.attribute(_NDA_PROTOCOL, bytes([mark]))
        + netlink.attribute(_NDA_FLAGS_EXT, _EXTENDED.pack(_MANAGED))
    )


def _entries(route: Route) -> Iterator[tuple[Neighbour, int, bool, bool]]:
    """All entries, each with the number of its protocol, whether it is managed, and whether it is permanent."""
    names = dict(socket.if_nameindex())
    for family in _FAMILIES.values():
        for answer in route.dump(_GET, _HEADER.pack(family, 0, 0, 0, 0)):
            _, index, state, flags, _ = _HEADER.unpack_from(answer)
            found = netlink.attributes(answer[_HEADER.size :])
            if index in names and _NDA_DST in found:
                is_lasting = bool(flags & _EXT_LEARNED)
                flags = _EXTENDED.unpack(found[_NDA_FLAGS_EXT])[0] if _NDA_FLAGS_EXT in found else 0
                neighbour = Neighbour(str(ip_address(found[_NDA_DST])), names[index], is_lasting)
                protocol = found.get(_NDA_PROTOCOL, b"\0")[0]
                yield neighbour, protocol, bool(flags & _MANAGED), bool(state & _PERMANENT)
