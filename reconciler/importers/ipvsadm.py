# SPDX-License-Identifier: Apache-2.0
"""IPVS tables as `ipvsadm-save -n` or `ipvsadm -L -n` print them, and scripts of ipvsadm commands that make one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from reconciler.config.diagnostic import quote
from reconciler.importers import ipvs_listing, lvs, values
from reconciler.importers.assemble import assemble
from reconciler.importers.commands import program_of, words_of
from reconciler.importers.draft import Address, Endpoint, Imported, InputError, Notices, Service, bare, place

_HINT = "give what `ipvsadm-save -n` or `ipvsadm -L -n` prints"
_MAX_TIME_S = 86_400 * 31

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
_MODES = {"m": "nat", "i": "dsr-l3", "g": "dsr-l2", "fullnat": "fullnat"}
_SERVICE_LEFT_OUT = {"M": "persistence by network", "pe": "a persistence engine", "o": "one-packet scheduling"}
_WHOLE_CLIENT = ("255.255.255.255", "128", "")  # persistence by the client's whole address, as with lbctl
_COMMANDS = "AEDCaedLlZSR"
_ELSEWHERE = {
    "--start-daemon": "the synchronization of connections between balancers",
    "--stop-daemon": "the synchronization of connections between balancers",
    "--add-laddr": "a local address of DPVS", "-P": "a local address of DPVS",
    "--del-laddr": "a local address of DPVS", "-Q": "a local address of DPVS",
}  # fmt: skip
"""Commands that are not about services → their subject, in the words of notices."""

_DEFAULT_TIMEOUTS_S = {"tcp": 900, "tcpfin": 120, "udp": 300}  # in the order of --set

Options = dict[str, str]
_Key = tuple[str, Address, int]
_Server = tuple[Address, int]


@dataclass
class _Table:
    """The services that the commands so far have made: their options, and the options of their servers."""

    services: dict[_Key, tuple[int, Options]] = field(default_factory=dict)
    servers: dict[_Key, dict[_Server, tuple[int, Options]]] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    """Services that stand for a firewall mark instead of a VIP."""
    idle_s: dict[str, int] = field(default_factory=dict)
    """Protocol → how long its connections are remembered, if a command says so."""


def parse(text: str) -> Imported:
    """Services and pools of an IPVS table. Raises InputError where there is none."""
    notices = Notices()
    table = _Table()
    for line, command in ipvs_listing.as_commands(text, notices):
        with notices.leaving_out("the command"):
            words = command if isinstance(command, list) else words_of(line, command)
            if words:
                _command(table, line, words, notices)
    if not table.services and not table.marks:
        raise notices.error or InputError(0, "there is no service in the input", hint=_HINT)
    return assemble(_services(table, notices), notices)


def _services(table: _Table, notices: Notices) -> Iterator[Service]:
    for key, (line, options) in table.services.items():
        with notices.leaving_out(f"the service {_shown(key)}"):
            yield _service(table, key, line, options, notices)


def _command(table: _Table, line: int, words: list[str], notices: Notices) -> None:
    program, rest = program_of(words)
    if program not in ("", "ipvsadm"):
        raise InputError(line, f"this is no command of ipvsadm: {quote(' '.join(words))}", hint=_HINT)
    if rest[:1] == ["--set"]:
        _set_timeouts(table, line, rest[1:], notices)
    elif rest and (what := _ELSEWHERE.get(rest[0])):
        notices.missing(line, f"{rest[0]}, {what},")
    else:
        _run(table, line, _options(rest, line, notices), notices)


def _set_timeouts(table: _Table, line: int, words: list[str], notices: Notices) -> None:
    """Take the timeouts of `--set tcp tcpfin udp`; 0 keeps the former one."""
    if len(words) != len(_DEFAULT_TIMEOUTS_S):
        raise InputError(line, "--set needs three timeouts: of TCP, of TCP after a FIN, of UDP")
    for (name, default), text in zip(_DEFAULT_TIMEOUTS_S.items(), words, strict=True):
        time_s = values.number(text, line, "seconds", 0, _MAX_TIME_S)
        if time_s in (0, default):
            continue
        if name == "tcpfin":
            notices.missing(line, f"--set: the timeout of TCP after a FIN, {time_s} seconds,")
        else:
            table.idle_s[name] = time_s


def _options(words: list[str], line: int, notices: Notices) -> Options:
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
            notices.missing(line, f"option {bare(word)}")
            if pending and not pending[-1].startswith("-"):
                pending.pop()  # probably its value
            continue
        of_server = found.keys() & {"a", "e"}
        if name == "b" and of_server and not value:
            name = "fullnat"  # DPVS: a way of forwarding; on services it is the flags of the scheduler everywhere
        if name == "R" and of_server:
            name = "r"  # as ipvsadm of Linux 2.2 spelled it
        if name in _WITH_VALUE and not value:
            if not pending:
                raise InputError(line, f"{bare(word)} needs a value")
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
            mark = bare(options["f"])
            message = f"firewall mark {mark} has no counterpart, a service needs a VIP: it is left out"
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
    """The ports of a service; none for port 0, which stands for every port."""
    return (range(port, port + 1),) if port else ()


def _service(table: _Table, key: _Key, line: int, options: Options, notices: Notices) -> Service:
    protocol, vip, port = key
    servers = table.servers.get(key, {}).items()
    mode = next((_mode(options) for _, (_, options) in servers), "nat")
    scheduler = options.get("s", "")
    scheduling = lvs.scheduling(scheduler, options["b"].split(",") if "b" in options else (), line, notices)
    for name, what in _SERVICE_LEFT_OUT.items():
        if name in options and not (name == "M" and options[name] in _WHOLE_CLIENT):
            notices.missing(line, f"{_shown(key)}: {what}")
    affinity = None
    if "p" in options:
        text = options["p"] or str(lvs.DEFAULT_PERSISTENCE_S)
        persistence = values.number(text, line, "seconds", 1, _MAX_TIME_S)
        affinity = values.timeout(persistence, "-p", (line, _shown(key)), notices)
    idle_s = table.idle_s.get(protocol, 0) if mode in ("nat", "fullnat") else 0
    return Service(
        line=line,
        vips=(vip,),
        protocol=protocol,
        ports=_ports(port),
        mode=mode,
        algorithm=scheduling.algorithm,
        endpoints=lvs.standby(scheduler, _endpoints(table, key, mode, notices)),
        scheduler=scheduling.name,
        unweighted=scheduling.unweighted,
        affinity=affinity,
        idle_timeout=values.idle_timeout(idle_s, "--set", (line, _shown(key)), notices) if idle_s else None,
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
            notices.add(line, f"{_shown(key)}: {bare(tunnel)} tunnels have no counterpart: IPIP is written")
        with notices.leaving_out(f"server {address} of {_shown(key)}"):
            weight = values.number(options.get("w", "1"), line, "a weight", 0, lvs.MAX_WEIGHT)
            # Without address translation the kernel keeps the port of the service, whatever port the server has.
            yield Endpoint(address, port if mode in ("nat", "fullnat") and port else None, weight, line=line)
