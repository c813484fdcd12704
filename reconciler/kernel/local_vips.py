# SPDX-License-Identifier: Apache-2.0
"""VIPs that the node takes for its own: `local` routes, or addresses on the loopback.

Both carry our protocol number (rtm_protocol, IFA_PROTO); those of others don't.
Works on the network namespace of the calling thread. Layouts: include/uapi/linux/rtnetlink.h, if_addr.h.
"""

from __future__ import annotations

import errno
import functools
import socket
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import codec, netlink, vip_routes
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.netlink import Message, Route
from reconciler.kernel.objects import LocalVip
from reconciler.kernel.port import Outcome
from reconciler.kernel.rtnetlink import (
    ADDRESS,
    BITS,
    IFA_ADDRESS,
    IFA_F_NODAD,
    IFA_LOCAL,
    IFA_PROTO,
    ROUTE,
    RT_SCOPE_HOST,
    RT_TABLE_LOCAL,
    RTA_DST,
    RTA_OIF,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    RTN_LOCAL,
    RTPROT_KERNEL,
)

_LOOPBACK = 1  # The loopback is the first interface of every network namespace.
_PROTOCOL_NAMES = {0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 186: "bgp", 188: "ospf"}

_ADDRESS_AT = ROUTE.size + 8 + 4  # of the network in an answer, behind the attribute of the table


@dataclass(frozen=True, slots=True)
class _Holder:
    """A route or address that makes a VIP local to the node: its form, its interface, its protocol number."""

    form: str
    interface: int
    protocol: int

    def is_marked(self, mark: int) -> bool:
        return self.protocol == mark and self.interface == _LOOPBACK

    def __str__(self) -> str:
        interface = socket.if_indextoname(self.interface)
        if self.form == "address":
            return f"address on {interface}"
        name = _PROTOCOL_NAMES.get(self.protocol, "number")
        return f"local route on {interface}, protocol {name} ({self.protocol})"


_holder = functools.cache(_Holder)
"""Thousands of VIPs have the same holder."""


def _text(packed: bytes) -> str:
    """An address as people write it; `ipaddress` takes seven times as long for IPv4."""
    return socket.inet_ntoa(packed) if len(packed) == len(bytes(4)) else str(ip_address(packed))


def _packed(text: str) -> bytes:
    """The reverse of `_text`."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def read(mark: int = PROTOCOL, addresses: Collection[str] | None = None) -> list[LocalVip]:
    """The VIPs with this mark; only these, if any are named. OSError if the kernel refuses."""
    with netlink.route() as route:
        held = [*_addresses(route, _LOOPBACK), *_routes(route, mark, addresses)]
    found = (LocalVip(_text(address), holder.form) for address, holder in held if holder.is_marked(mark))
    return [vip for vip in found if addresses is None or vip.address in addresses]


def foreign(addresses: Collection[str], mark: int = PROTOCOL) -> dict[str, str]:
    """Which of these the node holds without this mark: address → owner for a person. OSError if the kernel refuses."""
    wanted = set(addresses)
    with netlink.route() as route:
        held = [(_text(address), holder) for address, holder in _addresses(route)]
        routes = _routes(route, only=wanted)
        others = [(_text(address), holder) for address, holder in routes if not holder.is_marked(mark)]
    held = [(address, holder) for address, holder in held if address in wanted]
    # The kernel makes a route of its own for each address; the address is named as the owner, not the route.
    made_by_kernel = {address for address, _ in held}
    owners = {
        address: str(holder) for address, holder in others
        if address in wanted and not (holder.protocol == RTPROT_KERNEL and address in made_by_kernel)
    }  # fmt: skip
    return owners | {address: str(holder) for address, holder in held if not holder.is_marked(mark)}


def add(vips: Sequence[LocalVip], mark: int = PROTOCOL) -> list[Outcome]:
    """Make VIPs local; one outcome each. ForeignError for those that somebody else's address or route holds."""
    owners = foreign([vip.address for vip in vips], mark)
    free = [vip for vip in vips if vip.address not in owners]
    with netlink.route() as route:
        outcomes = dict(zip(free, route.change([_add_message(vip, mark) for vip in free]), strict=True))
    return [
        ForeignError(f"{vip.address} is not lbctl's: {owners[vip.address]}", hint="remove it, or choose another VIP")
        if vip.address in owners else _outcome("add", vip, outcomes[vip], errno.EEXIST)
        for vip in vips
    ]  # fmt: skip


def take_over(vips: Sequence[LocalVip], mark: int = PROTOCOL) -> list[Outcome]:
    """As `add`, but routes and addresses of others on the loopback become ours; there is no moment without. What is on
    another interface stays, and is a ForeignError."""
    with netlink.route() as route:
        held = [(_text(a), h) for a, h in (*_addresses(route), *_routes(route)) if not h.is_marked(mark)]
        elsewhere = {address for address, holder in held if holder.interface != _LOOPBACK}
        asked = {vip.address: vip for vip in vips if vip.address not in elsewhere}
        theirs = [(asked[a], h) for a, h in held if a in asked and h.protocol != RTPROT_KERNEL]
        # An address that stays an address is another one only by its mark; all else is made beside what goes.
        same = [vip for vip, holder in theirs if vip.form == holder.form == "address"]
        marked = route.change([_address(RTM_NEWADDR, vip, mark, netlink.REPLACE) for vip in same])
        others = [vip for vip in asked.values() if vip not in same]
        made = route.change([_add_message(vip, mark) for vip in others])
        failed = {vip for vip, error in zip(same, marked, strict=True) if error}
        failed |= {vip for vip, error in zip(others, made, strict=True) if error and error.errno != errno.EEXIST}
        gone = [(vip, holder) for vip, holder in theirs if vip not in failed and vip not in same]
        route.change([_remove_message(LocalVip(vip.address, h.form), h.protocol) for vip, h in gone])
    return add(vips, mark)


def remove(vips: Sequence[LocalVip], mark: int = PROTOCOL) -> list[Outcome]:
    """Take VIPs away; one outcome each. What is absent or not ours is left as it is, without an error."""
    ours = set(read(mark, {vip.address for vip in vips}))
    mine = [vip for vip in vips if vip in ours]
    with netlink.route() as route:
        outcomes = dict(zip(mine, route.change([_remove_message(vip, mark) for vip in mine]), strict=True))
    return [_outcome("remove", vip, outcomes.get(vip), errno.ESRCH, errno.EADDRNOTAVAIL) for vip in vips]


def _outcome(verb: str, vip: LocalVip, error: OSError | None, *harmless: int) -> Outcome:
    if error is None or error.errno in harmless:
        return None
    hint = "ip link set lo up" if error.errno == errno.ENETDOWN else ""
    return KernelError(f"can't {verb} the local {vip.form} {vip.address}: {error.strerror}", hint=hint)


def _add_message(vip: LocalVip, mark: int) -> Message:
    if vip.form == "address":
        return _address(RTM_NEWADDR, vip, mark, netlink.CREATE | netlink.EXCLUSIVE)
    # Not exclusive: while a VIP changes its form, the kernel's route for its address is there for a moment. For IPv6
    # our route is another one anyhow, by its metric: 1024, while the kernel's is 0.
    return Message(RTM_NEWROUTE, netlink.CREATE | netlink.APPEND, _route(vip, mark))


def _remove_message(vip: LocalVip, mark: int) -> Message:
    if vip.form == "address":
        return _address(RTM_DELADDR, vip, mark)
    return Message(RTM_DELROUTE, 0, _route(vip, mark))


def _route(vip: LocalVip, mark: int) -> bytes:
    table, scope = RT_TABLE_LOCAL, RT_SCOPE_HOST
    return vip_routes.body(vip.address, _LOOPBACK, table=table, mark=mark, scope=scope, kind=RTN_LOCAL)


def _address(type_: int, vip: LocalVip, mark: int, flags: int = 0) -> Message:
    marked = ("IFA_PROTO", mark)
    return codec.address(type_, vip.address, _LOOPBACK, marked, flags=flags, scope=RT_SCOPE_HOST, settings=IFA_F_NODAD)


def _routes(
    route: Route, protocol: int = 0, only: Collection[str] | None = None
) -> Iterator[tuple[bytes, _Holder]]:
    """Single addresses in the table `local`; `protocol` 0 means any, and so does `only` None."""
    chosen = None if only is None else set(map(_packed, only))
    for family, bits in BITS.items():
        asked = ROUTE.pack(family, 0, 0, 0, RT_TABLE_LOCAL, protocol, 0, RTN_LOCAL, 0)
        try:
            answers = route.dump(RTM_GETROUTE, asked)
        except FileNotFoundError:
            continue  # A namespace whose interfaces were never up has no such table yet.
        for answer in answers:
            # Where there are ten thousand, most are not asked for.
            if chosen is not None and answer[_ADDRESS_AT : _ADDRESS_AT + answer[1] // 8] not in chosen:
                continue
            family_held, bits_held, _, _, _, protocol_held, *_ = ROUTE.unpack_from(answer)
            found = netlink.attributes(answer, ROUTE.size)
            # A kernel without IPv6 answers for all other families.
            if (family_held, bits_held) == (family, bits) and RTA_OIF in found:
                holder = _holder("route", int.from_bytes(found[RTA_OIF], sys.byteorder), protocol_held)
                yield found[RTA_DST], holder


def _addresses(route: Route, interface: int = 0) -> Iterator[tuple[bytes, _Holder]]:
    """Addresses of an interface; 0 means of all."""
    for family in BITS:
        for answer in route.dump(RTM_GETADDR, ADDRESS.pack(family, 0, 0, 0, interface)):
            family_held, *_, index = ADDRESS.unpack_from(answer)
            found = netlink.attributes(answer, ADDRESS.size)
            if family_held == family:
                address = found.get(IFA_LOCAL) or found[IFA_ADDRESS]
                yield address, _holder("address", index, found.get(IFA_PROTO, b"\0")[0])
