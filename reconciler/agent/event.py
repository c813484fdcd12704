# SPDX-License-Identifier: Apache-2.0
"""What happens to an agent, as facts: its log, its status and those who follow it are made of the same events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

FORMAT_VERSION = 1
"""Of an event in JSON; it changes only if readers must change."""


class What(StrEnum):
    NOTE = "note"
    ALARM = "alarm"
    PROBLEM = "problem"
    """Something about the manifests, the watch or the node is wrong, until it is RECOVERED."""
    RECOVERED = "recovered"
    WARNING = "warning"
    """Something about the node may keep it from working though it is there, until it is OVER."""
    OVER = "over"
    BEGINS = "begins"
    """Changes are about to be made."""
    CHANGE = "change"
    APPLIED = "applied"
    COMMAND = "command"
    """Somebody asked for something on the control socket."""


_LEVELS = {What.ALARM: "error", What.PROBLEM: "error", What.WARNING: "warning"}


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `about` names the resource or the part of the agent, `hint` is the consequence or the way out."""

    time: datetime
    what: What
    text: str
    about: str = ""
    hint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        return _LEVELS.get(self.what, "info")

    def to_json(self) -> dict[str, Any]:
        """An object with only the fields that say something."""
        told = {"about": self.about, "hint": self.hint, **self.facts}
        return {
            "format_version": FORMAT_VERSION,
            "time": self.time.isoformat(timespec="milliseconds"),
            "level": self.level,
            "event": self.what.value,
            "message": self.text,
            **{name: value for name, value in told.items() if value not in ("", None)},
        }
