# SPDX-License-Identifier: Apache-2.0
"""How an agent stands, in the words of GitOps: whether the node is in sync with the newest manifests, and whether all
is well."""

from __future__ import annotations

from reconciler.agent.fetching import SOURCE
from reconciler.agent.journal import DEGRADED, HEALTHY, OUT_OF_SYNC, PROGRESSING, SYNCED, UNKNOWN, State
from reconciler.agent.loop import Agent
from reconciler.agent.upkeep import MANIFESTS


def state_of(agent: Agent) -> State:
    """The state of an agent after a round."""
    upkeep, report = agent.upkeep, agent.report
    desired = upkeep.desired.desired if upkeep.desired else None
    if desired is None or report.has_problem(MANIFESTS) or report.has_problem(SOURCE):
        sync = UNKNOWN  # nobody knows what the newest manifests ask for
    elif upkeep.offered or agent.fleet or upkeep.known is None or upkeep.open or agent.is_failing:
        sync = OUT_OF_SYNC
    else:
        sync = SYNCED
    calm = HEALTHY if sync == SYNCED else PROGRESSING
    health = DEGRADED if report.has_problem() or upkeep.resting else calm
    return State(
        sync, health, agent.seen, upkeep.revision, len(desired.resources) if desired else 0, len(upkeep.open),
        agent.held_by, agent.read_s, agent.next_look_s(), agent.manifests.attempted(),
        agent.commits.get(upkeep.revision, ""),
    )  # fmt: skip


def headline(state: State) -> str:
    """The state on one line, for systemd."""
    applied = state.applied_commit or state.applied
    revision = f", manifests {applied[:12]}" if applied else ""
    open_ = f", {state.open:,} not as they should be" if state.open else ""
    if state.paused:
        return f"{state.sync}, {state.paused}"
    return f"{state.sync}, {state.health}: {state.resources:,} resources{open_}{revision}"
