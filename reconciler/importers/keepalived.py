# SPDX-License-Identifier: Apache-2.0
"""The virtual servers of keepalived.conf; keywords and defaults are those of keepalived.conf(5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from reconciler.config.diagnostic import quote
from reconciler.importers import keepalived_checks, keepalived_syntax, lvs, values
from reconciler.importers.assemble import assemble
from reconciler.importers.draft import Address, Endpoint, Imported, InputError, Notices, Service
from reconciler.importers.keepalived_syntax import Statement

MAX_GROUP = 1024  # VIPs of a range

_MODES = {"NAT": "nat", "DR": "dsr-l2", "TUN": "dsr-l3"}
_SCHEDULER = ("lb_algo", "lvs_sched")
_METHOD = ("lb_kind", "lvs_method")
_FLAGS = ("hashed", "flag-1", "flag-2", "flag-3", "sh-port", "sh-fallback", "mh-port", "mh-fallback")
_SERVER_KNOWN = {
    *_SCHEDULER, *_METHOD, *_FLAGS, *keepalived_checks.SETTINGS, "protocol", "persistence_timeout", "real_server",
    "ip_family", "snmp_name",
}  # fmt: skip
_REAL_KNOWN = {*_METHOD, *keepalived_checks.SETTINGS, *keepalived_checks.CHECKERS, "weight", "snmp_name"}
_MAX_WEIGHT = 65_535
_MAX_TIME_S = 2**32 - 1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where virtual servers are: VIPs with the port that they share."""

    vips: tuple[Address, ...]
    port: int
    name: str = ""


def parse(text: str) -> Imported:
    """Services, pools and health checks of keepalived.conf. Raises InputError."""
    notices = Notices()
    statements = _unconditional(keepalived_syntax.parse(text), notices)
    groups: dict[str, Statement] = {}
    servers: list[Statement] = []
    for statement in statements:
        if statement.keyword == "virtual_server":
            servers.append(statement)
        elif statement.keyword == "virtual_server_group":
            groups[statement.value] = statement
        elif statement.keyword.startswith("include"):
            notices.add(statement.line, f"{statement}: included files are not read: import them too")
        else:
            what = quote(str(statement))[1:-1]
            notices.add(statement.line, f"{what} describes no virtual server: it is left out")
    if not servers:
        raise InputError(0, "there is no virtual_server in the input", hint="give the whole of keepalived.conf")
    return assemble([s for server in servers for s in _services(server, groups, notices)], notices)


def _unconditional(statements: Sequence[Statement], notices: Notices) -> list[Statement]:
    for statement in statements:
        if statement.condition:
            message = f"{statement.condition} {statement.keyword} holds for some machines only: it is left out"
            notices.add(statement.line, message)
    return [statement for statement in statements if not statement.condition]


def _services(server: Statement, groups: dict[str, Statement], notices: Notices) -> Iterator[Service]:
    """The services that a virtual_server stands for: one, or one for each port of its group."""
    body = _unconditional(server.block or [], notices)
    title = quote(str(server))[1:-1]
    _note_unknown(body, _SERVER_KNOWN, title, notices)
    protocol = (_last(body, ("protocol",)) or "TCP").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InputError(server.line, f"expected protocol TCP, UDP or SCTP, got {quote(protocol)}")
    mode = _mode(body, "nat", title, notices)
    scheduler = _last(body, _SCHEDULER) or lvs.DEFAULT_SCHEDULER
    flags = [statement.keyword for statement in body if statement.keyword in _FLAGS]
    algorithm = lvs.scheduling(scheduler, flags, server.line, notices)
    affinity = None
    for statement in body:
        if statement.keyword == "persistence_timeout":
            text = statement.value or str(lvs.DEFAULT_PERSISTENCE_S)
            persistence = values.number(text, statement.line, "seconds", 1, _MAX_TIME_S)
            affinity = values.timeout(persistence, "persistence_timeout", (statement.line, title), notices)
    reals = [statement for statement in body if statement.keyword == "real_server"]
    found = [(real, endpoint) for real in reals if (endpoint := _endpoint(real, mode, title, notices))]
    check = keepalived_checks.check(body, [real for real, _ in found], title, notices)
    for place in _places(server, groups, notices):
        yield Service(
            line=server.line,
            vips=place.vips,
            protocol=protocol,
            ports=(range(place.port, place.port + 1),) if place.port else (),
            mode=mode,
            algorithm=algorithm.algorithm,
            endpoints=lvs.standby(scheduler, (endpoint for _, endpoint in found)),
            name=_last(body, ("snmp_name",)) or place.name,
            unweighted=algorithm.unweighted,
            affinity=affinity,
            check=check,
        )


def _places(server: Statement, groups: dict[str, Statement], notices: Notices) -> Iterator[_Place]:
    match server.words[1:]:
        case ["group", name]:
            if name not in groups:
                raise InputError(server.line, f"there is no virtual_server_group {quote(name)}")
            yield from _group(groups[name], name, notices)
        case ["fwmark", mark]:
            message = f"firewall mark {quote(mark)[1:-1]} has no counterpart, a service needs a VIP: it is left out"
            notices.add(server.line, message)
        case [address, *rest] if len(rest) <= 1:
            yield _Place((values.address(address, server.line),), values.port(rest[0] if rest else "0", server.line))
        case _:
            raise InputError(server.line, "expected virtual_server ADDRESS PORT, fwmark MARK or group NAME")


def _group(group: Statement, name: str, notices: Notices) -> Iterator[_Place]:
    """The VIPs of a group by port and family."""
    places: dict[tuple[int, int], dict[Address, None]] = {}
    for entry in _unconditional(group.block or [], notices):
        if entry.keyword == "fwmark":
            notices.missing(entry.line, f"virtual_server_group {name}: {entry}")
            continue
        port = values.port(entry.value or "0", entry.line)
        for vip in _range(entry.keyword, entry.line):
            places.setdefault((port, vip.version), {})[vip] = None
    for (port, version), vips in places.items():
        of_ports = f"-{port}" if len({port for port, _ in places}) > 1 else ""
        of_families = "-ipv6" if version == 6 and len({version for _, version in places}) > 1 else ""
        yield _Place(tuple(vips), port, f"{name}{of_ports}{of_families}")


def _range(text: str, line: int) -> list[Address]:
    """192.0.2.1, 192.0.2.1-10, 192.0.2.1-192.0.2.10, 192.0.2.0/29, or the same for IPv6 (there -a is hexadecimal)."""
    if "/" in text:
        network = ip_network(values.prefix(text, line))
        first, last = network.network_address, network.broadcast_address
    else:
        begin, hyphen, end = text.partition("-")
        first = last = values.address(begin, line)
        if hyphen:
            separator = ":" if first.version == 6 else "."
            whole = end if separator in end else f"{begin.rpartition(separator)[0]}{separator}{end}"
            last = values.address(whole, line)
    count = int(last) - int(first) + 1
    if first.version != last.version or count < 1:
        raise InputError(line, f"the range {quote(text)} ends before it begins")
    if count > MAX_GROUP:
        raise InputError(line, f"the range {quote(text)} has more than {MAX_GROUP} addresses")
    return [type(first)(int(first) + i) for i in range(count)]


def _mode(body: Sequence[Statement], default: str, title: str, notices: Notices) -> str:
    """The mode that is said in a block, else the one that it inherits."""
    for statement in body:
        if statement.keyword in _METHOD:
            if statement.value.upper() not in _MODES:
                got = quote(statement.value)
                raise InputError(statement.line, f"expected {statement.keyword} NAT, DR or TUN, got {got}")
            if "gue" in statement.words or "gre" in statement.words:
                message = f"{' '.join(statement.words[2:])} has no counterpart: IPIP is written"
                notices.add(statement.line, f"{title}: {message}")
            default = _MODES[statement.value.upper()]
    return default


def _endpoint(real: Statement, mode: str, title: str, notices: Notices) -> Endpoint | None:
    """The endpoint of a real server, if it can be one of a service in this mode."""
    if not 2 <= len(real.words) <= 3:
        raise InputError(real.line, "expected real_server ADDRESS PORT")
    body = _unconditional(real.block or [], notices)
    _note_unknown(body, _REAL_KNOWN, f"{title}: real_server {real.value}", notices)
    address = values.address(real.value, real.line)
    port = values.port(real.words[2], real.line) if len(real.words) > 2 else 0
    if _mode(body, mode, title, notices) != mode:
        message = f"real_server {address} is left out: a service has one mode, here {mode}"
        notices.add(real.line, f"{title}: {message}")
        return None
    weight = values.number(_last(body, ("weight",)) or "1", real.line, "a weight", 0, _MAX_WEIGHT)
    # Without address translation the kernel keeps the port of the service, whatever is written.
    return Endpoint(address, port or None if mode == "nat" else None, weight, line=real.line)


def _note_unknown(body: Sequence[Statement], known: set[str], title: str, notices: Notices) -> None:
    for statement in body:
        if statement.keyword not in known:
            notices.missing(statement.line, f"{title}: {quote(str(statement))[1:-1]}")


def _last(body: Sequence[Statement], keywords: Sequence[str]) -> str:
    """The value that a keyword or its synonym was given last, as keepalived takes it."""
    return next((s.value for s in reversed(body) if s.keyword in keywords), "")
