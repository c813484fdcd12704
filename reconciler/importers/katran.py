# SPDX-License-Identifier: Apache-2.0
"""Katran as its example client sets it up, from the client's command lines or from the table that -l prints.

Katran keeps no file; people only have a script of such commands, or the table. Options and output:
example_grpc/goclient of Katran.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from reconciler.config.diagnostic import quote
from reconciler.importers import values
from reconciler.importers.assemble import assemble
from reconciler.importers.commands import command_lines, program_of, words_of
from reconciler.importers.draft import Address, Endpoint, Imported, InputError, Notices, Service, bare

_HINT = "give commands of Katran's example client, or what its -l prints"
_MAX_WEIGHT = 2**31 - 1

_WITH_VALUE = {
    "t", "u", "r", "w", "f", "vf", "rf", "new_hc", "somark", "change_mac", "quic_mapping", "server", "rpc_port",
}  # fmt: skip
_WITHOUT_VALUE = {
    "A", "E", "D", "a", "e", "d", "C", "l", "s", "sum", "lru", "icmp", "unset", "del_hc", "list_hc", "list_mac",
    "list_qm", "del_qm",
}  # fmt: skip
_CHANGING = ("A", "E", "D", "a", "e", "d", "C")
_LEFT_OUT = {
    "new_hc": "the path of a health check is left out: write `through: vip` in the healthCheck of the pool",
    "change_mac": "the gateway's MAC address is left out: the balancer looks next hops up itself",
    "quic_mapping": "routing by QUIC connection ids has no counterpart: it is left out",
}
_FLAGS = {
    "NO_LRU": "NO_LRU has no counterpart: connections are remembered while a pool changes",
    "QUIC_VIP": "QUIC_VIP has no counterpart: packets are balanced by addresses and ports",
    "DPORT_HASH": "DPORT_HASH has no counterpart: maglev is written",
}
_SOURCE_ONLY = "NO_SPORT"  # the hash leaves the client's port out, so a client stays with one server

_LISTED_VIP = re.compile(r"\s*VIP:\s+(\S+)\s+Port:\s+(\d+)\s+Protocol:\s+(tcp|udp)\s*")
_LISTED_FLAGS = re.compile(r"\s*Vip's flags:(.*)")
_LISTED_REAL = re.compile(r"\s*->\s*(\S+)\s+weight:?\s+(-?\d+)(?:\s+flags:(.*))?\s*")
_CHATTER = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d .*|exiting|\s*")

_Key = tuple[str, Address, int]


@dataclass
class _Vip:
    line: int
    flags: dict[str, int] = field(default_factory=dict)
    """Flag → line of its mention."""
    reals: dict[Address, Endpoint] = field(default_factory=dict)
    real_flags: dict[Address, str] = field(default_factory=dict)


def parse(text: str) -> Imported:
    """Services and pools of a Katran. Raises InputError where there is none."""
    notices = Notices()
    vips: dict[_Key, _Vip] = {}
    commands = 0
    for line, command in command_lines(_without_listing(text, vips, notices)):
        with notices.leaving_out("the command"):
            if words := words_of(line, command):
                program, rest = program_of(words)
                if program and not ("katran" in program and "client" in program):
                    raise InputError(line, f"this is no command of Katran's client: {quote(' '.join(words))}")
                options = _options(rest, line, notices)
                _run(vips, line, options, notices)
                commands += bool(options)
    if not vips and not commands:
        if notices.error:
            raise InputError(notices.error.line, notices.error.what, hint=notices.error.hint or _HINT)
        raise InputError(0, "there is no VIP in the input", hint=_HINT)
    return assemble(_services(vips, notices), notices)


def _services(vips: dict[_Key, _Vip], notices: Notices) -> Iterator[Service]:
    for key, vip in vips.items():
        yield _service(key, vip, notices)


def _without_listing(text: str, vips: dict[_Key, _Vip], notices: Notices) -> str:
    """Read the table that -l prints into `vips`. Returns the rest of the text, with its line numbers."""
    rest: list[str] = []
    current: _Vip | None = None
    for number, line in enumerate(values.lines_of(text), start=1):
        if match := _LISTED_VIP.fullmatch(line):
            address, port, protocol = match.groups()
            current = _Vip(number)
            with notices.leaving_out("the VIP"):
                vips[protocol, values.address(address, number), values.port(port, number)] = current
        elif current and (match := _LISTED_FLAGS.fullmatch(line)):
            current.flags |= dict.fromkeys(match[1].split(), number)
        elif current and (match := _LISTED_REAL.fullmatch(line)):
            with notices.leaving_out("the server"):
                found = values.address(match[1], number)
                _set_real(current, found, match[2], match[3] or "", number)
        elif not _CHATTER.fullmatch(line):
            rest.append(line)
            current = None
            continue
        rest.append("")
    return "\n".join(rest)


def _set_real(vip: _Vip, address: Address, weight: str, flags: str, line: int) -> None:
    vip.reals[address] = Endpoint(address, weight=values.number(weight, line, "a weight", 0, _MAX_WEIGHT), line=line)
    vip.real_flags[address] = " ".join(flags.split())


def _options(words: list[str], line: int, notices: Notices) -> dict[str, str]:
    """Options as Go's flag package reads them: one or two hyphens, values after a blank or `=`."""
    found: dict[str, str] = {}
    pending = list(reversed(words))
    while pending:
        word = pending.pop()
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            raise InputError(line, f"expected an option, got {quote(word)}")
        if name not in _WITH_VALUE | _WITHOUT_VALUE:
            notices.missing(line, f"option {bare(word)}")
            if pending and not equals and not pending[-1].startswith("-"):
                pending.pop()  # probably its value
            continue
        if name in _WITH_VALUE and not equals:
            if not pending:
                raise InputError(line, f"{bare(word)} needs a value")
            value = pending.pop()
        found[name] = value
    return found


def _run(vips: dict[_Key, _Vip], line: int, options: dict[str, str], notices: Notices) -> None:
    command = next((name for name in _CHANGING if name in options), "")
    if not command:
        for name in options.keys() & _LEFT_OUT.keys():
            notices.add(line, _LEFT_OUT[name])
        return
    if command == "C":
        vips.clear()
        return
    service = next((name for name in ("t", "u") if name in options), "")
    if not service:
        raise InputError(line, f"-{command} needs a VIP: -t ADDRESS:PORT or -u ADDRESS:PORT")
    key = ("tcp" if service == "t" else "udp", *values.host_port(options[service], line))
    if command == "A":
        vips.setdefault(key, _Vip(line))
    if (vip := vips.get(key)) is None:
        raise InputError(line, f"there is no VIP {bare(options[service])} before this line")
    flags = options.get("vf") or options.get("f", "")  # -vf since December 2020, when servers got flags, too
    if command in "AE" and flags:
        if "unset" in options:
            vip.flags.pop(flags, None)
        else:
            vip.flags[flags] = line
    elif command == "D":
        del vips[key]
    elif command in "aed":
        _change_real(vip, command, line, options)


def _change_real(vip: _Vip, command: str, line: int, options: dict[str, str]) -> None:
    if "r" not in options:
        raise InputError(line, f"-{command} needs a server: -r ADDRESS")
    address = values.address(options["r"], line)
    if command == "d":
        vip.reals.pop(address, None)
    else:
        _set_real(vip, address, options.get("w", "1"), options.get("rf", ""), line)


def _service(key: _Key, vip: _Vip, notices: Notices) -> Service:
    protocol, address, port = key
    algorithm = "source-hash" if _SOURCE_ONLY in vip.flags else "maglev"
    service = Service(
        line=vip.line,
        vips=(address,),
        protocol=protocol,
        ports=(range(port, port + 1),) if port else (),
        mode="dsr-l3",
        algorithm=algorithm,
        endpoints=tuple(vip.reals.values()),
    )
    for flag, line in vip.flags.items():
        if flag != _SOURCE_ONLY:
            shown = bare(flag)
            notices.add(line, f"{service}: {_FLAGS.get(flag, f'flag {shown} has no counterpart: it is left out')}")
    for address, flags in vip.real_flags.items():
        if flags and address in vip.reals:
            notices.missing(vip.reals[address].line, f"{service}: flag {bare(flags)} of server {address}")
    if len({real.weight for real in vip.reals.values() if real.weight}) > 1:
        message = "Katran's first hash function hardly tells small weights apart, here they count: shares may change"
        notices.add(vip.line, f"{service}: {message}")
    return service
