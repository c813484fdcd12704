# SPDX-License-Identifier: Apache-2.0
"""Endpoint rows: the servers by number. Rings and connections hold the numbers.

An endpoint keeps its number for as long as anything may point to it. A row whose endpoint no manifest names
any more is retired, not cleared: its connections go on, and the endpoint gets its old number when it comes
back. Only when every number is taken do new endpoints get the numbers of retired rows without connections.

Where there is NAT, the program takes an address for an endpoint's only if the filter (`endpoint_filter`) lets it
pass. So a row that is wanted and does not pass counts as absent. The filter is written before new rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from reconciler import connections, loads, remembered, served
from reconciler.dataplane import endpoint_filter, slots
from reconciler.dataplane import endpoint_table as endpoint_tables
from reconciler.dataplane.endpoint_table import EndpointTable, Index, Words, words_of
from reconciler.dataplane.layout import (
    ENDPOINT_COUNTERS,
    ENDPOINT_FILTER,
    ENDPOINTS,
    ENDPOINTS6,
    EndpointRowState,
    word,
)
from reconciler.dataplane.rows import Address as AddressRow
from reconciler.dataplane.rows import Number
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted, each, in_parts
from reconciler.kinds.endpoint_row import EndpointRow, row_named, rows_of
from reconciler.model import Pool
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.ring_store import former_endpoints
from reconciler.view import Facts, Use

_FEW = 64
"""To look through all rows for so many endpoints costs less than to sort them."""
_LOOKED_AT_ONCE = 10_000
_IPV4_BYTES = 4
_STATES = frozenset(EndpointRowState)


@dataclass(frozen=True, slots=True)
class NumberedRow:
    """A row as the kernel holds it."""

    number: int
    row: EndpointRow
    is_retired: bool

    @property
    def state(self) -> str:
        return "retired" if self.is_retired else self.row.state


def endpoint_table(kernel: Kernel, of: Words | None = None) -> EndpointTable:
    """All rows in use; of few endpoints, at least theirs."""
    few = of if of is not None and len(of) <= _FEW else None
    return endpoint_tables.table(kernel.joined(ENDPOINTS.name), lambda: kernel.joined(ENDPOINTS6.name), few)


def numbered_rows(kernel: Kernel, of: Iterable[str] | None = None) -> list[NumberedRow]:
    """The rows of the endpoints with the ids `of`; None: every row in use. Retired ones, too."""
    rows = None if of is None else [row_named(id) for id in of]
    if rows is None or None in rows:
        table = endpoint_table(kernel)
        return _numbered(table, np.arange(table.numbers.size))
    words = _words([row for row in rows if row])
    table = endpoint_table(kernel, words)
    return _numbered(table, table.rows_of(words))


def numbers_of(kernel: Kernel, rows: Sequence[EndpointRow]) -> NDArray[np.uint32]:
    """The numbers of endpoints; 0 for one without a row. Of several rows of one endpoint, the first that is not
    retired counts."""
    if not rows:
        return np.zeros(0, np.uint32)
    words = _words(rows)
    table = endpoint_table(kernel, words)
    return Index(table, table.is_retired).numbers_of(words)


class Numbers:
    """The numbers that all endpoints have at one moment, for whoever asks again and again."""

    def __init__(self, kernel: Kernel) -> None:
        table = endpoint_table(kernel)
        self._index = Index(table, table.is_retired)

    def of(self, rows: Sequence[EndpointRow]) -> NDArray[np.uint32]:
        """As `numbers_of`."""
        return self._index.numbers_of(_words(rows)) if rows else np.zeros(0, np.uint32)


def ids_of(kernel: Kernel, numbers: Collection[int]) -> dict[int, str]:
    """The ids of the endpoints with these numbers; those without a row are left out."""
    return ids_in(endpoint_table(kernel), np.array(list(numbers), np.uint32))


def ids_in(table: EndpointTable, numbers: NDArray[np.integer]) -> dict[int, str]:
    """As `ids_of`, from a table that was read."""
    words = table.words[np.isin(table.numbers, numbers)]
    return {numbered.number: numbered.row.id for numbered in _numbered(table, table.rows_of(words))}


def _numbered(table: EndpointTable, places: NDArray[np.intp]) -> list[NumberedRow]:
    """The rows at these places, which must be all rows of their endpoints."""
    found = []
    numbers, states = table.numbers[places].tolist(), table.states[places].tolist()
    for number, state, (packed, port) in zip(numbers, states, table.endpoints(places), strict=True):
        damage = "" if state in _STATES else word(EndpointRowState, state)
        address = IPv4Address(packed) if len(packed) == _IPV4_BYTES else ip_address(packed)
        is_dead = state == EndpointRowState.DEAD
        row = EndpointRow(address, port, state == EndpointRowState.DISABLED, damage, dead=is_dead)
        found.append(NumberedRow(number, row, state == EndpointRowState.RETIRED))
    if np.unique(table.hashes[places]).size == places.size:
        return found  # no endpoint has two rows, as hardly one ever has
    known: set[str] = set()
    for i, numbered in sorted(enumerate(found), key=lambda item: item[1].is_retired):
        if numbered.row.id in known:
            found[i] = replace(numbered, row=replace(numbered.row, copy=numbered.number))
        known.add(numbered.row.id)
    return found


class EndpointKind(Kind):
    phase = 30
    resource = EndpointRow
    is_in_maps = True

    @staticmethod
    def of_pool(pool: Pool, use: Use, facts: Facts) -> Iterable[Wanted]:
        return zip(rows_of(pool), [endpoint.span for endpoint in pool.endpoints], strict=True)

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        # A server in several pools is one row: it is disabled, or dead, only if all of them say so.
        return min(claims, key=lambda claim: isinstance(claim[0], EndpointRow) and (claim[0].disabled, claim[0].dead))

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        table = endpoint_table(self.kernel)
        plain = _plain(wanted)
        unwanted = [] if only is None else [key for key in only if key not in wanted]
        # The endpoints of many names take longer to find out than the names of all endpoints.
        others = [row_named(key.id) for key in unwanted] if len(unwanted) <= _FEW else [None]
        if only is not None and None not in others:
            table = table.part(table.rows_of(_words([*plain, *filter(None, others)])))
        places = _matches(Index(table, table.is_retired), plain)
        left = ~table.is_retired
        left[places[places >= 0]] = False
        strange = _numbered(table, np.flatnonzero(left))
        places[~self._passes(table)[places]] = -1
        return Reading((*compress(plain, (places >= 0).tolist()), *(other.row for other in strange)))

    def look(self, wanted: Mapping[Key, Resource]) -> Iterator[Collection[Key]]:
        table = endpoint_table(self.kernel)
        yield ()
        passes = self._passes(table)
        index, left = Index(table, table.is_retired), ~table.is_retired
        yield ()
        for part in in_parts(wanted, _LOOKED_AT_ONCE):
            plain = _plain(part)
            places = _matches(index, plain)
            left[places[places >= 0]] = False
            yield [row.key for row in compress(plain, ((places < 0) | ~passes[places]).tolist())]
        yield [other.row.key for other in _numbered(table, np.flatnonzero(left))]

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        words = _words([_row(change) for change in changes])
        table = endpoint_table(self.kernel)
        numbers = {held.row.id: held.number for held in _numbered(table, table.rows_of(words))}
        new = [change for change in changes if change.after and change.key.id not in numbers]
        free = self._free_numbers(len(new), table) if new else []
        given = {change.key.id: number for change, number in zip(new, free, strict=False)}
        numbers |= given
        puts = [place for place, change in enumerate(changes) if change.after]
        refusal = self._open_filter(table, words[puts], is_reusing=bool(np.isin(free, table.numbers).any()))
        numbered = [changes[place] for place in puts if changes[place].key.id in numbers]
        outcomes: list[tuple[Change, Outcome]] = [(change, refusal) for change in numbered if refusal]
        outcomes += self._write_addresses6(() if refusal else new, given)
        failed = {change.key for change, _ in outcomes}
        writes: list[int] = []
        for place, change in enumerate(changes):
            if change.key.id in numbers:
                if change.key not in failed:
                    writes.append(place)
            elif change.after:
                room = self.kernel.capacity(ENDPOINTS.name) - 1
                error = KernelError(
                    f"no room for {change.key}: all {room:,} endpoint rows are in use",
                    hint="remove endpoints, or wait until connections to removed ones have ended",
                )
                outcomes.append((change, error))
        written = [changes[place] for place in writes]
        keys = [ENDPOINTS.key.pack(Number(numbers[change.key.id])) for change in written]
        values = endpoint_tables.values_of(words[writes], [_state(change) for change in written])
        results = self.kernel.update(ENDPOINTS.name, list(zip(keys, values, strict=True)))
        outcomes += zip(written, results, strict=True)
        return each(changes, outcomes)

    def _passes(self, table: EndpointTable) -> NDArray[np.bool_]:
        """Which rows the program finds; and True for no row, whose place is -1."""
        passes, lines = np.ones(table.numbers.size + 1, np.bool_), self._filter()
        if len(lines):
            passes[:-1] = endpoint_filter.let_pass(table.words, lines)
        return passes

    def _filter(self) -> endpoint_filter.Lines:
        """No lines if there is no NAT, which alone needs them."""
        count = self.kernel.capacity(ENDPOINT_FILTER.name)
        return endpoint_filter.lines_of(self.kernel.joined(ENDPOINT_FILTER.name) if count else (b"", b""), count)

    def _open_filter(self, table: EndpointTable, more: Words, *, is_reusing: bool) -> Outcome:
        """Let more endpoints pass than those that have rows. What else it lets pass does no harm, and goes once rows
        get other endpoints."""
        held = self._filter()
        if not len(held) or not len(more):
            return None
        wanted = held | endpoint_filter.filter_of(more, len(held))
        if is_reusing or not endpoint_filter.let_pass(table.words, held).all():
            wanted = endpoint_filter.filter_of(np.concatenate((table.words, more)), len(held))
        done = self.kernel.update(ENDPOINT_FILTER.name, endpoint_filter.changed(held, wanted))
        return next(filter(None, done), None)

    def _write_addresses6(self, new: Sequence[Change], numbers: Mapping[str, int]) -> list[tuple[Change, Outcome]]:
        """Write IPv6 addresses before the rows that refer to them. Returns the changes that failed."""
        puts = [
            (change, ENDPOINTS6.pack(Number(numbers[change.key.id]), AddressRow(change.after.address.packed)))
            for change in new
            if isinstance(change.after, EndpointRow) and change.after.address.version == 6 and change.key.id in numbers
        ]
        done = self.kernel.update(ENDPOINTS6.name, [row for _, row in puts])
        return [(change, outcome) for (change, _), outcome in zip(puts, done, strict=True) if outcome]

    def _free_numbers(self, count: int, table: EndpointTable) -> list[int]:
        """Numbers for new rows: never used ones, then those of retired rows that no connection can point to."""
        free = table.free_numbers(count, self.kernel.capacity(ENDPOINTS.name))
        if len(free) == count:
            return free
        used = connections.numbers_in_use(self.kernel)[0]
        used |= former_endpoints(self.kernel) | remembered.endpoints_in_use(self.kernel, slots.now())
        used |= served.endpoints_in_use(self.kernel)
        retired = table.numbers[table.states == EndpointRowState.RETIRED].tolist()
        reusable = [number for number in retired if number not in used][: count - len(free)]
        remembered.forget(self.kernel, reusable)
        connections.forget(self.kernel, endpoints=reusable)
        loads.forget(self.kernel, reusable)
        self.kernel.delete(ENDPOINT_COUNTERS.name, [ENDPOINT_COUNTERS.key.pack(Number(number)) for number in reusable])
        return free + reusable


def _plain(wanted: Mapping[Key, Resource]) -> list[EndpointRow]:
    """The rows that the kernel can hold just so."""
    return [row for row in wanted.values() if isinstance(row, EndpointRow) and not (row.damage or row.copy)]


def _matches(index: Index, plain: Sequence[EndpointRow]) -> NDArray[np.intp]:
    """For each row the place where the kernel holds it, -1 if it doesn't."""
    states = np.array([_state_of(row) for row in plain], np.uint8)
    return index.matches(_words(plain), states)


def _state_of(row: EndpointRow) -> EndpointRowState:
    if row.disabled:
        return EndpointRowState.DISABLED
    return EndpointRowState.DEAD if row.dead else EndpointRowState.USABLE


def _words(rows: Sequence[EndpointRow]) -> Words:
    return words_of([row.address for row in rows], [row.port for row in rows])


def _row(change: Change) -> EndpointRow:
    match change.after or change.before:
        case EndpointRow() as row:
            return row
    raise TypeError(f"not an endpoint: {change}")


def _state(change: Change) -> EndpointRowState:
    if change.after is None:
        return EndpointRowState.RETIRED
    return _state_of(_row(change))


KIND = EndpointKind
