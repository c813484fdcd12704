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
from collections.abc import Callable, Collection, Iterator, Sequence
from ipaddress import ip_address

from reconciler.errors import KernelError
from reconciler.kernel import codec, netlink
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.netlink import Message, Route
from reconciler.kernel.objects import Neighbour
from reconciler.kernel.port import Outcome
from reconciler.kernel.rtnetlink import (
    FAMILIES,
    NDA_DST,
    NDA_FLAGS_EXT,
    NDA_PROTOCOL,
    NEIGHBOUR,
    NTF_EXT_LEARNED,
    NTF_EXT_MANAGED,
    NUD_PERMANENT,
    NUMBER,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)

_RESERVED = 0x8000_0000
_NOBODY = 0x7FFF_FFFF  # no interface has this index
_MANAGED = "NDA_FLAGS_EXT", NTF_EXT_MANAGED


def can_keep() -> bool:
    """Whether the kernel knows managed entries. OSError if it refuses to say.

    The request has a reserved extended flag and names an interface that doesn't exist, so nothing is ever written. A
    kernel that reads extended flags complains of the flag, any other of the interface.
    """
    body = NEIGHBOUR.pack(socket.AF_INET, _NOBODY, 0, 0, 0) + netlink.attribute(NDA_DST, bytes(4))
    body += netlink.attribute(NDA_FLAGS_EXT, NUMBER.pack(_RESERVED | NTF_EXT_MANAGED))
    with netlink.route() as route:
        (outcome,) = route.change([Message(RTM_NEWNEIGH, netlink.CREATE, body)])
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
    chosen = set(neighbours) - set(others)
    return change(RTM_NEWNEIGH, neighbours, chosen, mark, NTF_EXT_LEARNED, _refusal, _MANAGED)


def forget(neighbours: Sequence[Neighbour], mark: int = PROTOCOL) -> list[Outcome]:
    """Remove entries; one outcome each. Absent entries and those of others are left alone, without an error."""
    ours, _ = read(mark)
    chosen = set(neighbours) & set(ours)
    return change(RTM_DELNEIGH, neighbours, chosen, mark, NTF_EXT_LEARNED, _refusal, _MANAGED)


def change(
    type_: int, entries: Sequence[Neighbour], chosen: Collection[Neighbour], mark: int, settings: int,
    refusal: Callable[[Neighbour, OSError], KernelError], *more: codec.Attribute,
) -> list[Outcome]:  # fmt: skip
    """Send a request for each of the `chosen` entries, with these `settings` (NTF_…); one outcome for each entry. It
    is no error if one that is to go is not there."""
    flags = netlink.CREATE | netlink.REPLACE if type_ == RTM_NEWNEIGH else 0
    outcomes: dict[Neighbour, Outcome] = {}
    messages: dict[Neighbour, Message] = {}
    for entry in (entry for entry in entries if entry in chosen):
        try:
            index = socket.if_nametoindex(entry.interface)
        except OSError:
            outcomes[entry] = KernelError(f"there is no interface {entry.interface}")
            continue
        family = FAMILIES[ip_address(entry.address).version]
        fields = {"family": family, "ifindex": index, "flags": settings}
        about: list[codec.Attribute] = [("NDA_DST", entry.address), ("NDA_PROTOCOL", mark)]
        messages[entry] = codec.message(type_, flags, fields, *about, *more)
    with netlink.route() as route:
        for entry, error in zip(messages, route.change(list(messages.values())), strict=True):
            if error and not (type_ == RTM_DELNEIGH and error.errno == errno.ENOENT):
                outcomes[entry] = refusal(entry, error)
    return [outcomes.get(entry) for entry in entries]


def _refusal(neighbour: Neighbour, error: OSError) -> KernelError:
    full = error.errno == errno.ENOBUFS
    return KernelError(
        f"the kernel can't keep {neighbour.address} on {neighbour.interface}: "
        + ("its table of neighbours is full" if full else error.strerror or str(error)),
        hint="raise net.ipv4.neigh.default.gc_thresh3 (or ipv6)" if full else "",
    )


def _entries(route: Route) -> Iterator[tuple[Neighbour, int, bool, bool]]:
    """All entries, each with the number of its protocol, whether it is managed, and whether it is permanent."""
    names = dict(socket.if_nameindex())
    for family in FAMILIES.values():
        for answer in route.dump(RTM_GETNEIGH, NEIGHBOUR.pack(family, 0, 0, 0, 0)):
            _, index, state, flags, _ = NEIGHBOUR.unpack_from(answer)
            found = netlink.attributes(answer[NEIGHBOUR.size :])
            if index in names and NDA_DST in found:
                is_lasting = bool(flags & NTF_EXT_LEARNED)
                flags = NUMBER.unpack(found[NDA_FLAGS_EXT])[0] if NDA_FLAGS_EXT in found else 0
                neighbour = Neighbour(str(ip_address(found[NDA_DST])), names[index], is_lasting)
                protocol = found.get(NDA_PROTOCOL, b"\0")[0]
                yield neighbour, protocol, bool(flags & NTF_EXT_MANAGED), bool(state & NUD_PERMANENT)
