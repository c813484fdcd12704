# SPDX-License-Identifier: Apache-2.0
"""The agent's log: a line for each event, with its time, in the words of a plan; or the same as JSON, a line each."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TextIO

from reconciler.agent.event import Event, What
from reconciler.render.style import Style
from reconciler.render.text import DONE, SIGNS, applied, change_line, change_lines
from reconciler.resource import Change, Concern, Key
from reconciler.safe import SHOWN, line

PLAIN = Style()
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
Listener = Callable[[Event], None]


def local_time() -> datetime:
    return datetime.now().astimezone()


class Report:
    """Writes to `out`, each line at once, and tells `listeners` each event. A problem is told when it begins, when it
    changes and when it ends.

    A log that can't be written doesn't stop the agent: missed lines are counted, and their number is logged when it
    can be written again.
    """

    def __init__(
        self, out: TextIO, style: Style, now: Callable[[], datetime] = local_time, *,
        listeners: Sequence[Listener] = (), as_json: bool = False,
    ) -> None:  # fmt: skip
        self.style = style
        self._out = out
        self._now = now
        self._listeners = listeners
        self._as_json = as_json
        self._problems: dict[str, str] = {}
        self._concerns: frozenset[Concern] = frozenset()
        self._unsaid = 0
        self._lock = threading.Lock()

    def say(self, text: str, about: str = "", **facts: str) -> None:
        """An event; lines after the first are indented below it."""
        self._tell(Event(self._now(), What.NOTE, text, about, facts=facts), text)

    def alarm(self, text: str, about: str = "") -> None:
        self._tell(Event(self._now(), What.ALARM, text, about), self.style.bad(text))

    def command(self, text: str, **facts: Any) -> None:
        """Somebody asked for something."""
        self._tell(Event(self._now(), What.COMMAND, text, facts=facts), text)

    def problem(self, about: str, text: str, consequence: str) -> None:
        """Report a problem with `about`, unless its last report was the same."""
        if self._problems.get(about) != text:
            self._problems[about] = text
            event = Event(self._now(), What.PROBLEM, text, about, consequence)
            self._tell(event, f"{self.style.bad(f'{about}:')} {text}\n{consequence}")

    def has_problem(self, about: str = "") -> bool:
        """Whether there is a problem now, with `about` or at all."""
        return about in self._problems if about else bool(self._problems)

    def begins(self, count: int) -> None:
        """So many changes are about to be made; the log hears of them when they are."""
        text = f"{count:,} change{'' if count == 1 else 's'} to be made"
        self._pass_on(Event(self._now(), What.BEGINS, text, facts={"changes": count}))

    def repeat(self) -> None:
        """Write the next report of each problem and warning even if it is unchanged."""
        self._problems = dict.fromkeys(self._problems, "")
        self._concerns = frozenset()

    def recovered(self, about: str) -> None:
        if self._problems.pop(about, None) is not None:
            event = Event(self._now(), What.RECOVERED, "recovered", about)
            self._tell(event, f"{about}: {self.style.good('recovered')}")

    def warning(self, about: str, text: str, hint: str) -> None:
        """A warning that holds until it is `over`."""
        told = f"{self.style.bad(f'{about}: {text}')}\n{hint}"
        self._tell(Event(self._now(), What.WARNING, text, about, hint), told)

    def over(self, about: str, text: str) -> None:
        self._tell(Event(self._now(), What.OVER, text, about), f"{about}: {self.style.good('over')}: {text}")

    def concerns(self, found: Sequence[Concern]) -> None:
        """Report the present warnings: each when it begins, and again if it comes back after it was over. Of many that
        begin at once, the log names some."""
        for concern in self._concerns.difference(found):
            self._pass_on(Event(self._now(), What.OVER, concern.text, str(concern.key)))
        new = [concern for concern in found if concern not in self._concerns]
        for number, concern in enumerate(new):
            event = Event(self._now(), What.WARNING, concern.text, str(concern.key), concern.hint)
            if number < SHOWN:
                self._tell(event, f"{self.style.warn('warning:')} {concern.key}: {concern.text}\n{concern.hint}")
            else:
                self._pass_on(event)
        if (left := len(new) - SHOWN) > 0:
            self.say(f"{self.style.warn('warning:')} and {left:,} more of these")
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
            self._changes(group[:SHOWN], texts, revision)
            if len(group) > SHOWN:
                sign, kind = SIGNS[group[0].action], group[0].key.kind
                self.say(f"{sign} {kind}: and {len(group) - SHOWN:,} more")
        if done:
            text = applied(done, seconds)
            counts = {word: sum(change.action is action for change in done) for action, word in DONE.items()}
            reasons = dict(Counter(change.reason.value for change in done))
            facts = {
                "changes": len(done),
                **counts,
                "reasons": reasons,
                "seconds": round(seconds, 3),
                "revision": revision,
            }
            event = Event(self._now(), What.APPLIED, text, facts=facts)
            self._tell(event, f"{self.style.good('Applied')}: {text} Manifests {revision[:12]}")

    def _changes(self, changes: Sequence[Change], effects: Mapping[Key, str], revision: str) -> None:
        for change in changes:
            effect = effects.get(change.key, "")
            text = change_line(change, self.style)
            if self.style.columns is None:
                text = _in_a_file(change, effect, revision)
            elif change.before is not None:
                first, *rest = change_lines(change, effect, self.style)
                if len(rest) > SHOWN:
                    rest[SHOWN - 2 : -1] = [f"and {len(rest) - SHOWN + 1} more"]
                text = "\n".join([first.strip(), *(line.removeprefix("      ") for line in rest)])
            event = Event(self._now(), What.CHANGE, _plain(change), str(change.key), facts={
                "action": change.action.value, "reason": change.reason.value,
                "origin": str(change.origin) if change.origin and change.origin.file else None,
                "cause": change.cause, "effect": effect, "revision": revision,
            })  # fmt: skip
            self._tell(event, text)

    def _tell(self, event: Event, text: str) -> None:
        with self._lock:  # the control socket has threads of its own
            self._write(json.dumps(event.to_json()) if self._as_json else self._line(event, text))
        self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event if "\x1b" not in event.text else replace(event, text=_COLOURS.sub("", event.text)))

    def _line(self, event: Event, text: str) -> str:
        time = self.style.dim(event.time.isoformat(timespec="seconds"))
        return f"{time} " + text.replace("\n", "\n    ")

    def _write(self, line: str) -> None:
        missed = ""
        if self._unsaid:
            note = f"{self._unsaid:,} lines before this one could not be written"
            event = Event(self._now(), What.NOTE, note)
            missed = (json.dumps(event.to_json()) if self._as_json else self._line(event, note)) + "\n"
        try:
            print(f"{missed}{line}", file=self._out, flush=True)
        except (OSError, ValueError):  # the disk is full, the pipe is broken, the encoding lacks a character
            self._unsaid += 1
        else:
            self._unsaid = 0


def _in_a_file(change: Change, effect: str, revision: str) -> str:
    """The change on one line with all that is known of it: who reads a file, or a journal, has no other."""
    because, traffic = f"because: {change.cause}" if change.cause else "", f"traffic: {effect}" if effect else ""
    parts = _plain(replace(change, cause="")), because, traffic, f"manifests: {revision[:12]}"
    return line("  ".join(filter(None, parts)))


def _plain(change: Change) -> str:
    """The change on one line, e.g. `~ ring web/round-robin  10.2.0.11:8080  50.0% -> 33.3%`."""
    if change.before is None:
        return " ".join(change_line(change, PLAIN).split())
    first, *rest = change_lines(change, "", PLAIN)
    fields = [" ".join(line.split()) for line in rest[:SHOWN]]
    more = [f"and {len(rest) - SHOWN} more"] if len(rest) > SHOWN else []
    return "  ".join([" ".join(first.split()), *fields, *more])
