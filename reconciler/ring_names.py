# SPDX-License-Identifier: Apache-2.0
"""The names of rings in the kernel, with the note beside each: its number, and what it was made from.

Only the names that somebody asks for are decoded: there may be ten thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import RING_NAMES, RINGS
from reconciler.dataplane.rows import RingNote
from reconciler.kernel.port import Kernel

_FEW = 16


class RingNames:
    """All names at one moment. A name is sound if its ring is its own: of several names for one ring, the first.

    A damaged row may hold any number; its name is there, but not sound.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._keys, notes = kernel.joined(RING_NAMES.name)
        self._notes = RING_NAMES.value.array(notes)
        self._is_sound = self._sound()
        self._searches = 0

    def __iter__(self) -> Iterator[str]:
        return map(_decoded, self._names)

    def __contains__(self, name: str) -> bool:
        return self._place(name) is not None

    def number(self, name: str) -> int | None:
        """The number of the ring that has this name for its own."""
        place = self._place(name)
        return int(self._notes["number"][place]) if place is not None and self._is_sound[place] else None

    def notes(self, names: Iterable[str]) -> list[RingNote | None]:
        """The notes beside these names, as far as they are there and sound."""
        places = [self._place(name) for name in names]
        sound = [place for place in places if place is not None and self._is_sound[place]]
        notes = dict(zip(sound, RING_NAMES.value.rows(self._notes[sound]), strict=True))
        return [None if place is None else notes.get(place) for place in places]

    def name(self, number: int) -> str | None:
        """The name of a ring."""
        place = self._by_number.get(number)
        return None if place is None else _decoded(self._names[place])

    def _place(self, name: str) -> int | None:
        """The place of a name. The first ones are searched for: to know the places of all takes longer."""
        key = packed(name)
        if self._searches >= _FEW:
            return self._places.get(key)
        self._searches += 1
        if len(key) != RING_NAMES.key_size:
            return None
        places = np.arange(len(self._words))
        for column, word in enumerate(np.frombuffer(key, np.uint64)):
            places = places[self._words[places, column] == word]
        return int(places[0]) if places.size else None

    @cached_property
    def _words(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._keys, np.uint64).reshape(-1, RING_NAMES.key_size // 8)

    @cached_property
    def _names(self) -> list[bytes]:
        return RING_NAMES.key.split(self._keys)

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return dict(zip(self._names, range(len(self._names)), strict=True))

    @property
    def numbers(self) -> set[int]:
        """The numbers of all rings that have a name."""
        return set(self._by_number)

    @cached_property
    def _by_number(self) -> dict[int, int]:
        places = np.flatnonzero(self._is_sound)
        return dict(zip(self._notes["number"][places].tolist(), places.tolist(), strict=True))

    def _sound(self) -> NDArray[np.bool_]:
        numbers = self._notes["number"]
        is_sound = (numbers > 0) & (numbers < RINGS.capacity)
        counts = np.bincount(np.minimum(numbers, RINGS.capacity))
        for number in np.unique(numbers[counts[np.minimum(numbers, RINGS.capacity)] > 1]):
            is_sound[sorted(np.flatnonzero(numbers == number), key=self._names.__getitem__)[1:]] = False
        return is_sound


def packed(name: str) -> bytes:
    """A name as the key of its row."""
    return name.encode(errors="surrogateescape").ljust(RING_NAMES.key_size, b"\0")


def _decoded(key: bytes) -> str:
    return key.rstrip(b"\0").decode(errors="surrogateescape")
