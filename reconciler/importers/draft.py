# SPDX-License-Identifier: Apache-2.0
"""What an importer found, before it has names and pools; and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from reconciler.errors import LbctlError

Address = IPv4Address | IPv6Address
Manifest = dict[str, Any]


class InputError(LbctlError):
    """The input is not of its format. `line` counts from 1; 0 stands for the input as a whole."""

    def __init__(self, line: int, message: str, *, hint: str = "") -> None:
        super().__init__(f"line {line}: {message}" if line else message, hint=hint)
        self.line = line


@dataclass(frozen=True, slots=True, order=True)
class Notice:
    """Something that the manifests do not say as the source did, and what was done instead."""

    line: int
    message: str


class Notices(list[Notice]):
    """Notices as they are collected."""

    def add(self, line: int, message: str) -> None:
        self.append(Notice(line, message))

    def missing(self, line: int, what: str) -> None:
        """Something that the language has no word for, without which the rest still makes sense."""
        self.add(line, f"{what} has no counterpart: it is left out")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`port` None means: the port that the client asked for."""

    address: Address
    port: int | None = None
    weight: int = 1
    state: str = "active"
    line: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """`name` is the source's own name, or empty. `ports` are ranges with both ends in them, none for icmp.

    `unweighted` is the source's word for an algorithm that ignores weights, or empty. `check` is a health
    check in the words of the manifests; without a port it is for the port of each endpoint.
    """

    line: int
    vips: tuple[Address, ...]
    protocol: str
    ports: tuple[range, ...]
    mode: str
    algorithm: str
    endpoints: tuple[Endpoint, ...] = ()
    name: str = ""
    unweighted: str = ""
    affinity: str | None = None
    idle_timeout: str | None = None
    allowed_sources: tuple[str, ...] = ()
    check: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return place(self.vips[0], self.protocol, self.ports)


@dataclass(frozen=True, slots=True)
class Imported:
    """Manifests as plain data, keys in canonical order, and what they don't say; notices by line."""

    manifests: tuple[Manifest, ...]
    warnings: tuple[Notice, ...] = ()


def port_text(ports: range) -> str:
    """80, or 8000-8010."""
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


def place(vip: Address, protocol: str, ports: Sequence[range]) -> str:
    """Where a service is, as messages show it: 20.20.20.1:80/tcp."""
    host = f"[{vip}]" if vip.version == 6 and ports else str(vip)
    return f"{host}{f':{port_text(ports[0])}' if ports else ''}/{protocol}"
