# SPDX-License-Identifier: Apache-2.0
"""What a balancer must know of an association of SCTP after each packet: an independent model with whole tags, which
tells who said something before it asks what it means for whom (bpf/association.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from scapy.packet import Raw

from reconciler.dataplane.layout import ConnectionState

DATA, INIT, INIT_ACK, SACK, HEARTBEAT, ABORT, SHUTDOWN, SHUTDOWN_ACK = 0, 1, 2, 3, 4, 6, 7, 8
COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = 10, 11, 14
KINDS = (
    DATA, INIT, INIT_ACK, SACK, HEARTBEAT, ABORT, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE,
)  # fmt: skip
REFLECTED = 1
"""The flag of an ABORT or SHUTDOWN-COMPLETE whose tag is its sender's own."""

BY_CLIENT, BY_ENDPOINT = "client", "endpoint"


class Said(NamedTuple):
    """A packet: who sent it, its first chunk, its tag, and the tag that an INIT or INIT-ACK asks for."""

    by: str
    kind: int
    tag: int
    asks_for: int = 0
    flags: int = 0

    @property
    def chunks(self) -> Raw:
        if self.kind in (INIT, INIT_ACK):
            body = struct.pack("!IIHHI", self.asks_for, 65_535, 10, 10, 1)
        elif self.kind == DATA:
            body = struct.pack("!IHHI", 1, 0, 0, 0) + b"hello"
        else:
            body = bytes(8)
        content = struct.pack("!BBH", self.kind, self.flags, 4 + len(body)) + body
        return Raw(content + bytes(-len(content) % 4))


def lower(tag: int | None) -> int:
    """What the table has of a tag: never 0 if it is known."""
    return 0 if tag is None else tag % 2**14 or 1


@dataclass
class Association:
    """`tags`: what packets to each side carry, None where nobody knows yet."""

    state: ConnectionState = ConnectionState.OPENING
    tags: dict[str, int | None] = field(default_factory=lambda: {BY_CLIENT: None, BY_ENDPOINT: None})

    @classmethod
    def first(cls, said: Said) -> Association:
        """Of the first packet that a client sent."""
        made = cls()
        if said.kind == INIT:
            made.tags[BY_CLIENT] = said.asks_for
        else:
            made.tags[BY_CLIENT if made._is_reflected(said) else BY_ENDPOINT] = said.tag
        if said.kind in (ABORT, SHUTDOWN_COMPLETE):
            made.state = ConnectionState.OVER
        return made

    def hear(self, said: Said) -> None:
        """A packet that follows, soon after the one before."""
        other = BY_CLIENT if said.by == BY_ENDPOINT else BY_ENDPOINT
        match said.kind:
            case 1:
                self._begin(said, other)
            case 2 if self.state == ConnectionState.OPENING:
                if said.by == BY_ENDPOINT or lower(self.tags[other]) == lower(said.tag):
                    self.tags = {other: said.tag, said.by: said.asks_for}
            case 2:
                pass
            case 10 | 11 if said.by == BY_ENDPOINT and self.state != ConnectionState.OVER:
                self._take_cookie(said)
            case _:
                self._follow(said, other)

    def _begin(self, said: Said, other: str) -> None:
        if self.state == ConnectionState.OPEN:
            return
        is_again = lower(self.tags[said.by]) == lower(said.asks_for)
        self.tags = {said.by: said.asks_for, other: self.tags[other] if is_again else None}
        self.state = ConnectionState.OPENING

    def _take_cookie(self, said: Said) -> None:
        """The endpoint's word: the handshake is done. Twice the same word is none."""
        if lower(self.tags[BY_CLIENT]) != lower(said.tag):
            self.tags = {BY_CLIENT: said.tag, BY_ENDPOINT: None}
            self.state = ConnectionState.OPEN
        elif self.state == ConnectionState.OPENING:
            self.state = ConnectionState.OPEN

    def _follow(self, said: Said, other: str) -> None:
        if self.state == ConnectionState.OVER and said.kind not in (ABORT, SHUTDOWN_COMPLETE):
            return
        bearer = said.by if self._is_reflected(said) else other
        known = self.tags[bearer]
        if known is None:
            if said.by == BY_CLIENT and self.state == ConnectionState.OPENING:
                return
            if bearer == other:
                self.tags[other] = said.tag
        elif lower(known) != lower(said.tag):
            return
        if said.kind in (ABORT, SHUTDOWN_COMPLETE):
            self.state = ConnectionState.OVER
        elif said.kind in (SHUTDOWN, SHUTDOWN_ACK):
            if self.state in (ConnectionState.OPENING, ConnectionState.OPEN):
                own = said.by == BY_CLIENT
                self.state = ConnectionState.CLIENT_CLOSED if own else ConnectionState.ENDPOINT_CLOSED
        elif self.state == ConnectionState.OPENING and None not in self.tags.values():
            self.state = ConnectionState.OPEN

    @staticmethod
    def _is_reflected(said: Said) -> bool:
        return said.kind in (ABORT, SHUTDOWN_COMPLETE) and bool(said.flags & REFLECTED)
