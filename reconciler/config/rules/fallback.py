# SPDX-License-Identifier: Apache-2.0
"""Pools that serve when nobody of another one is healthy.

Services whose pool has a fallback are services of the fallback as well, see `Use`: the rules about pools and their
services hold for both.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity, did_you_mean, quote
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.names import MAX_SUGGESTIONS
from reconciler.config.rules.parts import Members, Use
from reconciler.config.rules.rule import Finding, place, rule, title
from reconciler.model import CheckType, EndpointState, OnUnhealthy, WhenNoneHealthy

_FALLBACK = ("spec", "fallbackPool")


@rule("fallback-missing", Draft)
def _fallback_missing(draft: Draft) -> Iterator[Finding]:
    """A pool has a fallback that no document declares.

    When nobody of the pool is healthy, there would be nobody else either.

    The way out: correct the name, or declare the pool.
    """
    missing = [use for use in draft.uses_of(draft.missing_fallbacks) if not use.may_be_declared]
    missing.sort(key=lambda use: place(use.fallback_of[0].pool))
    for i, use in enumerate(missing):
        hint = did_you_mean(use.name, sorted(draft.pool_names)) if i < MAX_SUGGESTIONS else ""
        hint = hint or "declare it in a document with `kind: Pool`"
        for members in use.fallback_of:
            yield Finding(members.pool.span, _FALLBACK, f"there is no Pool named {quote(use.name)}", hint)


@rule("fallback-of-fallback", Use)
def _fallback_of_fallback(use: Use) -> Iterator[Finding]:
    """The fallback of a pool is the pool itself, or has a fallback of its own.

    Such a chain could lead in a circle, and nobody could tell from a pool who serves.

    The way out: a fallback that has none, for example one that isn't checked, of servers that say sorry.
    """
    if use.pool is None or use.pool.pool.fallback_pool is None:
        return
    other = use.pool.pool
    for pool in (members.pool for members in use.fallback_of):
        what = "is the pool itself" if other is pool else f"has a fallback of its own ({other.span})"
        message = f"the fallback of {title(pool)} {what}"
        yield Finding(pool.span, _FALLBACK, message, "name a pool without a fallback")


@rule("healthy-without-check", Members, Severity.WARNING)
def _healthy_without_check(members: Members) -> Iterator[Finding]:
    """A pool says what happens when its endpoints are unhealthy, but has no health check.

    Without a check all endpoints count as healthy, so that never happens.

    The way out: a `healthCheck`.
    """
    pool = members.pool
    if pool.health_check.type is not CheckType.NONE:
        return
    said = (
        ("whenNoneHealthy", pool.when_none_healthy is not WhenNoneHealthy.ALL),
        ("minHealthy", pool.min_healthy > 1),
        ("slowStart", pool.slow_start_s is not None),
        ("onUnhealthy", pool.on_unhealthy is not OnUnhealthy.KEEP),
    )
    key = next((key for key, is_said in said if is_said), None)
    if key is not None:
        message = f"{title(pool)} has no health check, so all of its endpoints count as healthy"
        yield Finding(pool.span, ("spec", key), message, "add a healthCheck")


@rule("min-healthy-beyond", Members, Severity.WARNING)
def _min_healthy_beyond(members: Members) -> Iterator[Finding]:
    """A pool asks for more healthy endpoints than it has that take new connections.

    So it counts as unhealthy even if all are well: `whenNoneHealthy` holds for ever, with `all` for dead endpoints
    too, no drain is allowed without `--force`, and by `announceMin` its VIPs are never announced. It may be wanted
    while endpoints are draining, so it is no error.

    The way out: a number of at most as many as there are, or more endpoints.
    """
    pool = members.pool
    active = sum(e.weight > 0 and e.state is EndpointState.ACTIVE for e in pool.endpoints)
    if not active or pool.health_check.type is CheckType.NONE:
        return
    for key, least in (("minHealthy", pool.min_healthy), ("announceMin", pool.announce_min)):
        if least is not None and least > active:
            message = f"{title(pool)} asks for {least:,} healthy endpoints, and only {active:,} can be"
            hint = f"{active} at most, or more endpoints that are active with a weight above 0"
            yield Finding(pool.span, ("spec", key), message, hint)
            return
