# SPDX-License-Identifier: Apache-2.0
"""The steps under way, for whoever wants to show them. Those who take steps know of no terminal.

    with step("reading rings", len(names), "rings") as advance:
        for name in names:
            …
            advance(1)

A step costs about a microsecond, so it is for work that can take a second, not for each object.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(slots=True, eq=False)
class _Step:
    what: str
    total: int
    unit: str
    done: int = 0

    def advance(self, count: int = 1) -> None:
        self.done += count

    def __str__(self) -> str:
        if not self.total:
            return self.what
        return f"{self.what}, {min(self.done, self.total):,} of {self.total:,} {self.unit}".rstrip()


_steps: list[_Step] = []
"""The outermost first. Threads may take steps at once: each removes its own."""


@contextmanager
def step(what: str, total: int = 0, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Take a step for the time of the block, within those that are under way. `what` says what is being done, e.g.
    `checking manifests`; what the block calls with how many of `total` units are done since the last call is shown,
    too. `total` 0: nobody knows how much it is."""
    taken = _Step(what, total, unit)
    _steps.append(taken)
    try:
        yield taken.advance
    finally:
        _steps.remove(taken)


def each(what: str, items: Collection[_Item], unit: str = "") -> Iterator[_Item]:
    """The items, one by one, as a step that each of them advances."""
    with step(what, len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)


def now() -> str:
    """The steps under way in words, from the outermost to the innermost, each once: threads may take the same one at
    once. Empty if there is none."""
    return ": ".join(dict.fromkeys(map(str, tuple(_steps))))
