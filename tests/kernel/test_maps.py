# SPDX-License-Identifier: Apache-2.0
"""Maps by file descriptor, on the real kernel. Nothing is pinned: what a test makes ends with its descriptors."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from reconciler.dataplane.layout import MMAPABLE, MapType
from reconciler.errors import BuildError
from reconciler.kernel import atomic, bpf, cpus, maps, whole_maps

pytestmark = pytest.mark.kernel

Maker = Callable[[maps.Shape], maps.OpenMap]


@pytest.fixture
def make() -> Iterator[Maker]:
    opened: list[maps.OpenMap] = []

    def _make(shape: maps.Shape) -> maps.OpenMap:
        opened.append(maps.describe(maps.create("lbk_test", shape)))
        return opened[-1]

    yield _make
    for each in opened:
        os.close(each.fd)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def numbered(count: int, size: int) -> list[maps.Row]:
    """Rows with distinct keys and values."""
    return [(u32(n), struct.pack("=I", n ^ 0xABCD) * (size // 4)) for n in range(count)]


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
def test_rows_of_a_hash_come_back_as_they_were_written_across_many_batches(make: Maker, kind: MapType) -> None:
    table = make(maps.Shape(kind, 4, 24, 40_000))
    rows = numbered(10_000, 24)
    assert maps.update(table, rows) == [None] * len(rows)
    assert sorted(whole_maps.dump(table)) == sorted(rows)
    assert maps.update(table, [(u32(7), b"x" * 24)]) == [None]
    assert maps.lookup(table, u32(7)) == b"x" * 24
    assert maps.lookup(table, u32(10_000)) is None


def test_a_full_map_refuses_new_rows_only_and_the_rest_of_the_batch_is_done(make: Maker) -> None:
    table = make(maps.Shape(MapType.HASH, 4, 4, 10))
    rows = [*((u32(n), u32(n)) for n in range(10)), (u32(90), u32(0)), (u32(3), u32(33)), (u32(91), u32(0)),
            (u32(4), u32(44))]  # fmt: skip
    outcomes = maps.update(table, rows)
    failed = {index: outcome.errno for index, outcome in enumerate(outcomes) if outcome}
    assert failed == {10: errno.E2BIG, 12: errno.E2BIG}
    assert dict(whole_maps.dump(table)) == {u32(n): u32({3: 33, 4: 44}.get(n, n)) for n in range(10)}


def test_deleting_what_is_absent_is_no_error_and_stops_nothing(make: Maker) -> None:
    table = make(maps.Shape(MapType.HASH, 4, 4, 100))
    maps.update(table, numbered(10, 4))
    assert maps.delete(table, [u32(50), u32(1), u32(51), u32(2), u32(52)]) == [None] * 5
    assert {key for key, _ in whole_maps.dump(table)} == {u32(n) for n in (0, 3, 4, 5, 6, 7, 8, 9)}


def test_an_array_shows_only_rows_that_are_not_zero_and_delete_fills_with_zeros(make: Maker) -> None:
    array = make(maps.Shape(MapType.ARRAY, 4, 8, 131_072))
    rows = [(u32(n), struct.pack("=Q", n + 1)) for n in (0, 63, 64, 10_921, 10_922, 10_923, 70_000, 131_071)]
    maps.update(array, rows)
    assert list(whole_maps.dump(array)) == rows
    assert maps.delete(array, [u32(64), u32(5)]) == [None, None]
    assert list(whole_maps.dump(array)) == [row for row in rows if row[0] != u32(64)]


def test_a_row_beyond_the_end_of_an_array_fails_alone(make: Maker) -> None:
    array = make(maps.Shape(MapType.ARRAY, 4, 4, 4))
    outcomes = maps.update(array, [(u32(1), u32(1)), (u32(4), u32(9)), (u32(2), u32(2))])
    assert [outcome and outcome.errno for outcome in outcomes] == [None, errno.E2BIG, None]
    assert list(whole_maps.dump(array)) == [(u32(1), u32(1)), (u32(2), u32(2))]


def test_a_per_cpu_value_is_the_values_of_all_cpus_each_rounded_up_to_8_bytes(make: Maker) -> None:
    counters = make(maps.Shape(MapType.PERCPU_ARRAY, 4, 12, 1000))
    assert counters.row_bytes == 16 * cpus.possible_cpus()
    value = b"".join(struct.pack("=III4x", cpu, 7, 9) for cpu in range(cpus.possible_cpus()))
    assert maps.update(counters, [(u32(999), value)]) == [None]
    assert list(whole_maps.dump(counters)) == [(u32(999), value)]


def test_rows_of_one_word_are_stored_in_shared_memory(make: Maker) -> None:
    with bpf.closing(maps.create("lbk_words", maps.Shape(MapType.ARRAY, 4, 8, 10), flags=MMAPABLE)) as fd:
        array = maps.describe(fd)
        shared = maps.words(array)
        outcomes = maps.update(array, [(u32(9), b"\1" * 8), (u32(10), b"\2" * 8), (u32(3), b"\3" * 8)])
        assert [outcome and outcome.errno for outcome in outcomes] == [None, errno.E2BIG, None]
        assert list(whole_maps.dump(array)) == [(u32(3), b"\3" * 8), (u32(9), b"\1" * 8)]
        shared[9] = 7
        assert maps.lookup(array, u32(9)) == struct.pack("=Q", 7)
        with pytest.raises(ValueError, match="a value of 4 bytes"):
            maps.update(array, [(u32(0), bytes(4))])


def test_a_row_of_the_wrong_size_never_reaches_the_kernel(make: Maker) -> None:
    table = make(maps.Shape(MapType.HASH, 4, 8, 10))
    with pytest.raises(ValueError, match="a value of 4 bytes"):
        maps.update(table, [(u32(0), bytes(8)), (u32(1), bytes(4))])
    with pytest.raises(ValueError, match="a key of 2 bytes"):
        maps.delete(table, [b"xy"])
    assert list(whole_maps.dump(table)) == []


def test_an_inner_map_is_found_by_its_number_until_it_is_removed(make: Maker) -> None:
    inner = maps.Shape(MapType.ARRAY, 4, 64, 16)
    with bpf.closing(maps.create("lbk_inner", inner, flags=MMAPABLE)) as template:
        outer = maps.describe(maps.create("lbk_outer", maps.Shape(MapType.ARRAY_OF_MAPS, 4, 4, 8), inner=template))
    with bpf.closing(outer.fd), bpf.closing(maps.create("lbk_ring", inner, flags=MMAPABLE)) as ring:
        maps.update_one(outer, u32(5), u32(ring))
        found = maps.lookup(outer, u32(5))
        assert found is not None
        assert struct.unpack("=I", found)[0] == maps.describe(ring).id
        maps.delete_one(outer, u32(5))
        maps.delete_one(outer, u32(5))
        assert maps.lookup(outer, u32(5)) is None


RETURN_PASS = bytes.fromhex("b700000002000000" "9500000000000000")


def test_a_program_loads_runs_and_is_described() -> None:
    with bpf.closing(bpf.load_program("lbk_pass", RETURN_PASS)) as program:
        frame = bytes(range(64))
        assert bpf.test_run(program, frame) == (bpf.XdpVerdict.PASS, frame)
        info = bpf.program_info(program)
        assert (info.name, info.map_ids) == ("lbk_pass", ())
        again = bpf.open_program(info.id)
        assert again is not None
        with bpf.closing(again):
            assert bpf.program_info(again) == info


def test_a_refused_program_is_explained_by_the_verifier() -> None:
    without_exit_value = bytes.fromhex("9500000000000000")
    with pytest.raises(BuildError, match="R0 !read_ok"):
        bpf.load_program("lbk_bad", without_exit_value)


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-1,4-5,9\n", 5)])
def test_possible_cpus_are_counted_across_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, count: int
) -> None:
    (tmp_path / "possible").write_text(text)
    monkeypatch.setattr(cpus, "_CPUS", tmp_path / "possible")
    numbers = cpus.cpu_numbers.__wrapped__()
    assert len(numbers) == count
    assert numbers[-1] == int(text.strip()[-1])


@pytest.mark.parametrize(("kind", "flags"), [(MapType.HASH, 0), (MapType.ARRAY, 0), (MapType.ARRAY, MMAPABLE)])
@pytest.mark.parametrize("size", [4, 24])
def test_a_map_that_is_overwritten_holds_the_rows_of_the_other_and_no_others(
    make: Maker, kind: MapType, flags: int, size: int
) -> None:
    """Also where user space looks at the array as at memory, in which rows begin at multiples of eight bytes."""
    shape = maps.Shape(kind, 4, size, 3_000)
    source = make(shape)
    maps.update(source, [(u32(n), bytes([1 + n % 255]) * size) for n in range(0, 3_000, 7)])
    with bpf.closing(maps.create("lbk_test", shape, flags=flags)) as fd:
        target = maps.describe(fd)
        assert target.flags == flags
        maps.update(target, [(u32(n), b"\x77" * size) for n in range(100)])
        whole_maps.overwrite(target, whole_maps.read_whole(source))
        assert sorted(whole_maps.dump(target)) == sorted(whole_maps.dump(source))


@pytest.mark.parametrize("library", [atomic.LIBRARY, "libnone.so"])
def test_a_word_is_changed_only_if_it_is_what_was_seen(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "LIBRARY", library)
    words = np.array([1, 2**64 - 1, 3], np.uint64)
    assert [atomic.swap(words, 1, 2**64 - 1, 2**63), atomic.swap(words, 1, 7, 8)] == [True, False]
    assert words.tolist() == [1, 2**63, 3]
    assert bool(atomic._step(library)) == (library != "libnone.so")
