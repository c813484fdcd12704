# SPDX-License-Identifier: Apache-2.0
"""Routes of the node: ours, which carry our protocol number, and the next hops of everybody else's.

Ours in the table `main` have a metric that lets every other route to the same network go first. Those to the loopback
tell a routing daemon which VIPs are here: they lead nowhere, most in a table in which the kernel never looks. Works on
the network namespace of the calling thread. Layouts: include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import codec, netlink, vip_routes
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.netlink import Message
from reconciler.kernel.objects import MAIN_TABLE, Neighbour, Route
from reconciler.kernel.port import Outcome
from reconciler.kernel.rtnetlink import (
    ADDRESS,
    FAMILIES,
    HOP,
    IFA_ADDRESS,
    IFA_LOCAL,
    LINK,
    NUMBER,
    ROUTE,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_LOCAL,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_DELROUTE,
    RTM_F_FIB_MATCH,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_BLACKHOLE,
    RTN_UNICAST,
)

_NO_NEIGHBOURS = 0x8 | 0x80  # IFF_LOOPBACK, IFF_NOARP
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)  # no route; those that drop
_TABLE_BYTES = 8  # the attribute RTA_TABLE, the first of each answer
_FEW = 20  # of which each is looked for in all that the kernel answers
_TYPE_AT = 7  # of rtm_type in the header
_ADDRESS_AT = ROUTE.size + _TABLE_BYTES + 4  # RTA_DST follows


def read(mark: int = PROTOCOL) -> list[Route]:
    """Our routes in the table `main` that lead to a router, to a group of them, or into a black hole. OSError if the
    kernel refuses."""
    names = dict(socket.if_nameindex())
    found = []
    for answer in _dump(table=MAIN_TABLE, protocol=mark):
        parts = netlink.attributes(answer[ROUTE.size :])
        index, via = next(_hops(parts), (0, ""))
        to = _network(answer, parts)
        if RTA_NH_ID in parts:
            found.append(Route(to, group=NUMBER.unpack(parts[RTA_NH_ID])[0]))
        elif via or answer[_TYPE_AT] == RTN_BLACKHOLE:
            found.append(Route(to, via, names.get(index, "")) if via else Route(to))
    return found


def announced(addresses: Collection[str] | None = None, mark: int = PROTOCOL) -> list[Route]:
    """Our routes to an interface alone, in all tables but `local`; only those to these single addresses, if any are
    given. OSError if the kernel refuses."""
    names = dict(socket.if_nameindex())
    asked = None if addresses is None else {ip_address(address).packed for address in addresses}
    found = []
    having = None if asked is None else [netlink.attribute(RTA_DST, address) for address in asked]
    if having is not None and len(having) > _FEW:
        having = None
    for answer in _dump(protocol=mark, type_=RTN_UNICAST, having=having):
        # Where there are ten thousand, most answers are about others.
        if asked is not None and answer[_ADDRESS_AT : _ADDRESS_AT + answer[1] // 8] not in asked:
            continue
        parts = netlink.attributes(answer[ROUTE.size :])
        table = NUMBER.unpack(parts[RTA_TABLE])[0] if RTA_TABLE in parts else answer[4]
        if table != RT_TABLE_LOCAL and RTA_OIF in parts and not _gateway(parts):
            interface = names.get(NUMBER.unpack(parts[RTA_OIF])[0], "")
            metric = NUMBER.unpack(parts[RTA_PRIORITY])[0] if RTA_PRIORITY in parts else 0
            found.append(Route(_network(answer, parts), "", interface, table, metric))
    return found


def add(routes: Sequence[Route], mark: int = PROTOCOL, *, adopts: bool = False) -> list[Outcome]:
    """Make routes, or correct our routes to the same networks; one outcome each. `adopts`: those of others to the same
    networks, with the same table and metric, become ours."""
    singles = [str(network.network_address) for r in routes if (network := ip_network(r.to)).num_addresses == 1]
    told = [route for route in routes if _is_told(route)]
    held = {_place(route) for route in (read(mark) if len(told) < len(routes) else [])}
    if told:
        held |= {_place(route) for route in announced(singles if len(singles) == len(routes) else None, mark)}
    held |= {_place(route) for route in routes} if adopts else set()
    flags = {_place(r): netlink.REPLACE if _place(r) in held else netlink.EXCLUSIVE for r in routes}
    return _change(RTM_NEWROUTE, routes, flags, mark)


def remove(routes: Sequence[Route], mark: int = PROTOCOL) -> list[Outcome]:
    """Remove our routes to these networks; one outcome each. It is no error if there is none."""
    return _change(RTM_DELROUTE, routes, {}, mark)


def next_hops(mark: int = PROTOCOL) -> list[Neighbour]:
    """The next hops of others' routes in all tables, on links that have neighbours."""
    with netlink.route() as connection:
        links = [LINK.unpack_from(answer) for answer in connection.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0))]
    able = {index for _, _, index, flags, _ in links if not flags & _NO_NEIGHBOURS}
    names = {index: name for index, name in socket.if_nameindex() if index in able}
    found: set[tuple[int, str]] = set()
    seen: set[bytes] = set()
    for answer in _dump(type_=RTN_UNICAST):
        # A routing daemon may hold a million routes by a few routers: apart from their networks, they are equal.
        _, bits, _, _, _, protocol, *_ = ROUTE.unpack_from(answer)
        rest = _without_network(answer, bits)
        if protocol != mark and rest not in seen:
            seen.add(rest)
            found.update(_hops(netlink.attributes(answer[ROUTE.size :])))
    return sorted(Neighbour(via, names[index]) for index, via in found if index in names)


def networks() -> list[str]:
    """The networks that the node is attached to by an address, and its own single addresses."""
    found = set()
    with netlink.route() as connection:
        for family in FAMILIES.values():
            for answer in connection.dump(RTM_GETADDR, ADDRESS.pack(family, 0, 0, 0, 0)):
                held, bits, *_ = ADDRESS.unpack_from(answer)
                parts = netlink.attributes(answer[ADDRESS.size :])
                if held == family:
                    found.add(str(ip_interface((parts.get(IFA_LOCAL) or parts[IFA_ADDRESS], bits)).network))
    return sorted(found)


def way_out(address: str) -> int | None:
    """The index of the interface by which the kernel sends what is for an address; None if it has no way."""
    try:
        with netlink.route() as connection:
            return _way_out(connection, address)
    except OSError:
        return None


def ways(addresses: Collection[str]) -> dict[str, str]:
    """The names of the interfaces by which the kernel sends what is for these addresses; empty where it has no way."""
    names, found = dict(socket.if_nameindex()), {}
    with netlink.route() as connection:
        for address in addresses:
            try:
                index = _way_out(connection, address)
            except OSError as error:
                if error.errno in _NO_WAY:
                    found[address] = ""
                continue
            if index in names:
                found[address] = names[index]
    return found


def hops_to(addresses: Collection[str]) -> dict[str, list[str]]:
    """The next hops of the route that matches each address; none where it leads to no router, or is missing."""
    found: dict[str, list[str]] = {}
    with netlink.route() as connection:
        for address in addresses:
            target = ip_address(address)
            header = ROUTE.pack(FAMILIES[target.version], target.max_prefixlen, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
            try:
                answer = connection.get(RTM_GETROUTE, header + netlink.attribute(RTA_DST, target.packed))
            except OSError as error:
                if error.errno not in _NO_WAY:
                    raise
                found[address] = []
                continue
            found[address] = sorted(via for _, via in _hops(netlink.attributes(answer[ROUTE.size :])))
    return found


def _way_out(connection: netlink.Route, address: str) -> int | None:
    target = ip_address(address)
    header = ROUTE.pack(FAMILIES[target.version], target.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    answer = connection.get(RTM_GETROUTE, header + netlink.attribute(RTA_DST, target.packed))
    found = netlink.attributes(answer[ROUTE.size :]).get(RTA_OIF)
    return NUMBER.unpack(found)[0] if found else None


def _dump(
    table: int = 0, protocol: int = 0, type_: int = 0, having: Collection[bytes] | None = None
) -> Iterator[bytes]:
    with netlink.route() as connection:
        for family in FAMILIES.values():
            try:
                asked = ROUTE.pack(family, 0, 0, 0, table, protocol, 0, type_, 0)
                answers = connection.dump(RTM_GETROUTE, asked, having)
            except FileNotFoundError:
                continue  # A namespace whose interfaces were never up has no such table yet.
            # A kernel without IPv6 answers for all other families.
            yield from (answer for answer in answers if answer[0] == family)


def _without_network(answer: bytes, bits: int) -> bytes:
    """The attributes of a route without its network, which follows the table in the kernel's answer."""
    start = ROUTE.size + _TABLE_BYTES
    length, number = struct.unpack_from("=HH", answer, start) if bits else (0, 0)
    end = start + (length + 3 & ~3) if number == RTA_DST else start
    return answer[ROUTE.size : start] + answer[end:]


def _hops(parts: Mapping[int, bytes]) -> Iterator[tuple[int, str]]:
    """The next hops in the attributes of a route: interface and address of each."""
    if RTA_MULTIPATH in parts:
        left = parts[RTA_MULTIPATH]
        while len(left) >= HOP.size:
            length, _, _, index = HOP.unpack_from(left)
            via = _gateway(netlink.attributes(left[HOP.size : length]))
            if via:
                yield index, via
            left = left[max((length + 3) & ~3, HOP.size) :]
    elif (via := _gateway(parts)) and RTA_OIF in parts:
        yield NUMBER.unpack(parts[RTA_OIF])[0], via


def _gateway(parts: Mapping[int, bytes]) -> str:
    """The address of a next hop, which may be of another family than the route; empty without one."""
    if RTA_GATEWAY in parts:
        return str(ip_address(parts[RTA_GATEWAY]))
    return str(ip_address(parts[RTA_VIA][2:])) if RTA_VIA in parts else ""


def _network(answer: bytes, parts: Mapping[int, bytes]) -> str:
    """The network that a route leads to; the default route has none in its attributes."""
    family, bits, *_ = ROUTE.unpack_from(answer)
    return str(ip_network((parts.get(RTA_DST, bytes(4 if family == socket.AF_INET else 16)), bits)))


def _place(route: Route) -> tuple[str, int, int]:
    """What the kernel tells routes apart by."""
    return route.to, route.table, route.metric


def _change(
    type_: int, routes: Sequence[Route], flags: Mapping[tuple[str, int, int], int], mark: int
) -> list[Outcome]:
    outcomes: dict[Route, Outcome] = {}
    messages: dict[Route, Message] = {}
    for route in routes:
        try:
            create = netlink.CREATE if type_ == RTM_NEWROUTE else 0
            messages[route] = _request(type_, create | flags.get(_place(route), 0), route, mark)
        except OSError:
            is_new = type_ == RTM_NEWROUTE
            outcomes[route] = KernelError(f"there is no interface {route.interface}") if is_new else None
    with netlink.route() as connection:
        for route, error in zip(messages, connection.change(list(messages.values())), strict=True):
            outcomes[route] = _outcome(type_, route, error)
    return [outcomes[route] for route in routes]


def _outcome(type_: int, route: Route, error: OSError | None) -> Outcome:
    if error is None or (type_ == RTM_DELROUTE and error.errno in (errno.ESRCH, errno.ENOENT, errno.ENODEV)):
        return None
    if error.errno == errno.EEXIST:
        table = "" if route.table == MAIN_TABLE else f" table {route.table}"
        family = "-6 " if ":" in route.to else ""
        hint = f"ip {family}route show{table} {route.to}"
        return ForeignError(f"the route to {route.to}{table and f' in{table}'} is not lbctl's", hint=hint)
    verb = "remove" if type_ == RTM_DELROUTE else "make"
    return KernelError(f"can't {verb} the route to {route.to}: {error.strerror}")


def _request(type_: int, flags: int, route: Route, mark: int) -> Message:
    """OSError if the interface is missing."""
    index = socket.if_nametoindex(route.interface) if route.interface else 0
    if _is_told(route):
        told = vip_routes.body(
            route.to, index, table=route.table, mark=mark, scope=RT_SCOPE_LINK, kind=RTN_UNICAST, metric=route.metric
        )
        return Message(type_, flags, told)
    kind = RTN_UNICAST if index or route.group else RTN_BLACKHOLE
    fields = {"table": route.table, "proto": mark, "scope": RT_SCOPE_UNIVERSE, "type": kind}
    attributes: list[codec.Attribute] = [("RTA_PRIORITY", route.metric)]
    if route.group:
        attributes.append(("RTA_NH_ID", route.group))
    if index:
        attributes += [("RTA_OIF", index), ("RTA_GATEWAY", route.via)]
    return codec.route(type_, route.to, fields, *attributes, flags=flags)


def _is_told(route: Route) -> bool:
    """Whether a route tells a daemon of a VIP: of these, there may be ten thousand."""
    return bool(route.interface and not route.via)
