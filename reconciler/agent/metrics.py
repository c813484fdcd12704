# SPDX-License-Identifier: Apache-2.0
"""An agent's own metrics, made of its status: sync, health, revisions, conditions, what it has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reconciler.agent.journal import DEGRADED, HEALTHY, OUT_OF_SYNC, PROGRESSING, SYNCED, UNKNOWN
from reconciler.readings.metrics import Family, Type

_SYNC, _HEALTH = (SYNCED, OUT_OF_SYNC, UNKNOWN), (HEALTHY, PROGRESSING, DEGRADED)
_LEVELS = ("error", "warning")


def agent_families(status: Mapping[str, Any]) -> Iterator[Family]:
    """The families of a status, see `journal`."""
    agent, revision = status["agent"], status["revision"]
    info = ((("version", agent["version"]), ("node", agent["node"]), ("instance", agent["instance"])), 1.0)
    yield Family("lbctl_agent_info", Type.GAUGE, "The agent that runs", [info])
    revisions = [((("state", state), ("revision", revision[state])), 1.0) for state in ("attempted", "applied")]
    yield Family("lbctl_revision_info", Type.GAUGE, "The digests of the manifests read last, and in force", revisions)
    for name, words, help_ in (
        ("sync", _SYNC, "Whether the node holds what the newest manifests ask for"),
        ("health", _HEALTH, "Whether all is well"),
    ):
        samples = [((("state", word),), float(status[name] == word)) for word in words]
        yield Family(f"lbctl_{name}", Type.GAUGE, help_, samples)
    yield Family(
        "lbctl_paused", Type.GAUGE, "Whether the node is left as it is", [((), float(bool(status["paused"])))]
    )
    yield Family("lbctl_resources", Type.GAUGE, "Resources asked of the node", [((), float(status["resources"]))])
    yield Family("lbctl_resources_open", Type.GAUGE, "Those not as they should be", [((), float(status["open"]))])
    levels = [condition["level"] for condition in status["conditions"]]
    conditions = [((("level", level),), float(levels.count(level))) for level in _LEVELS]
    yield Family("lbctl_conditions", Type.GAUGE, "Problems and warnings that hold now", conditions)
    changes = [((("reason", reason),), float(count)) for reason, count in sorted(status["counts"].items())]
    yield Family("lbctl_changes_total", Type.COUNTER, "Changes that the agent made, by their reason", changes)
    edits = status.get("edits", {})  # an agent of a former version doesn't tell
    for name, key, type_, help_ in (
        ("edits_total", "count", Type.COUNTER, "Edits of manifests that changed the node"),
        ("edit_seconds_total", "seconds", Type.COUNTER, "Time from a file's change to the last row of its edit"),
        ("edit_seconds", "last_s", Type.GAUGE, "The same of the last edit"),
    ):
        if edits.get(key) is not None:
            yield Family(f"lbctl_{name}", type_, help_, [((), float(edits[key]))])
