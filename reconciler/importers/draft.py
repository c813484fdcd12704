# SPDX-License-Identifier: Apache-2.0
"""An importer's findings: services before they have names and pools, and notices; and the result, `Imported`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from reconciler.config.diagnostic import quote
from reconciler.errors import LbctlError

Address = IPv4Address | IPv6Address
Manifest = dict[str, Any]


class Line(int):
    """The number of a line, counted from 1; it also knows its file if the input is several files."""

    file: str

    @classmethod
    def of(cls, file: str, number: int) -> Line:
        line = cls(number)
        line.file = file
        return line


def bare(text: str) -> str:
    """A text of the input as sentences show it: like `quote`, without the quotes."""
    return quote(text)[1:-1]


def file_of(line: int) -> str:
    """The file of a line; empty for the imported file itself."""
    return line.file if isinstance(line, Line) else ""


def named(line: int) -> str:
    """A line as sentences name it."""
    return f"{file_of(line)}:{line}" if file_of(line) else f"line {line}"


class InputError(LbctlError):
    """Something in the input violates its format. `line` 0 stands for the input as a whole.

    `what` is the sentence without the line. The error ends an import only if nothing of the input makes sense:
    `Notices.leaving_out` turns the error of one item into a notice.
    """

    def __init__(self, line: int, message: str, *, hint: str = "") -> None:
        super().__init__(f"{named(line)}: {message}" if line else message, hint=hint)
        self.line = line
        self.what = message


WRONG_FILE = "is it the right file? if so, import it in parts"


class TooMuch(InputError):
    """The input asks for more time or memory than any real one needs. This always ends an import."""


@dataclass(frozen=True, slots=True, order=True)
class Notice:
    """A part of the source that the manifests don't express in the same way, and what was done instead.

    `file` is empty for the imported file itself, else an included file.
    """

    file: str
    line: int
    message: str


MAX_NOTICES = 500_000
"""Of one import: a fleet of 100,000 endpoints with a few notices for each has fewer, and they still fit into
memory."""


class Notices(list[Notice]):
    """Notices as they are collected. `error` is that of the first item that could not be understood."""

    error: InputError | None = None

    def add(self, line: int, message: str) -> None:
        if len(self) == MAX_NOTICES:
            raise TooMuch(line, f"up to here {MAX_NOTICES:,} things had no counterpart", hint=WRONG_FILE)
        self.append(Notice(file_of(line), int(line), message))

    def missing(self, line: int, what: str) -> None:
        """Note a setting that the manifests can't express; the rest still makes sense without it."""
        self.add(line, f"{what} has no counterpart: it is left out")

    @contextmanager
    def leaving_out(self, what: str) -> Iterator[None]:
        """An InputError within this drops the item, and becomes a notice that says so."""
        try:
            yield
        except TooMuch:
            raise
        except InputError as error:
            self.error = self.error or error
            hint = f" ({error.hint})" if error.hint else ""
            self.add(error.line, f"{error.what}: {what} is left out{hint}")


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

    `scheduler` is the source's word for the algorithm, if it has one; `unweighted`: the scheduler ignores weights.
    `check` is a health check in the words of the manifests; without a port it goes to the port of each endpoint.
    """

    line: int
    vips: tuple[Address, ...]
    protocol: str
    ports: tuple[range, ...]
    mode: str
    algorithm: str
    endpoints: tuple[Endpoint, ...] = ()
    name: str = ""
    scheduler: str = ""
    unweighted: bool = False
    affinity: str | None = None
    idle_timeout: str | None = None
    allowed_sources: tuple[str, ...] = ()
    check: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return place(self.vips[0], self.protocol, self.ports)


@dataclass(frozen=True, slots=True)
class Imported:
    """Manifests as plain data, keys in canonical order; and notices about all that they don't express, by line."""

    manifests: tuple[Manifest, ...]
    warnings: tuple[Notice, ...] = ()


def port_text(ports: range) -> str:
    """80, or 8000-8010."""
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


def place(vip: Address, protocol: str, ports: Sequence[range]) -> str:
    """VIP, port and protocol of a service as messages show them: 20.20.20.1:80/tcp."""
    host = f"[{vip}]" if vip.version == 6 and ports else str(vip)
    return f"{host}{f':{port_text(ports[0])}' if ports else ''}/{protocol}"
