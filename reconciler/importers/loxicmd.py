# SPDX-License-Identifier: Apache-2.0
"""Command lines of loxicmd, turned into the rules and endpoint objects that they make.

Options and their meaning: `loxicmd create lb --help`, `loxicmd create endpoint --help`. In a script other commands may
precede loxicmd on its line (`docker exec llb1 loxicmd …`); lines without loxicmd are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reconciler.importers import values
from reconciler.importers.commands import command_lines, words_of
from reconciler.importers.draft import InputError, Notices, bare
from reconciler.importers.json_text import Object

PROGRAM = "loxicmd"
MODES = ("default", "onearm", "fullnat", "dsr", "fullproxy", "hostonearm")
SELECTIONS = ("rr", "hash", "priority", "persist", "lc", "n2", "n3")

_SECURITY = ("none", "https", "e2ehttps")
_PROTOCOLS = ("tcp", "udp", "sctp")
_SWITCHES = {"icmp", "bgp", "monitor", "egress", "ppv2en", "snat"}
_RULE_FIELDS = {"bgp": "bgp", "monitor": "monitor", "egress": "egress", "ppv2en": "proxyprotocolv2", "snat": "snat"}
_ENDPOINT_TEXTS = {"name": "name", "probetype": "probetype", "probereq": "probereq", "proberesp": "proberesp"}
_ENDPOINT_NUMBERS = {"probeport": "probeport", "period": "probeduration", "retries": "inactiveretries"}
_LB, _ENDPOINT = ("lb", "loadbalancer"), ("endpoint", "ep")
_OF_ALL = ("apiserver", "s", "port", "p", "timeout", "t", "output", "o", "protocol")  # how loxicmd reaches LoxiLB

_Options = dict[str, str]


def rules_and_endpoints(text: str, notices: Notices) -> tuple[list[Object], list[Object]]:
    """The rules and endpoint objects after all commands of a text."""
    rules: dict[tuple[str, str, int], Object] = {}
    endpoints: list[Object] = []
    for line, command in command_lines(text):
        with notices.leaving_out("the command"):
            words = words_of(line, command)
            start = next((i for i, word in enumerate(words) if word.rpartition("/")[2] == PROGRAM), None)
            if start is None:
                if words:
                    notices.add(line, "this is no command of loxicmd: it is left out")
                continue
            places, options = _options(words[start + 1 :])
            match places:
                case ["create", kind, vip] if kind in _LB:
                    for rule in _rules(line, vip, options, notices):
                        arguments = rule["servicearguments"]
                        rules[vip, arguments["protocol"], arguments["port"]] = rule
                case ["delete", kind, vip] if kind in _LB:
                    for protocol, ports, _ in _ports(line, options):
                        rules.pop((vip, protocol, ports.start), None)
                case ["create", kind, address] if kind in _ENDPOINT:
                    endpoints.append(_endpoint(line, address, options))
                case ["get" | "save", *_]:
                    pass
                case _:
                    what = " ".join(places[:2]) or PROGRAM
                    notices.missing(line, f"{bare(what)}")
    return list(rules.values()), endpoints


def _options(words: list[str]) -> tuple[list[str], _Options]:
    """The words that are no options, and the options, whose values come after `=` or a blank."""
    places: list[str] = []
    options: _Options = {}
    pending = list(reversed(words))
    while pending:
        word = pending.pop()
        if not word.startswith("-"):
            places.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and name not in _SWITCHES and pending and not pending[-1].startswith("-"):
            value = pending.pop()
        options[name] = f"{options[name]},{value}" if name in options and value else value
    return places, options


def _rules(line: int, vip: str, options: _Options, notices: Notices) -> Iterator[Object]:
    """A rule for each protocol and port of a command."""
    arguments: dict[str, Any] = {"externalip": vip}
    for name, value in options.items():
        if name in _RULE_FIELDS:
            arguments[_RULE_FIELDS[name]] = value.lower() != "false"
        elif name == "inatimeout":
            arguments["inactivetimeout"] = values.number(value, line, "seconds", 0, 2**31)
        elif name == "name":
            arguments["name"] = value
        elif name in ("mode", "select", "security"):
            known = {"mode": MODES, "select": SELECTIONS, "security": _SECURITY}[name]
            if value not in known and name == "select":
                notices.add(line, f"--select={bare(value)} has no counterpart: round-robin is written")
                continue
            if value not in known:
                raise InputError(line, f"--{name}={bare(value)} has no counterpart")
            arguments["sel" if name == "select" else name] = known.index(value)
        elif name not in (*_PROTOCOLS, *_OF_ALL, "icmp", "endpoints", "secips", "sources"):
            notices.missing(line, f"--{bare(name)} of a rule")
    found = list(_ports(line, options))
    if not found:
        raise InputError(line, "expected --tcp, --udp, --sctp or --icmp")
    for protocol, ports, target in found:
        rule = _object(line, {
            "servicearguments": _object(line, {
                **arguments, "protocol": protocol, "port": ports.start,
                "portmax": ports[-1] if len(ports) > 1 else 0,
            }),
            "endpoints": [_member(line, item, target) for item in _items(options, "endpoints")],
            "secondaryips": [_object(line, {"secondaryip": item}) for item in _items(options, "secips")],
            "allowedsources": [_object(line, {"prefix": item}) for item in _items(options, "sources")],
        })  # fmt: skip
        yield rule


def _ports(line: int, options: _Options) -> Iterator[tuple[str, range, int]]:
    """Protocol, ports of the VIP and port of the endpoints: 80:8080, 8000-8010:8000, or 80 alone for both."""
    for protocol in _PROTOCOLS:
        for item in _items(options, protocol):
            port_text, colon, target = item.partition(":")
            first, hyphen, last = port_text.partition("-")
            low = values.number(first, line, "a port", 0, values.MAX_PORT)
            high = values.number(last, line, "a port", low, values.MAX_PORT) if hyphen else low
            to = values.number(target, line, "a port", 0, values.MAX_PORT) if colon else low
            yield protocol, range(low, high + 1), to
    if "icmp" in options:
        yield "icmp", range(1), 0


def _member(line: int, item: str, target: int) -> Object:
    address, colon, weight = item.rpartition(":")
    if not colon:
        address, weight = item, "1"
    return _object(line, {
        "endpointip": address, "targetport": target, "weight": values.number(weight, line, "a weight", 0, 255),
    })  # fmt: skip


def _endpoint(line: int, address: str, options: _Options) -> Object:
    fields: dict[str, Any] = {"hostname": address}
    for name, key in _ENDPOINT_TEXTS.items():
        fields[key] = options.get(name, "")
    for name, key in _ENDPOINT_NUMBERS.items():
        fields[key] = values.number(options.get(name, "0"), line, "a number", 0, 86_400)
    return _object(line, fields)


def _items(options: _Options, name: str) -> list[str]:
    return [item.strip() for item in options.get(name, "").split(",") if item.strip()]


def _object(line: int, fields: dict[str, Any]) -> Object:
    """An object whose keys are all on one line."""
    found = Object(line)
    for key, value in fields.items():
        found[key], found.lines[key], found.names[key] = value, line, key
    return found
