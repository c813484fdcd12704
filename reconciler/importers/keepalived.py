# SPDX-License-Identifier: Apache-2.0
"""The virtual servers of keepalived.conf.

Keywords and defaults are those of keepalived.conf(5); where that is silent, those of `keepalived -t` (2.2.7), which
ignores settings that it doesn't understand. FNAT and its local addresses are those of DPVS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from reconciler.config.diagnostic import quote
from reconciler.importers import (
    keepalived_checks,
    keepalived_source,
    keepalived_syntax,
    keepalived_vrrp,
    lvs,
    values,
)
from reconciler.importers.assemble import assemble
from reconciler.importers.draft import Address, Endpoint, Imported, InputError, Notices, Service, TooMuch, bare
from reconciler.importers.keepalived_source import Include
from reconciler.importers.keepalived_syntax import Statement

MAX_GROUP = 1024  # VIPs of a range
MAX_PLACES = 200_000  # VIPs with their ports of all groups, each as often as it is used

_MODES = {"NAT": "nat", "DR": "dsr-l2", "TUN": "dsr-l3", "FNAT": "fullnat"}
_TRANSLATING = ("nat", "fullnat")
_PROTOCOLS = ("tcp", "udp", "sctp")
_SCHEDULER = ("lb_algo", "lvs_sched")
_METHOD = ("lb_kind", "lvs_method")
_FLAGS = ("hashed", "flag-1", "flag-2", "flag-3", "sh-port", "sh-fallback", "mh-port", "mh-fallback")
_SERVER_KNOWN = {
    *_SCHEDULER, *_METHOD, *_FLAGS, *keepalived_checks.SETTINGS, "protocol", "persistence_timeout", "real_server",
    "ip_family", "snmp_name",
}  # fmt: skip
_REAL_KNOWN = {*_METHOD, *keepalived_checks.SETTINGS, *keepalived_checks.CHECKERS, "weight", "snmp_name"}
_DEFAULTS = {
    "quorum": "1", "hysteresis": "0", "uthreshold": "0", "lthreshold": "0",
    "persistence_granularity": "255.255.255.255",
}  # fmt: skip
"""Settings without a counterpart → the value that changes nothing. For a switch this is off."""
_OFF = ("off", "false", "no")
_MAX_TIME_S = 2_678_400


@dataclass(frozen=True, slots=True)
class _Place:
    """VIPs of virtual servers, and the port that they share."""

    vips: tuple[Address, ...]
    port: int
    name: str = ""


def parse(text: str, include: Include | None = None) -> Imported:
    """Services, pools and health checks of keepalived.conf. Raises InputError.

    `include` reads the files that the text includes; without it they are reported as missing.
    """
    notices = Notices()
    lines = keepalived_source.lines(text, include, notices)
    statements = keepalived_syntax.parse(lines, notices)
    groups: dict[str, Statement] = {}
    servers: list[Statement] = []
    instances: list[Statement] = []
    for statement in statements:
        if statement.keyword == "virtual_server":
            servers.append(statement)
        elif statement.keyword == "virtual_server_group":
            groups[statement.value] = statement
        elif statement.keyword == keepalived_vrrp.INSTANCE:
            instances.append(statement)
        elif statement.keyword == "real_server":
            notices.add(statement.line, "a real_server outside of any virtual_server belongs to none: it is left out")
        else:
            what = bare(statement.keyword)
            notices.add(statement.line, f"{what} describes no virtual server: it is left out")
    if not servers:
        missing = InputError(0, "there is no virtual_server in the input", hint="give the whole of keepalived.conf")
        raise notices.error or missing
    services = list(_all_services(servers, groups, notices))
    keepalived_vrrp.note(instances, {vip for service in services for vip in service.vips}, notices)
    return assemble(services, notices)


def _all_services(servers: Sequence[Statement], groups: dict[str, Statement], notices: Notices) -> Iterator[Service]:
    """The services of all virtual servers; a virtual server that makes no sense is left out."""
    left = MAX_PLACES
    for server in servers:
        places: list[_Place] = []
        with notices.leaving_out("the virtual_server"):
            places = list(_places(server, groups, left, notices))
        left -= sum(len(place.vips) for place in places)
        if places:
            with notices.leaving_out("the virtual_server"):
                yield from _services(server, places, notices)


def _services(server: Statement, places: Sequence[_Place], notices: Notices) -> Iterator[Service]:
    """The services of a virtual_server: one, or one for each port of its group."""
    body = server.block or []
    title = bare(str(server))
    _note_unknown(body, _SERVER_KNOWN, title, notices)
    protocol = _protocol(server, body, title, notices)
    mode = _mode(body, "nat", title, notices)
    scheduler = _scheduler(body, title, notices)
    flags = [statement.keyword for statement in body if statement.keyword in _FLAGS]
    scheduling = lvs.scheduling(scheduler, flags, server.line, notices)
    affinity = _affinity(body, title, notices)
    found: list[tuple[Statement, Endpoint]] = []
    for real in body:
        if real.keyword == "real_server":
            with notices.leaving_out(f"a real_server of {title}"):
                if endpoint := _endpoint(real, mode, title, notices):
                    found.append((real, endpoint))
    endpoints = lvs.standby(scheduler, (endpoint for _, endpoint in found))
    vips = {vip for place in places for vip in place.vips}
    ports = {place.port for place in places}
    way = keepalived_checks.Way(vips, ports, mode)
    check = keepalived_checks.check(body, [real for real, _ in found], way, title, notices)
    for place in places:
        yield Service(
            line=server.line,
            vips=place.vips,
            protocol=protocol,
            ports=(range(place.port, place.port + 1),) if place.port else (),
            mode=mode,
            algorithm=scheduling.algorithm,
            endpoints=endpoints,
            name=_last(body, ("snmp_name",)) or place.name,
            scheduler=scheduling.name,
            unweighted=scheduling.unweighted,
            affinity=affinity,
            check=check,
        )


def _protocol(server: Statement, body: Sequence[Statement], title: str, notices: Notices) -> str:
    """The protocol. If none is written, keepalived takes UDP, although many authors meant TCP."""
    statement = next((s for s in reversed(body) if s.keyword == "protocol" and s.value.lower() in _PROTOCOLS), None)
    for other in body:
        if other.keyword == "protocol" and other.value.lower() not in _PROTOCOLS:
            notices.add(other.line, f"{title}: keepalived ignores protocol {bare(other.value)}")
    if statement is None:
        notices.add(server.line, f"{title}: without a protocol keepalived takes UDP: udp is written")
    return statement.value.lower() if statement else "udp"


def _scheduler(body: Sequence[Statement], title: str, notices: Notices) -> str:
    """The scheduler that is written; empty for one that keepalived doesn't know, as it takes its default then."""
    found = ""
    for statement in body:
        if statement.keyword in _SCHEDULER:
            if statement.value in lvs.SCHEDULERS:
                found = statement.value
            else:
                notices.add(statement.line, f"{title}: keepalived ignores scheduler {bare(statement.value)}")
    return found


def _affinity(body: Sequence[Statement], title: str, notices: Notices) -> str | None:
    found = None
    for statement in body:
        if statement.keyword == "persistence_timeout":
            text = statement.value or str(lvs.DEFAULT_PERSISTENCE_S)
            if text.isdecimal() and not int(text[:20]):
                continue  # 0: no persistence, both with DPVS and with keepalived
            with notices.leaving_out(f"the persistence of {title}"):
                persistence = values.number(text, statement.line, "seconds", 1, _MAX_TIME_S)
                found = values.timeout(persistence, "persistence_timeout", (statement.line, title), notices)
    return found


def _places(server: Statement, groups: dict[str, Statement], left: int, notices: Notices) -> Iterator[_Place]:
    match server.words[1:]:
        case ["group", name]:
            if name not in groups:
                raise InputError(server.line, f"there is no virtual_server_group {quote(name)}")
            yield from _group(groups[name], name, left, notices)
        case ["fwmark", mark]:
            message = f"firewall mark {bare(mark)} has no counterpart, a service needs a VIP: it is left out"
            notices.add(server.line, message)
        case [address, *rest] if len(rest) <= 1:
            yield _Place((_host(address, server.line),), values.port(rest[0] if rest else "0", server.line))
        case _:
            raise InputError(server.line, "expected virtual_server ADDRESS PORT, fwmark MARK or group NAME")


def _host(text: str, line: int) -> Address:
    """An address; keepalived ignores a prefix after it."""
    return values.address(text.partition("/")[0], line)


def _group(group: Statement, name: str, left: int, notices: Notices) -> Iterator[_Place]:
    """The VIPs of a group by port and family."""
    places: dict[tuple[int, int], dict[Address, None]] = {}
    for entry in group.block or []:
        if entry.keyword == "fwmark":
            notices.missing(entry.line, f"virtual_server_group {bare(name)}: {bare(str(entry))}")
            continue
        with notices.leaving_out(f"an address of virtual_server_group {bare(name)}"):
            port = values.port(entry.value or "0", entry.line)
            vips = _range(entry.keyword, entry.line)
            left -= len(vips)
            if left < 0:
                raise TooMuch(entry.line, f"the groups up to here have more than {MAX_PLACES:,} VIPs")
            places.setdefault((port, vips[0].version), {}).update(dict.fromkeys(vips))
    several_ports = len({port for port, _ in places}) > 1
    several_families = len({version for _, version in places}) > 1
    for (port, version), found in places.items():
        of_ports = f"-{port}" if several_ports else ""
        of_families = "-ipv6" if version == 6 and several_families else ""
        yield _Place(tuple(found), port, f"{name}{of_ports}{of_families}")


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
    """The mode that is written in a block, else the one that it inherits."""
    for statement in body:
        if statement.keyword in _METHOD:
            mode = _MODES.get(statement.value)
            if mode is None:
                method = f"{statement.keyword} {bare(statement.value)}"
                notices.add(statement.line, f"{title}: keepalived ignores {method}: {default} is written")
                continue
            if "gue" in statement.words or "gre" in statement.words:
                message = f"{bare(' '.join(statement.words[2:]))} has no counterpart: IPIP is written"
                notices.add(statement.line, f"{title}: {message}")
            default = mode
    return default


def _endpoint(real: Statement, mode: str, title: str, notices: Notices) -> Endpoint | None:
    """The endpoint of a real server, if it can be one of a service in this mode."""
    if not 2 <= len(real.words) <= 3:
        raise InputError(real.line, "expected real_server ADDRESS PORT")
    body = real.block or []
    where = f"{title}: real_server {bare(real.value)}"
    address = _host(real.value, real.line)
    port = values.port(real.words[2], real.line) if len(real.words) > 2 else 0
    _note_unknown(body, _REAL_KNOWN, where, notices)
    if _mode(body, mode, where, notices) != mode:
        notices.add(real.line, f"{where} is left out: a service has one mode, here {mode}")
        return None
    weight = 1
    for statement in body:
        if statement.keyword == "weight":
            with notices.leaving_out(f"the weight of {where}"):
                weight = values.number(statement.value, statement.line, "a weight", 0, lvs.MAX_WEIGHT)
    # Without address translation the kernel keeps the port of the service, whatever port the server has.
    return Endpoint(address, port or None if mode in _TRANSLATING else None, weight, line=real.line)


def _note_unknown(body: Sequence[Statement], known: set[str], title: str, notices: Notices) -> None:
    for statement in body:
        keyword, value = statement.keyword, statement.value.lower()
        if keyword in known or value in _OFF or (value and _DEFAULTS.get(keyword) == value):
            continue
        if keyword == "laddr_group_name":
            notices.add(statement.line, f"{title}: write its local addresses as snatAddresses of the Node")
        else:
            notices.missing(statement.line, f"{title}: {bare(str(statement))}")


def _last(body: Sequence[Statement], keywords: Sequence[str]) -> str:
    """The last value of a keyword or its synonyms: keepalived takes the last one, too."""
    return next((s.value for s in reversed(body) if s.keyword in keywords), "")
