# SPDX-License-Identifier: Apache-2.0
"""Connections of fullnat find their places in tables of another size; their ports are taken there, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from reconciler.dataplane.layout import POOL_PORTS, TRANSLATED_MAPS
from reconciler.kernel.translating import Translated, held, places_in, ports_of, returns_of, table_of

SEED = np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64)
COUNT, POOLS, FIRST, PORTS = 300, 3, 2000, 150


def connections(version: int = 4) -> Translated:
    """All ports of pools 1 and 2, each of another client."""
    number = np.arange(COUNT, dtype=np.uint64)
    who = (number + np.uint64(0x0A000001)) << np.uint64(32) | np.uint64(40_000 << 16 | 1 << 14 | 1 << 11)
    where = np.uint64(7 << 47 | 3 << 29) + number
    pool, port = number // np.uint64(PORTS) + np.uint64(1), number % np.uint64(PORTS) + np.uint64(FIRST)
    addresses = np.stack([np.full(COUNT, 0xB80D0120, np.uint64), number], axis=1) if version == 6 else None
    return Translated(who, where, np.uint64(0x0A0200C9 << 32) | port << np.uint64(16) | pool, addresses)


def lines(of: Translated) -> set[tuple[int, ...]]:
    wide = [[]] * of.who.size if of.addresses is None else of.addresses.tolist()
    return {
        (who, where, way, *address) for who, where, way, address in zip(
            of.who.tolist(), of.where.tolist(), of.way.tolist(), wide, strict=True
        )
    }  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
def test_a_table_of_another_size_has_the_same_connections(version: int) -> None:
    of = connections(version)
    table, numbers, places = table_of(of, SEED, 250)
    assert sorted(numbers.tolist()) == list(range(COUNT))
    assert table.shape == (250, TRANSLATED_MAPS[version].value_size // 8)
    again = held(table.reshape(-1), version)
    assert lines(again) == lines(of)
    assert sorted(places_in(table.reshape(-1), version).tolist()) == sorted(places.tolist())
    assert [int(table[place // 4, place % 4]) for place in places.tolist()] == of.who[numbers].tolist()


def test_each_port_leads_to_the_place_of_its_connection() -> None:
    of = connections()
    _, numbers, places = table_of(of, SEED, 250)
    kept = Translated(of.who[numbers], of.where[numbers], of.way[numbers])
    words = returns_of(kept, places, SEED, 100)
    assert {(w >> 43, w >> 27 & 0xFFFF, (w & (1 << 27) - 1) - 1) for w in words[words != 0].tolist()} == set(
        zip(kept.pools.tolist(), kept.ports.tolist(), places.tolist(), strict=True)
    )


def test_the_ports_of_connections_are_taken_and_no_others() -> None:
    of = connections()
    some = Translated(of.who[:200], of.where[:200], of.way[:200])
    former = np.zeros((2, POOL_PORTS.value_size // 8), np.uint64)
    former[1, -4096] = 5  # whose connections are gone
    former[1, -4093], former[1, 1] = 77, 9 << 32
    rows = [POOL_PORTS.value.unpack(row.tobytes()) for row in ports_of([some], former, POOLS, FIRST, PORTS)]
    taken = [np.frombuffer(row.words, np.uint64)[::4].copy() for row in rows]
    assert [int(np.unpackbits(words.view(np.uint8)).sum()) for words in taken] == [0, 150, 50]
    assert taken[1][:4].tolist() == [2**64 - 1, 2**64 - 1, 2**22 - 1, 0]
    assert [row.used for row in rows] == [0, 150, 50]
    assert [int.from_bytes(row.full[:8], "little") for row in rows] == [0, 7, 0]
    assert (rows[1].cursor, np.frombuffer(rows[1].words, np.uint64)[3]) == (9, 77), "what else is known stays"
