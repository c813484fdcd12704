# SPDX-License-Identifier: Apache-2.0
"""Listings of `ipvsadm -L -n` and /proc/net/ip_vs, translated into the ipvsadm commands that would make them.

A listing must show the way of forwarding and the weight of each server: those of counters and rates don't. Columns:
ipvsadm(8); /proc/net/ip_vs writes addresses and ports as hexadecimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from reconciler.importers.commands import command_lines
from reconciler.importers.draft import InputError, Notices, bare

_HEADER = re.compile(r"IP Virtual Server version .*|Prot +LocalAddress:Port.*|-> +RemoteAddress:Port.*")
_SERVICE = re.compile(r"(TCP|UDP|SCTP|FWM)\s+(\S+)((?:\s+\S+)*)")
_SERVER = re.compile(r"->\s+(\S+)((?:\s+\S+)*)")
_HEXADECIMAL = re.compile(
    r"([0-9A-Fa-f]{8})(?::([0-9A-Fa-f]{4}))?|\[((?:[0-9A-Fa-f]{4}:){7}[0-9A-Fa-f]{4})\]:([0-9A-Fa-f]{4})"
)
_SCHEDULER = re.compile("[a-z][a-z0-9_-]*")
_OPTIONS = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service", "FWM": "-f"}
_FORWARDING = {"Masq": "-m", "Route": "-g", "Tunnel": "-i", "FullNat": "-b", "FNAT": "-b"}
_WITH_VALUE = {"persistent": "-p", "mask": "-M", "pe": "--pe"}
_NO_SERVERS = "this listing shows counters, but neither schedulers nor the servers' ways of forwarding and weights"
_HINT = "give what `ipvsadm-save -n` or `ipvsadm -L -n` prints"


def as_commands(text: str, notices: Notices) -> Iterator[tuple[int, str | list[str]]]:
    """The commands of a text: a line of a listing as the words of a command, any other line as it is."""
    service: list[str] = []
    for line, whole in command_lines(text):
        shown = whole.strip()
        if _HEADER.fullmatch(shown):
            continue
        if match := _SERVICE.fullmatch(shown):
            service = []
            with notices.leaving_out("the service"):
                service = [_OPTIONS[match[1]], _plain(match[2], mark=match[1] == "FWM")]
                yield line, ["-A", *service, *_service_options(line, match[3].split())]
        elif match := _SERVER.fullmatch(shown):
            with notices.leaving_out(f"server {bare(match[1])}"):
                options = _server_options(line, match[2].split())
                if service:
                    yield line, ["-a", *service, "-r", _plain(match[1]), *options]
        else:
            yield line, whole


def _service_options(line: int, words: list[str]) -> list[str]:
    if not words or not _SCHEDULER.fullmatch(words[0]):
        raise InputError(line, _NO_SERVERS, hint=_HINT)
    options = ["-s", words[0]]
    pending = list(reversed(words[1:]))
    while pending:
        word = pending.pop()
        if word in _WITH_VALUE and pending:
            options += [_WITH_VALUE[word], pending.pop()]
        elif word == "ops":
            options.append("-o")
        elif word.startswith("(") and word.endswith(")"):
            options += ["-b", word[1:-1]]
        else:
            options.append(f"--{word}")  # `ipvsadm` then reports that it has no counterpart
    return options


def _server_options(line: int, words: list[str]) -> list[str]:
    if words[:1] == ["Local"]:
        raise InputError(line, "a balancer can't be an endpoint of its own service")
    if len(words) < 2 or words[0] not in _FORWARDING:
        raise InputError(line, _NO_SERVERS, hint=_HINT)
    return [_FORWARDING[words[0]], "-w", words[1]]


def _plain(place: str, *, mark: bool = False) -> str:
    """Address and port as commands write them, from decimal or hexadecimal ones."""
    match = _HEXADECIMAL.fullmatch(place)
    if match is None:
        return place
    v4, v4_port, v6, v6_port = match.groups()
    if mark:
        return str(int(v4, 16)) if v4 and not v4_port else place
    if v4:
        return f"{IPv4Address(int(v4, 16))}:{int(v4_port, 16)}" if v4_port else place
    return f"[{IPv6Address(v6)}]:{int(v6_port, 16)}"
