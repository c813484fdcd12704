# SPDX-License-Identifier: Apache-2.0
"""IPVS tables as `ipvsadm-save -n` prints them, and scripts of ipvsadm commands that lead to one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from reconciler.config.diagnostic import quote
from reconciler.importers import lvs, values
from reconciler.importers.assemble import assemble
from reconciler.importers.commands import command_lines, program_of
from reconciler.importers.draft import Address, Endpoint, Imported, InputError, Notices, Service, place

_HINT = "give what `ipvsadm-save -n` prints"
_MAX_TIME_S = 86_400 * 31
_MAX_WEIGHT = 65_535

_LONG = {
    "add-service": "A", "edit-service": "E", "delete-service": "D", "clear": "C", "add-server": "a",
    "edit-server": "e", "delete-server": "d", "tcp-service": "t", "udp-service": "u", "sctp-service": "sctp",
    "fwmark-service": "f", "scheduler": "s", "persistent": "p", "netmask": "M", "real-server": "r",
    "masquerading": "m", "ipip": "i", "gatewaying": "g", "weight": "w", "u-threshold": "x", "l-threshold": "y",
    "ops": "o", "pe": "pe", "sched-flags": "b", "ipv6": "6", "tun-type": "tun-type", "tun-port": "tun-port",
    "tun-nocsum": "tun-nocsum", "tun-csum": "tun-csum", "tun-remcsum": "tun-remcsum", "numeric": "n",
    "list": "L", "zero": "Z", "save": "S", "restore": "R",
}  # fmt: skip
_SHORT = {name for name in _LONG.values() if len(name) == 1} | {"l"}
_WITH_VALUE = {"t", "u", "sctp", "f", "s", "M", "r", "w", "x", "y", "pe", "b", "tun-type", "tun-port"}
_PROTOCOLS = {"t": "tcp", "u": "udp", "sctp": "sctp"}
_MODES = {"m": "nat", "i": "dsr-l3", "g": "dsr-l2"}
_SERVICE_LEFT_OUT = {"M": "persistence by network", "pe": "a persistence engine", "o": "one-packet scheduling"}
_COMMANDS = "AEDCaedLlZSR"

Options = dict[str, str]
_Key = tuple[str, Address, int]
_Server = tuple[Address, int]


@dataclass
class _Table:
    """The services as the commands so far have made them: their options, and those of their servers."""

    services: dict[_Key, tuple[int, Options]] = field(default_factory=dict)
    servers: dict[_Key, dict[_Server, tuple[int, Options]]] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    """Services that stand for a firewall mark instead of a VIP."""


def parse(text: str) -> Imported:
    """Services and pools of an IPVS table. Raises InputError."""
    notices = Notices()
    table = _Table()
    commands = 0
    for line, words in command_lines(text):
        program, rest = program_of(words)
        if program not in ("", "ipvsadm"):
            raise InputError(line, f"this is no command of ipvsadm: {quote(' '.join(words))}", hint=_HINT)
        _run(table, line, _options(rest, line), notices)
        commands += 1
    if not commands:
        raise InputError(0, "the input is empty", hint=_HINT)
    return assemble([_service(table, key, notices) for key in table.services], notices)


def _options(words: list[str], line: int) -> Options:
    """Options by their short name; those without a value have an empty one. Raises InputError."""
    found: Options = {}
    pending = list(reversed(words))
    while pending:
        word = pending.pop()
        if word.startswith("--"):
            long, equals, value = word[2:].partition("=")
            name = _LONG.get(long, "")
        elif word.startswith("-") and len(word) > 1:
            name, equals, value = word[1], "", word[2:]
            if value and name not in _WITH_VALUE and not (name == "p" and value.isdecimal()):
                pending.append(f"-{value}")  # several options in one word, like -At
                value = ""
            name = name if name in _SHORT else ""
        else:
            raise InputError(line, f"expected an option, got {quote(word)}", hint=_HINT)
        if not name or (equals and name not in _WITH_VALUE | {"p"}):
            raise InputError(line, f"unknown option {quote(word)}", hint=_HINT)
        if name in _WITH_VALUE and not value:
            if not pending:
                raise InputError(line, f"{word} needs a value")
            value = pending.pop()
        if name == "p" and not value and pending and pending[-1].isdecimal():
            value = pending.pop()
        found[name] = value
    return found


def _run(table: _Table, line: int, options: Options, notices: Notices) -> None:
    commands = [name for name in options if name in _COMMANDS]
    if len(commands) != 1:
        raise InputError(line, "expected one command like -A or -a", hint=_HINT)
    command = commands[0]
    if command in "LlZSR":
        return
    if command == "C":
        table.services.clear()
        table.servers.clear()
        return
    if "f" in options:
        if options["f"] not in table.marks:
            message = f"firewall mark {options['f']} has no counterpart, a service needs a VIP: it is left out"
            notices.add(line, message)
        table.marks.add(options["f"])
        return
    key = _key(line, options)
    if command in "AE":
        if (key in table.services) == (command == "A"):
            known = "a" if command == "A" else "no"
            raise InputError(line, f"there is {known} service {_shown(key)} before this line")
        table.services[key] = (line, options)
        return
    if key not in table.services:
        raise InputError(line, f"there is no service {_shown(key)} before this line")
    servers = table.servers.setdefault(key, {})
    if command == "D":
        del table.services[key], table.servers[key]
        return
    if "r" not in options:
        raise InputError(line, f"-{command} needs a server: -r ADDRESS:PORT")
    address, port = values.host_port(options["r"], line)
    server = (address, port or key[2])
    if command == "d":
        servers.pop(server, None)
    else:
        servers[server] = (line, options)


def _key(line: int, options: Options) -> _Key:
    for name, protocol in _PROTOCOLS.items():
        if name in options:
            return (protocol, *values.host_port(options[name], line))
    raise InputError(line, "expected a service: -t, -u, --sctp-service or -f", hint=_HINT)


def _shown(key: _Key) -> str:
    protocol, vip, port = key
    return place(vip, protocol, _ports(port))


def _ports(port: int) -> tuple[range, ...]:
    """None of port 0, which stands for every port."""
    return (range(port, port + 1),) if port else ()


def _service(table: _Table, key: _Key, notices: Notices) -> Service:
    line, options = table.services[key]
    protocol, vip, port = key
    servers = table.servers.get(key, {}).items()
    mode = next((_mode(options) for _, (_, options) in servers), "nat")
    scheduler = options.get("s") or lvs.DEFAULT_SCHEDULER
    algorithm = lvs.scheduling(scheduler, options["b"].split(",") if "b" in options else (), line, notices)
    for name, what in _SERVICE_LEFT_OUT.items():
        if name in options:
            notices.missing(line, f"{_shown(key)}: {what}")
    affinity = None
    if "p" in options:
        text = options["p"] or str(lvs.DEFAULT_PERSISTENCE_S)
        persistence = values.number(text, line, "seconds", 1, _MAX_TIME_S)
        affinity = values.timeout(persistence, "-p", (line, _shown(key)), notices)
    return Service(
        line=line,
        vips=(vip,),
        protocol=protocol,
        ports=_ports(port),
        mode=mode,
        algorithm=algorithm.algorithm,
        endpoints=lvs.standby(scheduler, _endpoints(table, key, mode, notices)),
        unweighted=algorithm.unweighted,
        affinity=affinity,
    )


def _mode(options: Options) -> str:
    return next((mode for name, mode in _MODES.items() if name in options), "dsr-l2")


def _endpoints(table: _Table, key: _Key, mode: str, notices: Notices) -> Iterator[Endpoint]:
    for (address, port), (line, options) in table.servers.get(key, {}).items():
        if _mode(options) != mode:
            message = f"{_shown(key)}: server {address} is left out: a service has one mode, here {mode}"
            notices.add(line, message)
            continue
        for name, what in (("x", "upper threshold"), ("y", "lower threshold")):
            if options.get(name, "0") != "0":
                notices.missing(line, f"{_shown(key)}: the {what} of server {address}")
        if (tunnel := options.get("tun-type", "ipip")) != "ipip":
            notices.add(line, f"{_shown(key)}: {tunnel} tunnels have no counterpart: IPIP is written")
        weight = values.number(options.get("w", "1"), line, "a weight", 0, _MAX_WEIGHT)
        # Without address translation the kernel keeps the port of the service, whatever is written.
        yield Endpoint(address, port if mode == "nat" and port else None, weight, line=line)
