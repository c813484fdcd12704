# SPDX-License-Identifier: Apache-2.0
"""NAT's connections as they lie in the maps `connections` and `connections6`, whole tables at once. bpf/maps.h
describes them.

A connection is two words: `who` is its client and how it stands, `where` its endpoint and its service. Four of them
share a bucket, which is one line of a processor's cache; each may lie in either of two buckets, which a hash of its
client with a secret tells. A table of IPv6 is wide: behind these words are the addresses of the clients, and `who` has
32 bits of a hash of its client's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import ConnectionState
from reconciler.dataplane.slots import Words

PLACES = 4
"""Connections that a bucket has room for."""
BUCKET_WORDS = 2 * PLACES
WIDE_WORDS = 4 * PLACES
"""Of a bucket of IPv6."""

BUSY = 1 << 11
"""The `who` of a place that is being written at this instant: it is no client's, and not free."""

UNIT_SHIFT = 33
"""Times count units of 2^33 ns, 8.6 seconds."""
UNITS = 1 << 11
"""So many units until times come round: 4.9 hours. An idle timeout of 4 hours leaves one to see that it is over."""

PROTOCOLS = {1: 6, 2: 17, 3: 132}
"""IANA's numbers of the protocols, by those in the table."""
IDLE_S = {6: 7_440, 17: 120, 132: 600}
"""By IANA's number: how long an open connection may be silent, unless its service says otherwise. RFC 5382, REQ-5; RFC
4787, REQ-5; SCTP: twenty heartbeats of RFC 9260, section 16."""

_ALL = (1 << 64) - 1
_CODES = {number: code for code, number in PROTOCOLS.items()}
_UDP = 2
_CLIENT, _PORT, _PROTOCOL, _STATE = np.uint64(32), np.uint64(16), np.uint64(14), np.uint64(11)
_ENDPOINT, _SERVICE, _SERVICE_MASK = np.uint64(47), np.uint64(29), np.uint64((1 << 18) - 1)
_ACKNOWLEDGED, _ACKNOWLEDGED_MASK = np.uint64(14), np.uint64(0x3FFF)
_SEEN_MASK = np.uint64(UNITS - 1)
_HALF, _HALF_MASK = np.uint64(32), np.uint64(0xFFFF_FFFF)

MAPPED = np.uint64(0xFFFF << 32)
"""The lower half of an IPv4 address as one of IPv6, without the address."""

Indexes = NDArray[np.intp]
Flags = NDArray[np.bool_]
Key = tuple[int, ...]
"""What tells a connection from all others: its client, with port and protocol, its service, and of IPv6 the two words
of the client's address."""
Pair = tuple[int, ...]
"""The words of a connection: `who`, `where`, and of IPv6 the two of the client's address."""


def unit_of(now_ns: int) -> int:
    """A moment of the data plane's clock in units of the table."""
    return now_ns >> UNIT_SHIFT & UNITS - 1


def idle_units(idle_s: float) -> int:
    """How many units a connection may be silent for, so that it isn't over before `idle_s`."""
    return max(1, -(-int(idle_s * 1_000_000_000) >> UNIT_SHIFT))


_LIMITS = np.full((4, 8), 28, np.uint16)
"""For how many units a connection in each state may be silent, a line for each protocol as the table numbers them:
four minutes (RFC 5382, REQ-5), but for these. bpf/connection.h has the same."""
_LIMITS[:, ConnectionState.OVER] = 3
_LIMITS[_UDP] = 4
for _code, _number in PROTOCOLS.items():
    _LIMITS[_code, ConnectionState.OPEN] = idle_units(IDLE_S[_number])


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Connections of one family: the two words of each, and of IPv6 also those of the client's address as it lies in
    packets; else None."""

    who: Words
    where: Words
    addresses: Words | None = None

    @property
    def size(self) -> int:
        return int(self.who.size)

    @property
    def clients(self) -> Words:
        """Addresses as numbers, upper and lower half; those of IPv4 as ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2)."""
        if self.addresses is not None:
            return self.addresses.view(">u8").astype(np.uint64)
        return np.stack([np.zeros_like(self.who), self.who >> _CLIENT | MAPPED], axis=1)

    @property
    def ports(self) -> NDArray[np.uint16]:
        return (self.who >> _PORT).astype(np.uint16)

    @property
    def protocols(self) -> NDArray[np.uint8]:
        """As the table numbers them: PROTOCOLS."""
        return (self.who >> _PROTOCOL).astype(np.uint8) & np.uint8(3)

    @property
    def states(self) -> NDArray[np.uint8]:
        """Numbers of ConnectionState."""
        return (self.who >> _STATE).astype(np.uint8) & np.uint8(7)

    @property
    def endpoints(self) -> NDArray[np.uint32]:
        return (self.where >> _ENDPOINT).astype(np.uint32)

    @property
    def services(self) -> NDArray[np.uint32]:
        """Numbers of fronts, which are those of the services' counters."""
        return (self.where >> _SERVICE & _SERVICE_MASK).astype(np.uint32)

    @property
    def acknowledged(self) -> NDArray[np.uint32]:
        """The last acknowledgement numbers of clients, of which the lower bits are zeros."""
        return (self.where >> _ACKNOWLEDGED & _ACKNOWLEDGED_MASK).astype(np.uint32) << np.uint32(18)

    def ages(self, now: int) -> NDArray[np.uint16]:
        """For how many units each was silent, at `now`. One that was seen by a faster clock is as old as one seen just
        now."""
        ages = ((np.uint64(now) - self.who) & _SEEN_MASK).astype(np.uint16)
        ages[ages == UNITS - 1] = 0
        return ages

    def part(self, chosen: NDArray[Any]) -> Entries:
        addresses = None if self.addresses is None else self.addresses[chosen]
        return Entries(self.who[chosen], self.where[chosen], addresses)

    def is_live(self, now: int, idle: NDArray[np.uint16]) -> Flags:
        """Which there are for the program: silent for no longer than their state allows for. `idle` are the units that
        an open connection may be silent for, by service; 0: the protocol's default."""
        states = self.states
        most = _LIMITS[self.protocols, states]
        own = np.zeros(self.size, np.uint16)
        known = self.services < idle.size
        own[known] = idle[self.services[known]]
        is_own = (states == ConnectionState.OPEN) & (own > 0)
        most[is_own] = own[is_own]
        is_live: Flags = self.ages(now) <= most
        return is_live

    def by_key(self) -> dict[Key, Pair]:
        address = [] if self.addresses is None else self.addresses.T.tolist()
        keys = zip((self.who >> _PROTOCOL).tolist(), self.services.tolist(), *address, strict=True)
        return dict(zip(keys, zip(self.who.tolist(), self.where.tolist(), *address, strict=True), strict=True))


def entry(
    client: IPv4Address | IPv6Address, port: int, protocol: int, state: int, seen: int, *, endpoint: int, service: int,
    acknowledged: tuple[int, int] = (0, 0),
) -> Pair:  # fmt: skip
    """A connection. `protocol` is IANA's number; `acknowledged` are the last acknowledgements of client and endpoint,
    of which the table keeps the upper bits."""
    number = folded(client) if isinstance(client, IPv6Address) else int(client)
    who = number << 32 | port << 16 | _CODES[protocol] << 14 | state << 11 | seen
    where = endpoint << 47 | service << 29 | acknowledged[0] >> 18 << 14 | acknowledged[1] >> 18
    address = np.frombuffer(client.packed, np.uint64).tolist() if isinstance(client, IPv6Address) else ()
    return who, where, *address


def folded(client: IPv6Address) -> int:
    """What `who` has of an IPv6 address: fold_address of bpf/address.h."""
    high, low = int(client) >> 64, int(client) & _ALL
    high = (high ^ high >> 29) * 0xFF51AFD7ED558CCD & _ALL
    low = (low ^ low >> 29) * 0xC4CEB9FE1A85EC53 & _ALL
    return (high ^ low) >> 32


def of_pairs(pairs: list[Pair]) -> Entries:
    """Connections of one family, one by one."""
    words = np.array(pairs, np.uint64).reshape(len(pairs), -1 if pairs else 2)
    return Entries(words[:, 0].copy(), words[:, 1].copy(), words[:, 2:].copy() if words.shape[1] > 2 else None)


def table_of(words: Words, width: int = BUCKET_WORDS) -> Words:
    """The content of a map, a line for each bucket of so many words."""
    return words.reshape(-1, width)


def entries(table: Words) -> Entries:
    """All connections of a table, but those that are being written at this instant."""
    held = table.copy()  # a word that changes meanwhile would be two
    who, where = held[:, :PLACES], held[:, PLACES:BUCKET_WORDS]
    taken = who >> _PROTOCOL != 0
    return Entries(who[taken], where[taken], _addresses(held)[taken] if _is_wide(held) else None)


def together(parts: Sequence[Entries]) -> Entries:
    """The connections of several tables of one family."""
    if len(parts) == 1:
        return parts[0]
    who, where = (np.concatenate(words) for words in ([each.who for each in parts], [each.where for each in parts]))
    wide = [each.addresses for each in parts if each.addresses is not None]
    return Entries(who, where, np.concatenate(wide) if wide else None)


def places(table: Words) -> Entries:
    """All places of a table, whatever is in them."""
    held = table.copy()
    who, where = held[:, :PLACES].reshape(-1), held[:, PLACES:BUCKET_WORDS].reshape(-1)
    return Entries(who, where, _addresses(held).reshape(-1, 2) if _is_wide(held) else None)


def _is_wide(table: Words) -> bool:
    return int(table.shape[1]) == WIDE_WORDS


def _addresses(buckets: Words) -> Words:
    """The addresses in buckets of IPv6, by bucket and place."""
    return buckets[:, BUCKET_WORDS:].reshape(-1, PLACES, 2)


def used(table: Words) -> int:
    """How many places of a table are taken, by whatever."""
    return int(np.count_nonzero(table[:, :PLACES]))


def homes(of: Entries, seed: Words, count: int) -> tuple[Indexes, Indexes]:
    """The two buckets, of `count`, in which connections may lie."""
    key = of.who >> _PROTOCOL << _PROTOCOL
    if of.addresses is None:
        hash_ = mixed(mixed(key ^ seed[0]) + seed[1])
    else:
        words = of.addresses.view(np.uint32).astype(np.uint64)
        hash_ = mixed((key & _HALF_MASK) ^ seed[0])
        hash_ = mixed(hash_ + (words[:, 0] << _HALF | words[:, 1])) ^ seed[1]
        hash_ = mixed(hash_ + (words[:, 2] << _HALF | words[:, 3]))
    first = (hash_ >> _HALF) * np.uint64(count) >> _HALF
    second = (hash_ & _HALF_MASK) * np.uint64(count) >> _HALF
    return first.astype(np.intp), second.astype(np.intp)


def mixed(words: Words) -> Words:
    """mix64 of bpf/remember.h."""
    words = words ^ words >> np.uint64(33)
    words = words * np.uint64(0xFF51AFD7ED558CCD)
    words = words ^ words >> np.uint64(33)
    words = words * np.uint64(0xC4CEB9FE1A85EC53)
    return words ^ words >> np.uint64(33)


def find(table: Words, of: Entries, seed: Words) -> Indexes:
    """Where a table has connections of the same clients to the same services: the numbers of the words with `who`; -1:
    nowhere."""
    found = np.full(of.size, -1, np.intp)
    for home in homes(of, seed, len(table)):
        bucket = table[home]
        same = bucket[:, :PLACES] >> _PROTOCOL == (of.who >> _PROTOCOL)[:, None]
        same &= (bucket[:, PLACES:BUCKET_WORDS] >> _SERVICE & _SERVICE_MASK) == of.services[:, None]
        if of.addresses is not None:
            same &= (_addresses(bucket) == of.addresses[:, None]).all(axis=2)
        here = same.any(axis=1)
        found[here] = home[here] * table.shape[1] + same[here].argmax(axis=1)
    return found


def placed(of: Entries, seed: Words, count: int) -> tuple[Words, int]:
    """A table of `count` buckets with these connections, and how many found no room: those that matter least."""
    table = np.zeros((count, BUCKET_WORDS if of.addresses is None else WIDE_WORDS), np.uint64)
    taken = np.zeros(count, np.intp)
    order = _ORDER[of.states]
    return table, sum(_place(of.part(order == one), seed, table, taken) for one in np.unique(order))


def _place(left: Entries, seed: Words, table: Words, taken: Indexes) -> int:
    """Put connections into a table, of whose buckets so many places are taken; returns how many found no room."""
    first, second = homes(left, seed, len(table))
    wanted = first
    place = taken[wanted] + _ranks(wanted)
    fits = place < PLACES // 2
    while fits.any():
        buckets = wanted[fits]
        table[buckets, place[fits]], table[buckets, PLACES + place[fits]] = left.who[fits], left.where[fits]
        if left.addresses is not None:
            _addresses(table)[buckets, place[fits]] = left.addresses[fits]
        np.add.at(taken, buckets, 1)
        left, first, second = left.part(~fits), first[~fits], second[~fits]
        # From now on one at a time in each bucket, and in the emptier one of the two.
        wanted = np.where(taken[second] < taken[first], second, first)
        place = taken[wanted]
        fits = (_ranks(wanted) == 0) & (place < PLACES)
    return left.size


_ORDER = np.full(8, 4, np.uint8)
"""By state: who gets a place first."""
_ORDER[[ConnectionState.OPEN, ConnectionState.CLIENT_CLOSED, ConnectionState.ENDPOINT_CLOSED]] = 0, 1, 1
_ORDER[[ConnectionState.OPENING, ConnectionState.OVER]] = 2, 3


def worth(who: int) -> int:
    """How much a connection matters, by its state."""
    return int(4 - _ORDER[who >> 11 & 7])


def _ranks(buckets: Indexes) -> Indexes:
    """For each of some buckets, how often it came before."""
    if not buckets.size:
        return buckets
    order = np.argsort(buckets, kind="stable")
    ordered = buckets[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ranks = np.empty(buckets.size, np.intp)
    ranks[order] = np.arange(buckets.size) - np.repeat(starts, np.diff(np.r_[starts, buckets.size]))
    return ranks
