# SPDX-License-Identifier: Apache-2.0
"""Where rings lie, and that whatever happens while they are written, packets find whole rings."""

import random
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dataplane import chunks, rows, slots
from reconciler.dataplane.chunks import WIDE, Form, FreeLines, Place, form_of, lines_of, place_of, sound, unused
from reconciler.dataplane.layout import CHUNK_LINES, RING_CHUNKS, RINGS, SERVICES, AlgorithmCode, ModeCode
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.faulty import FaultyKernel
from reconciler.ring_store import Rings, in_transition, remove_rings, settle
from tests.rings import read_ring, read_rings, write_rings

TCP = 6
forms = st.builds(Form, st.integers(0, 2), st.integers(0, 4_095).map(lambda step: step * 32))
places = st.builds(
    lambda *parts: Place(*parts[:3], parts[3] > 0, parts[4], parts[3] > 1),
    st.integers(0, 2), st.integers(0, CHUNK_LINES - 1), st.integers(1, 200_000), st.integers(0, 2), forms,
)  # fmt: skip


def heads_of(some):
    return np.array([place.head for place in some], np.uint64)


def lines(place):
    first = place.chunk * CHUNK_LINES + place.line
    return range(first, first + place.lines)


# --- places ------------------------------------------------------------------------------------------------
@given(places)
def test_a_head_says_where_a_ring_lies(place):
    assert place_of(place.head) == place


@given(st.integers(0, 131_071), st.lists(st.integers(0, 131_071), max_size=9), st.integers(1, 131_072))
def test_slots_are_written_in_a_few_bytes_and_read_as_they_were(first, others, window):
    ids = [first, *(min(first + other % window, 131_071) for other in others)]
    marked = np.array([*ids, 0, *ids], np.uint32) | np.array([0] * len(ids) + [1 << 31] * (len(ids) + 1), np.uint32)
    form = form_of(marked)
    assert np.array_equal(form.read(form.written(marked)), marked)
    assert np.array_equal(WIDE.read(WIDE.written(marked)), marked)
    assert form.written(marked).size == marked.size * (4 >> form.narrow)


@pytest.mark.parametrize(
    ("ids", "slot_bytes"),
    [((), 1), ((0,), 1), ((127,), 1), ((131_071,), 1), ((1, 127), 1), ((1, 128), 2), ((33, 128), 1), ((64, 160), 2),
     ((1, 32_767), 2), ((1, 32_768), 4), ((33, 32_768), 2), ((98_305, 131_071), 2), ((1, 131_071), 4)],
)  # fmt: skip
def test_slots_take_as_many_bytes_as_the_ids_of_the_ring_ask_for(ids, slot_bytes):
    assert 4 >> form_of(np.array(ids, np.uint32)).narrow == slot_bytes


@given(st.lists(places, max_size=8))
@settings(deadline=None)
def test_a_ring_is_sound_if_it_is_whole_in_one_chunk_and_shares_no_line(some):
    found = sound(heads_of(some), [0, 2])
    for number, (place, is_sound) in enumerate(zip(some, found.tolist(), strict=True)):
        own = lines(place)
        others = [lines(other) for i, other in enumerate(some) if i != number]
        is_whole = place.chunk != 1 and own[-1] // CHUNK_LINES == place.chunk
        is_shared = any(own.start < other.stop and other.start < own.stop for other in others)
        assert is_sound == (is_whole and not is_shared)


@given(st.lists(places, max_size=8), st.lists(st.integers(1, 50_000), max_size=8))
@settings(deadline=None)
def test_what_is_given_away_is_free_and_given_once(some, asked):
    used = [lines(place) for place in some]
    used = [range(own.start, min(own.stop, (own.start // CHUNK_LINES + 1) * CHUNK_LINES)) for own in used]
    free = FreeLines(heads_of(some), [0, 2])
    for count in asked:
        taken = free.take(count)
        if taken is None:
            free.add(free.next_chunk())
            taken = free.take(count)
        chunk, line = taken
        assert line + count <= CHUNK_LINES
        own = range(chunk * CHUNK_LINES + line, chunk * CHUNK_LINES + line + count)
        assert not any(own.start < other.stop and other.start < own.stop for other in used)
        used.append(own)


def test_gaps_are_filled_before_another_chunk_is_made():
    ends = [Place(0, 20, 16 * 30_000, False), Place(0, 30_020, 16 * (CHUNK_LINES - 30_020) // 2, True)]
    free = FreeLines(heads_of([Place(0, 10, 16 * 5, False), *ends]), [0])
    assert [free.take(n) for n in (10, 5, 18_000)] == [(0, 0), (0, 15), None]
    assert free.next_chunk() == 1
    free.add(1)
    assert free.take(18_000) == (1, 0)


def test_a_chunk_that_is_not_there_is_given_away_no_more():
    free = FreeLines(heads_of([]), [0])
    free.drop(0)
    assert free.take(1) is None
    assert free.next_chunk() == 0


def test_chunks_that_no_head_leads_to_are_unused():
    assert unused(heads_of([Place(1, 0, 4, False)]), [0, 1, 2]) == [0, 2]


# --- what packets see ----------------------------------------------------------------------------------------
class Watched(FaultyKernel):
    """A kernel with a packet at every moment: it may still use each head that was there since programs were waited
    for, and must find in all of them what was there at the time."""

    def __post_init__(self):
        super().__post_init__()
        self.seen = {}
        self.on_write = self.look

    def look(self):
        rings = Rings(self)
        for index in np.flatnonzero(rings.heads).tolist():
            place = rings.place(index)
            assert place, "a head leads to no ring"
            held = rings.held(place)
            assert place.has_rows or not held.moving.any()
            key = index, place.head
            if key not in self.seen:
                self.seen[key] = held.endpoints.copy()
        for (_, head), endpoints in self.seen.items():
            words = self.inner[RING_CHUNKS.name].get(place_of(head).chunk)
            if words is not None:
                place = place_of(head)
                now = place.form.read(place.content(words)) & slots.ENDPOINT_MASK
                assert np.array_equal(now, endpoints), "lines in use were overwritten"

    def wait_for_programs(self, outer):
        self.look()
        super().wait_for_programs(outer)
        self.seen.clear()


def kernel_of(mode=ModeCode.DSR_L3, kind=Watched):
    kernel = kind()
    kernel.load_program("lbctl_x", ("NAT", "DSR_L3", "MAGLEV"))
    for index in range(1, 6):
        row = rows.Service(index, index, 0, mode, AlgorithmCode.MAGLEV)
        kernel.update(SERVICES.name, [SERVICES.pack(rows.ServiceKey(bytes(4), index, TCP), row)])
    return kernel


def ring(*numbers):
    return np.array(numbers, np.uint32)


edits = st.lists(
    st.dictionaries(
        st.integers(1, 5), st.lists(st.integers(1, 4), max_size=5).map(lambda some: ring(*some)), min_size=1
    ),
    max_size=6,
)  # fmt: skip


@given(edits, st.sampled_from(ModeCode), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_rings_are_whole_at_every_moment_whatever_fails(changes, mode, seed):
    chance = random.Random(seed)
    kernel = kernel_of(mode)
    kernel.fails = lambda: chance.random() < 0.15
    held = {}
    for wanted in changes:
        outcomes = write_rings(kernel, wanted, known=set(held))
        held |= {index: wanted[index] for index, outcome in outcomes.items() if outcome is None}
        for index, now in read_rings(kernel, outcomes).items():
            assert np.array_equal(shortest(now), slots.reduced(held.get(index, ring())))
        if chance.random() < 0.5:
            with suppress(KernelError):
                settle(kernel, slots.now() + chance.choice((0, slots.STREAM_IDLE + 1)))
    kernel.fails = lambda: False
    settle(kernel, slots.now() + slots.STREAM_IDLE + 1)
    assert in_transition(kernel) == {}
    assert not any(remove_rings(kernel, list(held)))
    settle(kernel, slots.now())
    assert not kernel.inner.get(RING_CHUNKS.name)


def shortest(found):
    if found is None or not found.endpoints.any():
        return ring()
    return slots.reduced(found.endpoints)


class KilledError(BaseException):
    pass


@given(st.lists(edits.filter(bool), min_size=1, max_size=4), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_whoever_is_killed_leaves_whole_rings_that_the_next_one_takes_up(rounds, seed):
    """Each round dies before, at or after one of its steps, with nothing of what it knew."""
    chance = random.Random(seed)
    kernel = kernel_of()
    for wanted in (change for changes in rounds for change in changes):
        left = [chance.randrange(6)]

        def dies(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return False

        before = {index: shortest(found) for index, found in read_rings(kernel, wanted).items()}
        kernel.fails = dies
        known = np.flatnonzero(Rings(kernel).heads).tolist()
        with suppress(KilledError):
            write_rings(kernel, wanted, known=known)
        kernel.fails = lambda: False
        kernel.look()
        for index, found in read_rings(kernel, wanted).items():
            now = shortest(found)
            assert np.array_equal(now, before[index]) or np.array_equal(now, slots.reduced(wanted[index]))
        known = np.flatnonzero(Rings(kernel).heads).tolist()
        assert not any(write_rings(kernel, wanted, known=known).values())
        for index, found in read_rings(kernel, wanted).items():
            assert np.array_equal(shortest(found), slots.reduced(wanted[index]))


# --- transitions ---------------------------------------------------------------------------------------------
def test_what_the_program_notes_while_a_ring_is_written_is_not_lost():
    kernel = kernel_of(kind=FakeKernel)
    write_rings(kernel, {1: ring(1, 1)}, known=())
    write_rings(kernel, {1: ring(2, 1)}, known={1})
    used = slots.now() + 5
    update = kernel.update

    def noting(name, rows_):
        if name == RINGS.name:
            rings = Rings(kernel)
            words = rings.rows(rings.place(1))
            rows_now = slots.unpacked(words)
            rows_now["used"][0] = used % 1024
            rings.note_uses(rings.place(1), np.array([0]), slots.packed(rows_now)[:1])
        return update(name, rows_)

    kernel.update = noting
    assert write_rings(kernel, {1: ring(2, 3)}, known={1}) == {1: None}
    held = read_ring(kernel, 1)
    assert held.rows["used"][0] == used % 1024
    assert held.rows["stream"].tolist() == [1, 1]


def test_a_ring_too_large_for_a_chunk_is_refused_and_the_others_are_written():
    kernel = kernel_of(kind=FakeKernel)
    large = np.arange(16 * CHUNK_LINES + 1, dtype=np.uint32) % 7 + 1
    outcomes = write_rings(kernel, {1: large, 2: ring(1)}, known=())
    assert isinstance(outcomes[1], KernelError)
    assert outcomes[2] is None
    assert read_ring(kernel, 1) is None


@pytest.mark.parametrize("slots_", [262_144])
def test_the_largest_ring_fits_into_a_chunk_with_all_its_slots_in_transition(slots_):
    assert lines_of(slots_, has_rows=True) <= CHUNK_LINES
    assert slots_ <= chunks.MAX_SLOTS
