# SPDX-License-Identifier: Apache-2.0
"""How an agent stands, in the words of GitOps: whether the node is in sync with the newest manifests, and whether all
is well."""

from __future__ import annotations

from reconciler.agent.fetching import SOURCE
from reconciler.agent.journal import DEGRADED, HEALTHY, OUT_OF_SYNC, PROGRESSING, SYNCED, UNKNOWN, State
from reconciler.agent.loop import Agent
from reconciler.agent.upkeep import MANIFESTS


def state_of(agent: Agent, in_force: str | None = None) -> State:
    """The state of an agent after a round. `in_force` is the revision that somebody else has put in force while the
    agent leaves the node as it is, if anybody knows."""
    upkeep, report = agent.upkeep, agent.report
    wanted = upkeep.desired or (upkeep.offered if agent.held_by else None)
    desired = wanted.desired if wanted else None
    if desired is None or report.has_problem(MANIFESTS) or report.has_problem(SOURCE):
        sync = UNKNOWN  # nobody knows what the newest manifests ask for
    elif agent.held_by:
        sync = SYNCED if upkeep.astray == frozenset() and agent.fleet is None else OUT_OF_SYNC
    elif upkeep.offered or agent.fleet or upkeep.known is None or upkeep.open or agent.is_failing:
        sync = OUT_OF_SYNC
    else:
        sync = SYNCED
    calm = HEALTHY if sync == SYNCED else PROGRESSING
    health = DEGRADED if report.has_problem() or upkeep.resting else calm
    open_ = upkeep.open if upkeep.astray is None else upkeep.astray
    applied = upkeep.revision if in_force is None else in_force
    return State(
        sync, health, agent.seen, applied, len(desired.resources) if desired else 0, len(open_),
        agent.held_by, agent.read_s, agent.next_look_s(), agent.manifests.attempted(), agent.commits.get(applied, ""),
        agent.view.node.name if agent.view else "",
    )  # fmt: skip


def headline(state: State) -> str:
    """The state on one line, for systemd."""
    applied = state.applied_commit or state.applied
    revision = f", manifests {applied[:12]}" if applied else ""
    open_ = f", {state.open:,} not as they should be" if state.open else ""
    if state.paused:
        return f"{state.sync}, {state.paused}"
    return f"{state.sync}, {state.health}: {state.resources:,} resources{open_}{revision}"
