# SPDX-License-Identifier: Apache-2.0
"""The names of rings in the kernel, with the note beside each: its number, and what it was made from.

Only the names that somebody asks for are decoded: there may be ten thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from reconciler.dataplane.layout import RING_NAMES, RINGS
from reconciler.dataplane.rows import RingNote
from reconciler.kernel.port import Kernel


class RingNames:
    """All names at one moment. A name is sound if its ring is its own: of several names for one ring, the first.

    A damaged row may hold any number; its name is there, but not sound.
    """

    def __init__(self, kernel: Kernel) -> None:
        keys, notes = kernel.joined(RING_NAMES.name)
        self._names = RING_NAMES.key.split(keys)
        self._notes = RING_NAMES.value.array(notes)
        self._places = dict(zip(self._names, range(len(self._names)), strict=True))
        self._is_sound = self._sound()

    def __iter__(self) -> Iterator[str]:
        return map(_decoded, self._names)

    def __contains__(self, name: str) -> bool:
        return packed(name) in self._places

    def number(self, name: str) -> int | None:
        """The number of the ring that has this name for its own."""
        place = self._places.get(packed(name))
        return int(self._notes["number"][place]) if place is not None and self._is_sound[place] else None

    def notes(self, names: Iterable[str]) -> list[RingNote | None]:
        """The notes beside these names, as far as they are there and sound."""
        places = [self._places.get(packed(name)) for name in names]
        sound = [place for place in places if place is not None and self._is_sound[place]]
        notes = dict(zip(sound, RING_NAMES.value.rows(self._notes[sound]), strict=True))
        return [None if place is None else notes.get(place) for place in places]

    def name(self, number: int) -> str | None:
        """The name of a ring."""
        place = self._by_number.get(number)
        return None if place is None else _decoded(self._names[place])

    @property
    def numbers(self) -> set[int]:
        """The numbers of all rings that have a name."""
        return set(self._by_number)

    @cached_property
    def _by_number(self) -> dict[int, int]:
        places = np.flatnonzero(self._is_sound)
        return dict(zip(self._notes["number"][places].tolist(), places.tolist(), strict=True))

    def _sound(self) -> list[bool]:
        numbers = self._notes["number"]
        is_sound = (numbers > 0) & (numbers < RINGS.capacity)
        known, counts = np.unique(numbers, return_counts=True)
        for number in known[counts > 1]:
            is_sound[sorted(np.flatnonzero(numbers == number), key=self._names.__getitem__)[1:]] = False
        sound: list[bool] = is_sound.tolist()
        return sound


def packed(name: str) -> bytes:
    """A name as the key of its row."""
    return name.encode(errors="surrogateescape").ljust(RING_NAMES.key_size, b"\0")


def _decoded(key: bytes) -> str:
    return key.rstrip(b"\0").decode(errors="surrogateescape")
