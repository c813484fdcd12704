# SPDX-License-Identifier: Apache-2.0
"""What the agent says: a line an event, with its time, in the words of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TextIO

from reconciler.render.style import Style
from reconciler.render.text import applied, change_line
from reconciler.resource import Change, Concern


def local_time() -> datetime:
    return datetime.now().astimezone()


class Report:
    """Writes to `out`, each line at once. A problem is told when it begins, when it changes and when it ends."""

    def __init__(self, out: TextIO, style: Style, now: Callable[[], datetime] = local_time) -> None:
        self.style = style
        self._out = out
        self._now = now
        self._problems: dict[str, str] = {}
        self._concerns: frozenset[Concern] = frozenset()

    def say(self, text: str) -> None:
        """An event; lines after the first are indented below it."""
        time = self.style.dim(self._now().isoformat(timespec="seconds"))
        print(time, text.replace("\n", "\n    "), file=self._out, flush=True)

    def problem(self, about: str, text: str, consequence: str) -> None:
        """Something is wrong with `about`. Nothing is said where the same was said last."""
        if self._problems.get(about) != text:
            self._problems[about] = text
            self.say(f"{self.style.bad(f'{about}:')} {text}\n{consequence}")

    def repeat(self) -> None:
        """Tell problems and warnings again, though they may be the same."""
        self._problems = dict.fromkeys(self._problems, "")
        self._concerns = frozenset()

    def recovered(self, about: str) -> None:
        if self._problems.pop(about, None) is not None:
            self.say(f"{about}: {self.style.good('recovered')}")

    def concerns(self, found: Sequence[Concern]) -> None:
        """The warnings that there are now. Each is told when it begins, and again when it has been over."""
        for concern in found:
            if concern not in self._concerns:
                self.say(f"{self.style.warn('warning:')} {concern.key}: {concern.text}\n{concern.hint}")
        self._concerns = frozenset(found)

    def applied(self, done: Sequence[Change], seconds: float) -> None:
        """Each change that is in place now, and how many there are."""
        for change in done:
            self.say(change_line(change, self.style))
        if done:
            self.say(f"{self.style.good('Applied')}: {applied(done, seconds)}")
