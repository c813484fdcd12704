# SPDX-License-Identifier: Apache-2.0
"""The agent's log: a line for each event, with its time, in the words of a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TextIO

from reconciler.render.style import Style
from reconciler.render.text import SIGNS, applied, change_line, change_lines
from reconciler.resource import Change, Concern, Key
from reconciler.safe import SHOWN


def local_time() -> datetime:
    return datetime.now().astimezone()


class Report:
    """Writes to `out`, each line at once. A problem is told when it begins, when it changes and when it ends.

    A log that can't be written doesn't stop the agent: missed lines are counted, and their number is logged when it
    can be written again.
    """

    def __init__(self, out: TextIO, style: Style, now: Callable[[], datetime] = local_time) -> None:
        self.style = style
        self._out = out
        self._now = now
        self._problems: dict[str, str] = {}
        self._concerns: frozenset[Concern] = frozenset()
        self._unsaid = 0

    def say(self, text: str) -> None:
        """An event; lines after the first are indented below it."""
        time = self.style.dim(self._now().isoformat(timespec="seconds"))
        missed = f"{time} {self._unsaid:,} lines before this one could not be written\n" if self._unsaid else ""
        try:
            print(f"{missed}{time}", text.replace("\n", "\n    "), file=self._out, flush=True)
        except (OSError, ValueError):  # the disk is full, the pipe is broken, the encoding lacks a character
            self._unsaid += 1
        else:
            self._unsaid = 0

    def alarm(self, text: str) -> None:
        self.say(self.style.bad(text))

    def problem(self, about: str, text: str, consequence: str) -> None:
        """Report a problem with `about`, unless its last report was the same."""
        if self._problems.get(about) != text:
            self._problems[about] = text
            self.say(f"{self.style.bad(f'{about}:')} {text}\n{consequence}")

    def repeat(self) -> None:
        """Write the next report of each problem and warning even if it is unchanged."""
        self._problems = dict.fromkeys(self._problems, "")
        self._concerns = frozenset()

    def recovered(self, about: str) -> None:
        if self._problems.pop(about, None) is not None:
            self.say(f"{about}: {self.style.good('recovered')}")

    def concerns(self, found: Sequence[Concern]) -> None:
        """Report the present warnings: each when it begins, and again if it comes back after it was over."""
        for concern in found:
            if concern not in self._concerns:
                self.say(f"{self.style.warn('warning:')} {concern.key}: {concern.text}\n{concern.hint}")
        self._concerns = frozenset(found)

    def applied(
        self, done: Sequence[Change], effects: Callable[[Collection[Change]], Mapping[Key, str]], seconds: float,
        revision: str,
    ) -> None:  # fmt: skip
        """Report the changes that were made, their number, and the digest of the manifests that asked for them.

        For resources that existed before, the report says how they changed, and the effect on traffic. Of many changes
        of one kind it names some.
        """
        groups: dict[tuple[str, str], list[Change]] = {}
        for change in done:
            groups.setdefault((change.action.value, change.key.kind), []).append(change)
        shown = [change for group in groups.values() for change in group[:SHOWN]]
        texts = effects(shown)
        for group in groups.values():
            self._changes(group[:SHOWN], texts)
            if len(group) > SHOWN:
                sign, kind = SIGNS[group[0].action], group[0].key.kind
                self.say(f"{sign} {kind}: and {len(group) - SHOWN:,} more")
        if done:
            self.say(f"{self.style.good('Applied')}: {applied(done, seconds)} Manifests {revision[:12]}")

    def _changes(self, changes: Sequence[Change], effects: Mapping[Key, str]) -> None:
        for change in changes:
            if change.before is None:
                self.say(change_line(change, self.style))
                continue
            first, *rest = change_lines(change, effects.get(change.key, ""), self.style)
            if len(rest) > SHOWN:
                rest[SHOWN - 2 : -1] = [f"and {len(rest) - SHOWN + 1} more"]
            self.say("\n".join([first.strip(), *(line.removeprefix("      ") for line in rest)]))
