# SPDX-License-Identifier: Apache-2.0
"""Groups of next hops: objects of the kernel that routes refer to, so that one change of a group is one of all routes.

A resilient group has a table of buckets, each with a member; flows are spread over buckets. A member that goes gives
up its buckets alone, and one that comes gets buckets that nobody has used for a while: all other flows stay where they
are (Linux 5.13, Documentation/networking/nexthop-group-resilient.rst). On older kernels groups are plain ones.

Members are next hops of the kernel, too; they and groups carry our protocol number. Works on the network namespace of
the calling thread. Layouts: include/uapi/linux/nexthop.h.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_address

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import netlink
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.netlink import Message
from reconciler.kernel.objects import HopGroup, Neighbour
from reconciler.kernel.port import Outcome
from reconciler.kernel.rtnetlink import (
    FAMILIES,
    MEMBER,
    NEXT_HOP,
    NEXTHOP_GRP_TYPE_RES,
    NHA_GATEWAY,
    NHA_GROUP,
    NHA_GROUP_TYPE,
    NHA_ID,
    NHA_OIF,
    NHA_RES_GROUP,
    NHA_RES_GROUP_BUCKETS,
    NHA_RES_GROUP_IDLE_TIMER,
    NUMBER,
    RTM_DELNEXTHOP,
    RTM_GETNEXTHOP,
    RTM_GETNEXTHOPBUCKET,
    RTM_NEWNEXTHOP,
)

_TICKS = 100  # of timers a second (USER_HZ)
_FIRST_MEMBER = 0x20000000
"""Members have numbers from here on, groups from twice as many on (`kinds/hop_group`); daemons count from 1."""


def read(mark: int = PROTOCOL) -> list[HopGroup]:
    """Our groups, by number. OSError if the kernel refuses."""
    return _groups(_dump(), mark)


def is_resilient() -> bool:
    """Whether this kernel has resilient groups: older ones don't know how to list buckets."""
    try:
        with netlink.route() as route:
            route.dump(RTM_GETNEXTHOPBUCKET, NEXT_HOP.pack(0, 0, 0, 0, 0))
    except OSError as error:
        return error.errno not in (errno.EOPNOTSUPP, errno.EINVAL)
    return True


def foreign(wanted: Collection[HopGroup], mark: int = PROTOCOL) -> dict[int, str]:
    """What is not ours in the place of these groups or of their members, by the group's number. OSError if the kernel
    refuses."""
    holders = {number: protocol for number, protocol, _ in _dump() if protocol != mark}
    numbers = {group.number: [group.number, *map(_member_number, group.hops)] for group in wanted} if holders else {}
    found = ((group, next((n for n in own if n in holders), None)) for group, own in numbers.items())
    return {
        group: f"next hop {number}, protocol number {holders[number]}" for group, number in found if number is not None
    }


def put(wanted: Sequence[HopGroup], mark: int = PROTOCOL, *, adopts: bool = False) -> list[Outcome]:
    """Make groups, or give them other members; one outcome each. `adopts`: those of others with their numbers go, and
    the routes that lead to them."""
    resilient = is_resilient()
    taken = {number for group in wanted for number in (group.number, *map(_member_number, group.hops))}
    others = [number for number, protocol, _ in _dump() if protocol != mark and number in taken] if adopts else []
    with netlink.route() as route:
        route.change([_delete(number) for number in others])
    outcomes = [_put(group, resilient, mark) for group in wanted]
    _forget_members(mark)
    return outcomes


def remove(numbers: Sequence[int], mark: int = PROTOCOL) -> list[Outcome]:
    """Remove our groups, and members that no other one has. It is no error if there is none."""
    held = {group.number for group in read(mark)}
    messages = {number: _delete(number) for number in numbers if number in held}
    with netlink.route() as route:
        errors = dict(zip(messages, route.change(list(messages.values())), strict=True))
    _forget_members(mark)
    return [
        KernelError(f"can't remove the group of next hops {number}: {error.strerror}")
        if (error := errors.get(number)) and error.errno != errno.ENOENT else None
        for number in numbers
    ]  # fmt: skip


def _put(group: HopGroup, resilient: bool, mark: int) -> Outcome:
    members = {hop: _member_number(hop) for hop in group.hops}
    try:
        messages = [_member(hop, number, mark) for hop, number in members.items()]
    except OSError:
        return KernelError(f"a next hop of {', '.join(hop.interface for hop in group.hops)} is missing")
    if foreign([group], mark):
        return ForeignError("a next hop of that number is not lbctl's", hint="ip nexthop show")
    body = NEXT_HOP.pack(socket.AF_UNSPEC, 0, mark, 0, 0) + netlink.attribute(NHA_ID, NUMBER.pack(group.number))
    body += netlink.attribute(NHA_GROUP, b"".join(MEMBER.pack(number, 0, 0, 0) for number in sorted(members.values())))
    if resilient:
        settings = netlink.attribute(NHA_RES_GROUP_BUCKETS, struct.pack("=H", group.buckets))
        settings += netlink.attribute(NHA_RES_GROUP_IDLE_TIMER, NUMBER.pack(group.idle_s * _TICKS))
        body += netlink.attribute(NHA_GROUP_TYPE, struct.pack("=H", NEXTHOP_GRP_TYPE_RES))
        body += netlink.attribute(NHA_RES_GROUP | netlink.NESTED, settings)
    messages.append(Message(RTM_NEWNEXTHOP, netlink.CREATE | netlink.REPLACE, body))
    with netlink.route() as route:
        error = next(filter(None, route.change(messages)), None)
    return KernelError(f"can't make the group of next hops: {error.strerror}") if error else None


def _forget_members(mark: int) -> None:
    """Remove our next hops that no group has."""
    objects = list(_dump())
    used = {number for _, _, parts in objects for number in _members(parts)}
    idle = [n for n, protocol, parts in objects if protocol == mark and NHA_GROUP not in parts and n not in used]
    with netlink.route() as route:
        route.change([_delete(number) for number in idle if _FIRST_MEMBER <= number < 2 * _FIRST_MEMBER])


def _groups(objects: Iterator[tuple[int, int, dict[int, bytes]]], mark: int) -> list[HopGroup]:
    names = dict(socket.if_nameindex())
    hops: dict[int, Neighbour] = {}
    groups: list[tuple[int, dict[int, bytes]]] = []
    for number, protocol, parts in objects:
        if NHA_GROUP in parts:
            if protocol == mark:
                groups.append((number, parts))
        elif NHA_GATEWAY in parts and NHA_OIF in parts:
            interface = names.get(NUMBER.unpack(parts[NHA_OIF])[0], "")
            hops[number] = Neighbour(str(ip_address(parts[NHA_GATEWAY])), interface)
    return sorted(
        HopGroup(number, tuple(sorted(hops[member] for member in _members(parts) if member in hops)), *_sizes(parts))
        for number, parts in groups
    )


def _sizes(parts: dict[int, bytes]) -> tuple[int, int]:
    """The buckets and the idle time of a group; none of a plain one."""
    if NHA_RES_GROUP not in parts:
        return 0, 0
    inner = netlink.attributes(parts[NHA_RES_GROUP])
    (ticks,) = NUMBER.unpack(inner[NHA_RES_GROUP_IDLE_TIMER])
    return struct.unpack("=H", inner[NHA_RES_GROUP_BUCKETS])[0], ticks // _TICKS


def _members(parts: dict[int, bytes]) -> list[int]:
    return [number for number, _, _, _ in MEMBER.iter_unpack(parts.get(NHA_GROUP, b""))]


def _dump() -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """All next hops and groups: number, protocol, attributes."""
    with netlink.route() as route:
        answers = route.dump(RTM_GETNEXTHOP, NEXT_HOP.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    for answer in answers:
        _, _, protocol, _, _ = NEXT_HOP.unpack_from(answer)
        parts = netlink.attributes(answer, NEXT_HOP.size)
        yield NUMBER.unpack(parts[NHA_ID])[0], protocol, parts


def _member_number(hop: Neighbour) -> int:
    digest = hashlib.blake2b(f"{hop.address} {hop.interface}".encode(errors="replace"), digest_size=4).digest()
    return _FIRST_MEMBER | int.from_bytes(digest) % _FIRST_MEMBER


def _member(hop: Neighbour, number: int, mark: int) -> Message:
    """OSError if the interface is missing."""
    address = ip_address(hop.address)
    body = NEXT_HOP.pack(FAMILIES[address.version], 0, mark, 0, 0)
    body += netlink.attribute(NHA_ID, NUMBER.pack(number))
    body += netlink.attribute(NHA_OIF, NUMBER.pack(socket.if_nametoindex(hop.interface)))
    body += netlink.attribute(NHA_GATEWAY, address.packed)
    return Message(RTM_NEWNEXTHOP, netlink.CREATE | netlink.REPLACE, body)


def _delete(number: int) -> Message:
    body = NEXT_HOP.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + netlink.attribute(NHA_ID, NUMBER.pack(number))
    return Message(RTM_DELNEXTHOP, 0, body)
