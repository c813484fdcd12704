# SPDX-License-Identifier: Apache-2.0
"""States as rows of one size, for a pinned map or a file: what a restart of the agent must not forget, and what other
processes see of it.

There are two tables. One has the state of each target, by the target's digest. The other says which target each use
had, by the use's digest, so the state of an endpoint is found also if its check was edited meanwhile.
Times are in milliseconds since 1970 there, since a monotonic clock starts anew with the machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from reconciler.health.state import MAX_FALLS, Health, State
from reconciler.health.target import DIGEST_BYTES

KEY_BYTES = DIGEST_BYTES
ERROR_BYTES = 96
_ROW = struct.Struct(f"<BBBxHHIfQQQ{MAX_FALLS}I{ERROR_BYTES}s")
"""Version, health, flags, streak, shown share, latency in µs, share; since, streak since and checked in ms; falls in
s, 0 for none; error in UTF-8."""
ROW_BYTES = _ROW.size
_VERSION = 1
_HAS_RETURNED, _IS_HELD, _IS_CHECKED = 1, 2, 4
_MAX_STREAK = 0xFFFF


@dataclass(frozen=True, slots=True)
class Clocks:
    """What to add to the monotonic time to get the time since 1970, and the monotonic time now; in seconds."""

    offset_s: float
    now_s: float

    def to_ms(self, time_s: float) -> int:
        return max(0, round((time_s + self.offset_s) * 1000))

    def of_ms(self, time_ms: int) -> float:
        """Never later than now, whatever was done to the clocks."""
        return min(self.now_s, time_ms / 1000 - self.offset_s)


def packed(state: State, clocks: Clocks) -> bytes:
    """A row of ROW_BYTES."""
    flags = _HAS_RETURNED * state.has_returned | _IS_HELD * state.is_held | _IS_CHECKED * (state.checked_s is not None)
    falls = [clocks.to_ms(fall_s) // 1000 for fall_s in state.falls]
    return _ROW.pack(
        _VERSION, state.health, flags, min(state.streak, _MAX_STREAK), state.shown_share,
        min(0xFFFFFFFF, round(state.latency_s * 1e6)), state.share, clocks.to_ms(state.since_s),
        clocks.to_ms(state.streak_since_s) if state.streak else 0,
        clocks.to_ms(state.checked_s) if state.checked_s is not None else 0,
        *falls, *[0] * (MAX_FALLS - len(falls)), _cut(state.error),
    )  # fmt: skip


def unpacked(row: bytes, clocks: Clocks) -> State | None:
    """The state in a row; None if it is none of this version, or holds nonsense."""
    if len(row) != ROW_BYTES:
        return None
    version, health, flags, streak, shown, latency_us, share, since, streak_since, checked, *rest = _ROW.unpack(row)
    if version != _VERSION or health not in tuple(Health) or not 0 <= share <= 100 or shown > 100:
        return None
    *falls, error = rest
    return State(
        Health(health), clocks.of_ms(since), streak, clocks.of_ms(streak_since) if streak else 0.0,
        clocks.of_ms(checked) if flags & _IS_CHECKED else None, latency_us / 1e6,
        error.rstrip(b"\0").decode("utf-8", "replace"), tuple(clocks.of_ms(fall * 1000) for fall in falls if fall),
        bool(flags & _HAS_RETURNED), share, shown, bool(flags & _IS_HELD),
    )  # fmt: skip


def _cut(text: str) -> bytes:
    """At most ERROR_BYTES of UTF-8, and no half of a character."""
    return text.encode()[:ERROR_BYTES].decode("utf-8", "ignore").encode()
