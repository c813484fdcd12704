# SPDX-License-Identifier: Apache-2.0
"""Pools that serve when nobody of another one is healthy."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity, did_you_mean, quote
from reconciler.config.rules.draft import Draft, Finding, rule, title
from reconciler.model import CheckType, OnUnhealthy, WhenNoneHealthy

_FALLBACK = ("spec", "fallbackPool")


@rule("fallback-missing")
def _fallback_missing(draft: Draft) -> Iterator[Finding]:
    """A pool has a fallback that no document declares.

    When nobody of the pool is healthy, there would be nobody else either.

    The way out: correct the name, or declare the pool.
    """
    for pool in draft.pools:
        name = pool.fallback_pool
        if name is not None and name not in draft.pool and not draft.may_declare("Pool", name):
            hint = did_you_mean(name, sorted(draft.pool)) or "declare it in a document with `kind: Pool`"
            yield Finding(pool.span, _FALLBACK, f"there is no Pool named {quote(name)}", hint)


@rule("fallback-of-fallback")
def _fallback_of_fallback(draft: Draft) -> Iterator[Finding]:
    """The fallback of a pool is the pool itself, or has a fallback of its own.

    Such a chain could lead in a circle, and nobody could tell from a pool who serves.

    The way out: a fallback that has none, for example one that isn't checked, of servers that say sorry.
    """
    for pool in draft.pools:
        other = draft.pool.get(pool.fallback_pool or "")
        if other is not None and other.fallback_pool is not None:
            what = "is the pool itself" if other is pool else f"has a fallback of its own ({other.span})"
            message = f"the fallback of {title(pool)} {what}"
            yield Finding(pool.span, _FALLBACK, message, "name a pool without a fallback")


@rule("healthy-without-check", Severity.WARNING)
def _healthy_without_check(draft: Draft) -> Iterator[Finding]:
    """A pool says what happens when its endpoints are unhealthy, but has no health check.

    Without a check all endpoints count as healthy, so that never happens.

    The way out: a `healthCheck`.
    """
    for pool in draft.pools:
        if pool.health_check.type is not CheckType.NONE:
            continue
        for key, is_said in (
            ("whenNoneHealthy", pool.when_none_healthy is not WhenNoneHealthy.ALL),
            ("minHealthy", pool.min_healthy > 1),
            ("slowStart", pool.slow_start_s is not None),
            ("onUnhealthy", pool.on_unhealthy is not OnUnhealthy.KEEP),
        ):  # fmt: skip
            if is_said:
                message = f"{title(pool)} has no health check, so all of its endpoints count as healthy"
                yield Finding(pool.span, ("spec", key), message, "add a healthCheck")
                break
