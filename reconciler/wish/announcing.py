# SPDX-License-Identifier: Apache-2.0
"""Whether what a balancer announces works: each condition that fails is named, and one that comes and goes is damped.

About the node: its gateways answer, it doesn't suspect itself, nobody drains it. About a service: enough endpoints of
its pool are healthy. (That programs, rings and rows are in place is what resources wait for, see `kinds`.) Times are
seconds of the monotonic clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from reconciler import private
from reconciler.model import Pool, Service
from reconciler.telling import ANNOUNCED, Form, Telling, ToldService, told
from reconciler.view import NodeView

FILE = "announcing.json"
FIRST_HOLD_S, LAST_HOLD_S = 2.0, 300.0
"""How long a condition has to hold again before it counts: twice as long each time, after so many failures."""
MEMORY_S = 900.0
"""For how long a failure counts."""
SUSPECT = "suspect"


@dataclass(frozen=True, slots=True)
class Leaving:
    """Somebody drains the whole balancer. `until_s` infinite: until it is undone."""

    by: str
    since_s: float
    until_s: float = inf

    def is_on(self, now_s: float) -> bool:
        return now_s < self.until_s


@dataclass(frozen=True, slots=True)
class Condition:
    """`falls`: when it failed lately. `since_s`: since when it fails, or holds again."""

    falls: tuple[float, ...]
    since_s: float
    fails: bool

    def counts_s(self) -> float:
        """From when on it counts as holding."""
        if self.fails:
            return inf
        return self.since_s + min(LAST_HOLD_S, FIRST_HOLD_S * 2.0 ** min(16, len(self.falls) - 1))


Conditions = Mapping[str, Condition]


def after(former: Condition | None, fails: bool, now_s: float) -> Condition | None:
    """A condition after a look at it; None: there is nothing to remember of it."""
    falls = tuple(fall for fall in former.falls if fall > now_s - MEMORY_S) if former else ()
    if fails and (former is None or not former.fails):
        return Condition((*falls, now_s), now_s, True)
    if former is None or fails:
        return former
    if former.fails:
        return Condition(falls or (now_s,), now_s, False)
    return replace(former, falls=falls) if falls or now_s < former.counts_s() else None


@dataclass(slots=True)
class Announcing:
    """Of one node."""

    conditions: dict[str, Condition] = field(default_factory=dict)
    leaving: Leaving | None = None
    suspect_until_s: float = 0.0
    tellings: dict[str, Telling] = field(default_factory=dict)
    """Of the services about whose VIPs routers hear something else than the manifests say."""
    changes_s: float = inf
    """When something changes by itself."""
    _told: dict[str, tuple[Service, ToldService]] = field(default_factory=dict)

    def of(self, view: NodeView, healthy: Mapping[str, int], now_s: float) -> tuple[Service, ...]:
        """The services of a view, with how routers hear of them. `healthy` are how many endpoints of a pool are, for
        pools about which something is known."""
        announce = view.node.announce
        if announce is None:
            self.tellings, self.changes_s, self._told = {}, inf, {}
            return view.services
        pools = {name: view.pools[name] for name in healthy if name in view.pools}
        failing = {f"gateway {gateway}": f"the gateway {gateway} does not answer" for gateway in view.silent_gateways}
        if now_s < self.suspect_until_s:
            failing[SUSPECT] = "nearly all endpoints fell silent at once, so this node may have lost its way to them"
        short = {f"pool {n}": _shortage(p, healthy[n]) for n, p in pools.items() if healthy[n] < p.least_announced}
        self._look(failing.keys() | short.keys(), now_s)
        held = {key: self._text(key, failing, short, now_s) for key in self.conditions}
        held = {key: text for key, text in held.items() if text}
        form = Form.WITHDRAWN if announce.degraded_metric is None else Form.DEGRADED
        of_node = self._of_node(announce.grace_s, held, form, now_s)
        of_pools = {n: Telling(form, (held[f"pool {n}"],)) for n in view.pools if f"pool {n}" in held}
        self.changes_s = self._next_s(announce.grace_s, now_s)
        if of_node is None and not of_pools:
            self.tellings, self._told = {}, {}
            return view.services
        return tuple(self._services(view, of_node, of_pools))

    @property
    def stored(self) -> Stored:
        """What is worth writing down."""
        withheld = {
            str(vip): telling.why for name, telling in self.tellings.items() for vip in self._told[name][0].vips
        }  # fmt: skip
        return Stored(dict(self.conditions), withheld)

    def _look(self, failing: frozenset[str] | set[str], now_s: float) -> None:
        for key in failing | self.conditions.keys():
            found = after(self.conditions.get(key), key in failing, now_s)
            if found is None:
                self.conditions.pop(key, None)
            else:
                self.conditions[key] = found

    def _text(self, key: str, failing: Mapping[str, str], short: Mapping[str, str], now_s: float) -> str:
        """What speaks against VIPs; empty if the condition counts as holding."""
        condition = self.conditions[key]
        if condition.fails:
            return failing.get(key) or short[key]
        if now_s >= condition.counts_s():
            return ""
        times = f"{len(condition.falls)} times lately" if len(condition.falls) > 1 else "a moment ago"
        return f"{key} failed {times}, and has to hold for a while first"

    def _of_node(self, grace_s: float, held: Mapping[str, str], otherwise: Form, now_s: float) -> Telling | None:
        """What routers hear of all VIPs; None: nothing about the node speaks against them."""
        if self.leaving is not None and self.leaving.is_on(now_s):
            form = Form.WITHDRAWN if now_s >= self.leaving.since_s + grace_s else Form.LEAVING
            return Telling(form, (f"this balancer is drained {self.leaving.by}",), is_drained=True)
        why = tuple(text for key, text in sorted(held.items()) if not key.startswith("pool "))
        return Telling(otherwise, why) if why else None

    def _services(
        self, view: NodeView, of_node: Telling | None, of_pools: Mapping[str, Telling]
    ) -> Iterator[Service]:
        """The same object for the same telling: what is as before is no work."""
        former, self._told, self.tellings = self._told, {}, {}
        for service in view.services:
            telling = of_node or of_pools.get(service.pool, ANNOUNCED)
            if telling is ANNOUNCED:
                yield service
                continue
            source, made = former.get(service.name, (None, None))
            if made is None or source is not service or made.telling != telling:
                made = told(service, telling)
            self._told[service.name], self.tellings[service.name] = (service, made), telling
            yield made

    def _next_s(self, grace_s: float, now_s: float) -> float:
        times = [c.counts_s() for c in self.conditions.values()] + [self.suspect_until_s]
        if self.leaving is not None:
            times += [self.leaving.since_s + grace_s, self.leaving.until_s]
        return min((time_s for time_s in times if time_s > now_s), default=inf)


def _shortage(pool: Pool, healthy: int) -> str:
    of, least = len(pool.endpoints), pool.least_announced
    return f"pool {pool.name}: {healthy} of {of} endpoints are healthy, announceMin is {least}"


@dataclass(frozen=True, slots=True)
class Stored:
    """What an agent has written down. `withheld`: what speaks against VIPs, by their addresses."""

    conditions: Conditions = field(default_factory=dict)
    withheld: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read(path: Path) -> Stored:
    """Nothing if there is no file, or a damaged one: then flapping is damped anew. Raises FilesError if others could
    have written it."""
    try:
        found = json.loads(private.read(path) or b'{"conditions": {}, "withheld": {}}')
        conditions = {
            str(key): Condition(tuple(map(float, falls)), float(since_s), bool(fails))
            for key, (falls, since_s, fails) in found["conditions"].items()
        }
        return Stored(conditions, {str(vip): tuple(map(str, why)) for vip, why in found["withheld"].items()})
    except (ValueError, TypeError, KeyError, AttributeError):
        return Stored()


def write(path: Path, stored: Stored) -> None:
    """Raises FilesError."""
    conditions = {key: [c.falls, c.since_s, c.fails] for key, c in stored.conditions.items()}
    private.write(path, json.dumps({"conditions": conditions, "withheld": stored.withheld}).encode())
