# SPDX-License-Identifier: Apache-2.0
from hypothesis import given
from hypothesis import strategies as st

from reconciler.health.row import ERROR_BYTES, ROW_BYTES, Clocks, packed, unpacked
from reconciler.health.state import Health, State, after, pace_s
from tests.health.test_state import OUTCOMES, TARGET, live

CLOCKS = Clocks(offset_s=1_790_000_000.125, now_s=5000.0)

states = st.builds(
    State, health=st.sampled_from(Health), since_s=st.floats(-100_000, 5000), streak=st.integers(0, 60_000),
    streak_since_s=st.floats(0, 5000), checked_s=st.none() | st.floats(0, 5000), latency_s=st.floats(0, 4000),
    error=st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])),
    falls=st.lists(st.floats(0, 5000), max_size=8).map(lambda times: tuple(sorted(times))),
    has_returned=st.booleans(), share=st.floats(0, 100), shown_share=st.integers(0, 100), is_held=st.booleans(),
)  # fmt: skip


@given(states)
def test_a_row_is_the_state(state):
    row = packed(state, CLOCKS)
    assert len(row) == ROW_BYTES == 168
    found = unpacked(row, CLOCKS)
    for name in ("health", "streak", "shown_share", "has_returned", "is_held"):
        assert getattr(found, name) == getattr(state, name)
    assert abs(found.since_s - state.since_s) < 0.002
    assert abs(found.share - state.share) < 0.001
    assert (found.checked_s is None) == (state.checked_s is None)
    assert len(found.falls) == len(state.falls)
    assert all(abs(one - other) <= 1.001 for one, other in zip(found.falls, state.falls, strict=True))
    assert state.error.startswith(found.error)
    assert found.error == state.error or len(found.error.encode()) > ERROR_BYTES - 4
    assert packed(found, CLOCKS) == row


@given(st.text("uds", max_size=15), st.text("uds", max_size=15))
def test_a_restart_makes_no_difference(before, then):
    """Written down, and read by a process whose clock began anew: it goes on as if nothing had happened."""
    state, now_s = live(before)
    shift_s = 12_345.0
    found = unpacked(packed(state, Clocks(0.0, now_s)), Clocks(shift_s, now_s - shift_s))
    for letter in then:
        now_s += pace_s(state, TARGET, now_s)
        state = after(state, TARGET, OUTCOMES[letter], now_s)
        found = after(found, TARGET, OUTCOMES[letter], now_s - shift_s)
        assert found.health is state.health
        assert found.streak == state.streak


def test_no_time_lies_in_the_future_whatever_was_done_to_the_clock():
    state = State(Health.DOWN, since_s=4000.0, falls=(3999.0,), checked_s=4500.0)
    set_back = Clocks(CLOCKS.offset_s - 1e6, 5000.0)
    found = unpacked(packed(state, CLOCKS), set_back)
    assert (found.since_s, found.falls, found.checked_s) == (5000.0, (5000.0,), 5000.0)


@given(st.binary(min_size=ROW_BYTES, max_size=ROW_BYTES) | st.binary(max_size=300))
def test_a_row_of_something_else_is_no_state(row):
    found = unpacked(row, CLOCKS)
    assert found is None or packed(found, CLOCKS)


def test_rows_of_another_version_are_not_believed():
    row = packed(State(Health.UP), CLOCKS)
    assert unpacked(b"\x02" + row[1:], CLOCKS) is None
    assert unpacked(row[:-1], CLOCKS) is None
    assert unpacked(row[:1] + b"\x07" + row[2:], CLOCKS) is None
