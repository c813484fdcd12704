# SPDX-License-Identifier: Apache-2.0
"""sbulb (AirVantage): its command line, and the file of real servers that it may refer to, in one text.

Options and the form of the file: sbulb/__main__.py and sbulb/__init__.py of sbulb.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from reconciler.config.diagnostic import quote
from reconciler.importers import manifests, values
from reconciler.importers.assemble import assemble, reason_not_unicast
from reconciler.importers.commands import command_lines, words_of
from reconciler.importers.draft import Address, Endpoint, Imported, InputError, Notices, Service

_HINT = "give the command line of sbulb, and below it the file of real servers if there is one"
_SECTION = "Real Servers"
_UNIT_KEY = "ExecStart="  # of a systemd unit; its other lines don't matter
_INTERPRETERS = re.compile(r"sudo|env|python[0-9.]*|-m|-u|sbulb|ulb\.py|run\.sh|[A-Z_]+=.*")
_OPTIONS = {
    "--virtual_server": "-vs", "--real_server": "-rs", "--config_file": "-cfg", "--port": "-p", "--debug": "-d",
    "--loglevel": "-l", "--max_ports": "-mp", "--max_realservers": "-mrs", "--max_associations": "-ma",
}  # fmt: skip
_CAPACITIES = {"-mp": ("services", 10**6), "-mrs": ("endpoints", 10**6), "-ma": ("flows", 10**9)}
_LONGEST = "4h"
_NOTE_IDLE = f"sbulb remembers clients until its table is full: idleTimeout {_LONGEST} is written"
_NOTE_SERVERS = "sbulb also translates what servers send without being asked, which has no counterpart"
_SERVICE_MISSING = "the file alone names neither VIP nor ports: give the command line too, or add a Service"


@dataclass
class _Command:
    line: int
    interface: str = ""
    options: dict[str, list[str]] = field(default_factory=dict)


def parse(text: str) -> Imported:
    """The service, pool and node of an sbulb; of its file alone the pool. Raises InputError."""
    notices = Notices()
    rest, servers = _split(text, notices)
    commands = [_command(line, words) for line, command in command_lines(rest) if (words := words_of(line, command))]
    if len(commands) > 1:
        raise InputError(commands[1].line, "expected one command line of sbulb", hint="import each by itself")
    if commands:
        return _instance(commands[0], servers, notices)
    if servers is None:
        raise InputError(0, f"there is neither a command line of sbulb nor [{_SECTION}]", hint=_HINT)
    if not servers and notices.error:
        raise notices.error
    pool = manifests.pool("real-servers", _usable(servers, notices))
    notices.add(0, _SERVICE_MISSING)
    return Imported((pool,), tuple(sorted(notices)))


def _split(text: str, notices: Notices) -> tuple[str, list[Endpoint] | None]:
    """The text without the sections of the file, with its line numbers; and the real servers, None if it has none."""
    rest: list[str] = []
    servers: list[Endpoint] | None = None
    section = ""
    for number, line in enumerate(values.lines_of(text), start=1):
        word = line.strip()
        if word.startswith("[") and word.endswith("]"):
            section = word[1:-1]
            if section == _SECTION:
                servers = servers or []
        elif section == _SECTION and servers is not None:
            if word and not word.startswith(("#", ";")):
                with notices.leaving_out("the server"):
                    servers.append(Endpoint(values.address(word.partition("=")[0].strip(), number), line=number))
        elif not section or word.startswith(_UNIT_KEY):
            rest.append(word.removeprefix(_UNIT_KEY))
            continue
        rest.append("")
    return "\n".join(rest), servers


def _command(line: int, words: list[str]) -> _Command:
    """A command line as argparse takes it: options with one or several values, and the interface anywhere."""
    command = _Command(line)
    while words and _INTERPRETERS.fullmatch(words[0].rpartition("/")[2]):
        del words[0]
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        name = _OPTIONS.get(name, name)
        if name in _OPTIONS.values():
            option = name
            command.options[option] = [value] if equals else []
        elif word.startswith("-"):
            raise InputError(line, f"unknown option {quote(word)}", hint=_HINT)
        elif option in ("-rs", "-p") or (option and not command.options[option]):
            command.options[option].append(word)
        elif command.interface:
            raise InputError(line, f"this is no command line of sbulb: {quote(word)}", hint=_HINT)
        else:
            command.interface = word
    return command


def _instance(command: _Command, servers: list[Endpoint] | None, notices: Notices) -> Imported:
    line, options = command.line, command.options
    if "-vs" not in options or "-p" not in options or not command.interface:
        raise InputError(line, "expected an interface, a virtual server (-vs) and ports (-p)", hint=_HINT)
    if "-rs" in options:
        servers = []
        for word in options["-rs"]:
            with notices.leaving_out("the server"):
                servers.append(Endpoint(values.address(word, line), line=line))
    elif servers is None:
        name = " ".join(options.get("-cfg", ["the file of -cfg"]))
        raise InputError(line, f"the real servers are in {quote(name)}", hint="put its content below the command line")
    for name in ("-d", "-l"):
        if name in options:
            notices.missing(line, f"{name} (logging)")
    capacity = {
        key: values.number(" ".join(options[name]), line, "a number", 1, highest)
        for name, (key, highest) in _CAPACITIES.items() if name in options
    }  # fmt: skip
    ports = _ports(options["-p"], line, notices)
    for key, count in (("services", len(ports)), ("endpoints", len(servers))):
        if count > capacity.get(key, count):
            raise InputError(line, f"there are more {key} ({count}) than the options allow ({capacity[key]})")
    service = Service(
        line=line,
        vips=(values.address(" ".join(options["-vs"]), line),),
        protocol="udp",
        ports=tuple(ports),
        mode="nat",
        algorithm="round-robin",
        endpoints=tuple(servers),
        idle_timeout=_LONGEST,
    )
    notices.add(line, _NOTE_IDLE)
    notices.add(line, _NOTE_SERVERS)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", command.interface):
        raise InputError(line, f"expected the name of an interface, got {quote(command.interface)}", hint=_HINT)
    node = manifests.node("balancer", [{"name": command.interface}], capacity=capacity or None)
    return assemble([service], notices, [node])


def _ports(words: list[str], line: int, notices: Notices) -> list[range]:
    ports: set[int] = set()
    for word in words:
        with notices.leaving_out("the port"):
            ports.add(values.number(word, line, "a port", 1, values.MAX_PORT))
    if not ports:
        raise notices.error or InputError(line, "-p needs a port", hint=_HINT)
    return [range(port, port + 1) for port in sorted(ports)]


def _usable(servers: list[Endpoint], notices: Notices) -> list[Endpoint]:
    kept: dict[Address, Endpoint] = {}
    for server in servers:
        if reason := reason_not_unicast(server.address):
            notices.add(server.line, f"endpoint {server.address} is left out: {reason}")
        else:
            kept.setdefault(server.address, server)
    return list(kept.values())
