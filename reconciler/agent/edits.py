# SPDX-License-Identifier: Apache-2.0
"""Measures edits: how long it takes from a file's change until the node holds the last row that it asks for."""

from __future__ import annotations

from collections.abc import Callable

from reconciler.agent.loop import Agent


class EditClock:
    """Looks at an agent after each of its rounds; `edited` is told of each edit that is in force, with its seconds."""

    def __init__(self, edited: Callable[[float], None]) -> None:
        self._edited = edited
        self._revision = ""
        self._heard_s: float | None = None

    def look(self, agent: Agent, heard_s: float | None) -> None:
        """`heard_s`: when files were first heard to change that the agent has read by now; None: never."""
        former, self._revision = self._revision, agent.upkeep.revision
        before, self._heard_s = self._heard_s, heard_s
        if not former or former == self._revision or heard_s is None or heard_s == before:
            return  # the first manifests, or found by looking: nobody knows when they came
        if agent.upkeep.written_s > heard_s:
            self._edited(agent.upkeep.written_s - heard_s)
