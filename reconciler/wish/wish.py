# SPDX-License-Identifier: Apache-2.0
"""The wish of a whole node, kept up: each pool is judged again only if something about it has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from reconciler.health import state as states
from reconciler.health.roster import Line
from reconciler.health.state import Health, State
from reconciler.health.target import Asked, Target, Use, asked
from reconciler.model import Address, CheckType, Endpoint, Pool, Protocol, Role, Service, place_of
from reconciler.resource import ANY_POOL, Cause
from reconciler.view import NodeView, exchanged
from reconciler.wish.announcing import Announcing
from reconciler.wish.drains import Drain, by_pool, of_pool
from reconciler.wish.judged import Heeded, Judged, Moment, causes, judged
from reconciler.wish.known import NOTHING, Known

REMEMBERED_S, RETURNS_S = 600.0, 60.0
"""How long a target that nobody uses is remembered as down; and as it was otherwise. Manifests may go back and forth,
and that must not bring back an endpoint that is dead."""
_SENT_ON = Protocol.UDP, Protocol.SCTP
"""Nobody tells their clients that an endpoint is dead; those of TCP get a reset."""


@dataclass(slots=True, eq=False)
class _Watched:
    """A pool, who uses it, and what of it is checked. `is_stale`: it is to be judged, or to be judged again."""

    pool: Pool
    users: tuple[Service, ...]
    asked: Asked
    judged: Judged | None = None
    is_stale: bool = True


Dated = tuple[float, State]
"""A state, and until when something was learned of it."""


@dataclass(slots=True)
class Edits:
    """What has changed of what is to be checked: targets of uses, states of targets that came, lines of pools. None
    stands for what is not checked any more."""

    targets: dict[Use, Target | None]
    states: dict[Target, State]
    lines: dict[str, Line | None]


class Wish:
    """What one node is to hold. `of` gives the node's view as it is to be; `learn` and `drain` tell what is known."""

    def __init__(
        self, known: Known = NOTHING, clock: Callable[[], float] = time.monotonic,
        epoch: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.heeded = Heeded(known.changed_s)
        self.targets: dict[Use, Target] = {}
        """All that is to be checked."""
        self.states: dict[bytes, State] = {}
        """Of these targets, by their digests."""
        self._left = {digest: (clock(), state) for digest, state in known.states.items()}
        """The states of targets that nobody uses, and since when."""
        self._former = dict(known.former)
        """The targets that uses had last which nobody asks for."""
        self._drains = known.drains
        self._drains_of = by_pool(known.drains)
        self._clock, self._epoch = clock, epoch
        self.announcing = Announcing(dict(known.conditions), known.leaving, known.suspect_until_s)
        self._watched: dict[str, _Watched] = {}
        self._pools_of: dict[bytes, set[str]] = {}
        self._edits = Edits({}, {}, {})
        self._causes: Causes | None = None
        """Of what the node was last asked to be."""
        self._seen: tuple[NodeView, Sequence[Drain]] | None = None
        """What was last looked through for pools to watch."""

    @property
    def lines(self) -> dict[str, Line]:
        """The pools that are checked."""
        return {name: line for name, watched in self._watched.items() if (line := _line(watched))}

    @property
    def judgements(self) -> Mapping[str, Judged]:
        """Of the pools that are not simply as the manifests say."""
        return {name: watched.judged for name, watched in self._watched.items() if watched.judged}

    @property
    def drains(self) -> Sequence[Drain]:
        return self._drains

    def uses_of(self, digests: Collection[bytes]) -> Iterator[tuple[Pool, Endpoint, bytes]]:
        """The endpoints that have one of these targets, by pool, each with the target's digest."""
        names = {name for digest in digests for name in self._pools_of.get(digest, ())}
        for watched in (self._watched[name] for name in sorted(names)):
            for endpoint, pairs in zip(watched.pool.endpoints, watched.asked, strict=True):
                for digest in dict.fromkeys(target.digest for _, target in pairs):
                    if digest in digests:
                        yield watched.pool, endpoint, digest

    def learn(self, found: Mapping[bytes, State]) -> None:
        """New states of targets, by their digests. That of one that nobody uses any more was on its way when it was
        let go, and counts if somebody uses it again."""
        for digest, state in found.items():
            if digest in self._left:
                self._left[digest] = self._left[digest][0], state
            if digest in self.states:
                self.states[digest] = state
                for name in self._pools_of[digest]:
                    self._watched[name].is_stale = True

    def drain(self, drains: Sequence[Drain]) -> None:
        """From now on, these are the drains."""
        before, self._drains = self._drains_of, tuple(drains)
        now = self._drains_of = by_pool(self._drains)
        for name, watched in self._watched.items():
            if of_pool(before(name), watched.pool) != of_pool(now(name), watched.pool):
                watched.is_stale = True

    @property
    def changes_s(self) -> float:
        """When something changes by itself, by the monotonic clock; infinite if nothing does."""
        pools = (watched.judged.changes_s for watched in self._watched.values() if watched.judged)
        return min((*pools, self.announcing.changes_s), default=inf)

    def take_edits(self) -> Edits:
        """What has changed of what is to be checked since this was last asked."""
        edits, self._edits = self._edits, Edits({}, {}, {})
        return edits

    def of(self, view: NodeView) -> NodeView:
        """The view as the node is to be. Pools that are as before are the same objects."""
        at = Moment(self._clock(), self._epoch())
        self._watch(view, at)
        if not self._watched:
            self._causes = None
            services = self.announcing.of(view, {}, at.now_s)
            return view if services is view.services else replace(view, services=services)
        for name, watched in self._watched.items():
            self._judge(name, watched, at)
        changed = {
            name: watched.judged.wanted for name, watched in self._watched.items()
            if watched.judged and name in view.pools and watched.judged.wanted is not watched.pool
        }  # fmt: skip
        healthy = {name: watched.judged.members.healthy for name, watched in self._watched.items() if watched.judged}
        services = self.announcing.of(view, healthy, at.now_s)
        pools = {**view.pools, **changed} if changed else view.pools
        self._causes = Causes(self, at)
        return replace(view, pools=pools, services=services, causes=self._causes)

    def was_changed_at(self, since_s: float) -> None:
        """Somebody else has changed the node, and knew by then who had come back."""
        self.heeded = Heeded(since_s)

    def were_heeded(self) -> None:
        """The node is as it was last asked to be: who had come back by then is no cause of later changes."""
        if self._causes is not None:
            self.heeded = Heeded(self.heeded.since_s, self._causes.judged, self._causes.at.epoch_s)

    def _judge(self, name: str, watched: _Watched, at: Moment) -> Judged:
        fallback = None
        if watched.pool.fallback_pool is not None and (other := self._watched.get(watched.pool.fallback_pool)):
            former = other.judged
            fallback = self._judge(watched.pool.fallback_pool, other, at)
            watched.is_stale |= fallback is not former
        found = watched.judged
        if found is not None and not watched.is_stale and at.now_s < found.changes_s:
            return found
        of_endpoints = [tuple(self.states[target.digest] for _, target in pairs) for pairs in watched.asked]
        drains = of_pool(self._drains_of(name), watched.pool)
        of_datagrams = [user for user in watched.users if user.protocol is Protocol.UDP]
        fresh = judged(
            watched.pool, of_endpoints, drains, at, fallback,
            only_datagrams=0 < len(of_datagrams) == len(watched.users),
            sends_on=any(user.protocol in _SENT_ON and not user.mode.is_dsr for user in watched.users),
        )  # fmt: skip
        if found is not None and found.wanted == fresh.wanted:
            fresh = replace(fresh, wanted=found.wanted)
        watched.judged, watched.is_stale = fresh, False
        return fresh

    def _watch(self, view: NodeView, at: Moment) -> None:
        """Find out what is to be watched, and keep what is as before."""
        if self._renew(view, at):
            return
        pools = {**view.fallbacks, **view.pools} if view.fallbacks else view.pools
        drained = {drain.pool for drain in self._drains}
        about = {name: pool for name, pool in pools.items() if _is_watched(pool, drained) or name in view.fallbacks}
        users = _users(view.services, pools, about)
        gone = [name for name in self._watched if name not in about]
        fresh: dict[str, _Watched] = {}
        for name, pool in about.items():
            former, of_pool_ = self._watched.get(name), tuple(users.get(name, ()))
            if former is None or former.pool is not pool or former.users != of_pool_:
                fresh[name] = _watched(pool, of_pool_, view)
        if fresh or gone:
            self._exchange(fresh, gone, at.now_s)
        self._seen = view, self._drains

    def _renew(self, view: NodeView, at: Moment) -> bool:
        """Watch what differs from what was seen last, if that are some pools only; returns whether it is so."""
        if self._seen is None:
            return False
        before, drains = self._seen
        if drains is not self._drains or view.node is not before.node or view.fallbacks or before.fallbacks:
            return False
        pools = exchanged(before.pools.values(), view.pools.values())
        if pools is None or exchanged(before.services, view.services) != []:
            return False
        drained = {drain.pool for drain in drains}
        fresh: dict[str, _Watched] = {}
        gone: list[str] = []
        for old, new in pools:
            was, is_now = _is_watched(old, drained), _is_watched(new, drained)
            if old.fallback_pool is not None or new.fallback_pool is not None or (is_now and not was):
                return False
            if is_now:
                fresh[new.name] = _watched(new, self._watched[new.name].users, view)
            elif was:
                gone.append(new.name)
        if fresh or gone:
            self._exchange(fresh, gone, at.now_s)
        self._seen = view, drains
        return True

    def _exchange(self, fresh: Mapping[str, _Watched], gone: Sequence[str], now_s: float) -> None:
        """Put fresh pools in the place of those before, whose targets pass their states on."""
        before: dict[Use, Target] = {}
        for name in (*gone, *fresh):
            if (former := self._watched.pop(name, None)) is None:
                continue
            if _line(former):
                self._edits.lines[name] = None
            for use, target in _pairs(former):
                before[use] = target
                self._pools_of[target.digest].discard(name)
        self._watched |= fresh
        self._edits.lines |= {name: line for name, watched in fresh.items() if (line := _line(watched))}
        after = {use: target for watched in fresh.values() for use, target in _pairs(watched)}
        for use in before.keys() - after.keys():
            del self.targets[use]
            self._edits.targets[use] = None
            self._former[use] = before[use].digest
        heirs: dict[bytes, list[State]] = {}
        relics: dict[bytes, list[Dated]] = {}
        coming: dict[bytes, Target] = {}
        orphans: list[tuple[Use, bytes]] = []
        for use, target in after.items():
            digest, former_target = target.digest, before.get(use)
            if former_target != target:
                self._edits.targets[use] = target
            self.targets[use] = target
            self._pools_of.setdefault(digest, set()).add(use.pool)
            if digest not in self.states:
                coming[digest] = target
                if former_target is not None:
                    heirs.setdefault(digest, []).append(self.states[former_target.digest])
                elif (relic := self._remembered(self._former.get(use, b""), now_s)) is not None:
                    relics.setdefault(digest, []).append(relic)
                else:
                    orphans.append((use, digest))
        for digest, kin in self._dead_kin(orphans, after, now_s):
            relics.setdefault(digest, []).append(kin)
        for digest, target in coming.items():
            own = self._remembered(digest, now_s)
            state = _of_coming(heirs.get(digest, ()), own, relics.get(digest, ()))
            self.states[digest] = self._edits.states[target] = state or states.new(now_s)
            self._left.pop(digest, None)
        for use in after:
            self._former.pop(use, None)
        for target in before.values():
            if not self._pools_of.get(target.digest, True):
                del self._pools_of[target.digest]
                self._left[target.digest] = now_s, self.states.pop(target.digest)
        for digest in [digest for digest, (left_s, _) in self._left.items() if left_s < now_s - REMEMBERED_S]:
            del self._left[digest]
        for use in [use for use, of in self._former.items() if of not in self._left and of not in self.states]:
            del self._former[use]

    def _dead_kin(
        self, orphans: Sequence[tuple[Use, bytes]], after: Mapping[Use, Target], now_s: float
    ) -> Iterator[tuple[bytes, Dated]]:
        """Where an endpoint was dead that is checked at another port or VIP now: so it has to come back by its
        answers, and not by the edit. The others start anew, as their first answer says more."""
        if not orphans:
            return
        gone: dict[tuple[str, Address], list[bytes]] = {}
        for use, digest in self._former.items():
            if use not in after:
                gone.setdefault((use.pool, use.address), []).append(digest)
        for use, digest in orphans:
            for former in gone.get((use.pool, use.address), ()):
                found = self._remembered(former, now_s)
                if found is not None and found[1].health is Health.DOWN:
                    yield digest, (found[0], found[1]._replace(falls=()))

    def _remembered(self, digest: bytes, now_s: float) -> Dated | None:
        """What is known of a target, and until when it was. Of one that was here not long ago, that it was up is no
        news for long; that it was down is until it answers."""
        if (state := self.states.get(digest)) is not None:
            return now_s, state
        left_s, state = self._left.get(digest, (0.0, None))
        if state is None or left_s < now_s - (REMEMBERED_S if state.health is Health.DOWN else RETURNS_S):
            return None
        return left_s, state


def _of_coming(heirs: Sequence[State], own: Dated | None, relics: Sequence[Dated]) -> State | None:
    """What is known of a server whose check comes; what is newest counts. `heirs` are the states by the checks that
    were in its place until now, `own` is its state of the last time, which may be that of a check that was edited
    back, and `relics` are those of checks that were in its place before it left."""
    known = [*relics, *([own] if own else ())]
    if not known or any(state.health is not Health.UNKNOWN for state in heirs):
        return states.inherited_of(heirs) if heirs else None
    newest_s = max(left_s for left_s, _ in known)
    if own is not None and own[0] == newest_s:
        return own[1]
    return states.inherited_of(state for left_s, state in relics if left_s == newest_s)


def _watched(pool: Pool, users: tuple[Service, ...], view: NodeView) -> _Watched:
    is_balancer = view.node.role is Role.BALANCER
    return _Watched(pool, users, asked(pool, users) if is_balancer else ((),) * len(pool.endpoints))


def _is_watched(pool: Pool, drained: Collection[str | None]) -> bool:
    """Whether anything but the manifests may change what a pool is to be, or has to be known of it."""
    is_checked = pool.health_check.type is not CheckType.NONE
    is_drained = None in drained or pool.name in drained
    return is_checked or is_drained or pool.fallback_pool is not None or pool.announce_min is not None


def _users(
    services: Sequence[Service], pools: Mapping[str, Pool], about: Mapping[str, Pool]
) -> dict[str, list[Service]]:
    """The services of these pools; those of pools that fall back to one of them are its services, too."""
    found: dict[str, list[Service]] = {}
    for service in services if about else ():
        if service.pool in about:
            found.setdefault(service.pool, []).append(service)
            if (fallback := pools[service.pool].fallback_pool) is not None:
                found.setdefault(fallback, []).append(service)
    return found


def _pairs(watched: _Watched) -> Iterator[tuple[Use, Target]]:
    return (pair for of_endpoint in watched.asked for pair in of_endpoint)


def _line(watched: _Watched) -> Line | None:
    """What people are told of a pool that is checked."""
    if not any(watched.asked):
        return None
    return watched.pool, tuple(service.name for service in watched.users), watched.asked


class Causes(Mapping[str, Mapping[str, Cause]]):
    """Why pools are other than the manifests say, by their names; worked out when somebody asks."""

    def __init__(self, wish: Wish, at: Moment) -> None:
        self.judged, self.at, self._wish = wish.judgements, at, wish
        self._any: _AnyPool | None = None

    def __getitem__(self, name: str) -> Mapping[str, Cause]:
        if name == ANY_POOL:
            self._any = self._any or _AnyPool(self, self.judged)
            return self._any
        return causes(self.judged[name], self._wish.heeded, self.at)

    def __iter__(self) -> Iterator[str]:
        return iter(self.judged)

    def __len__(self) -> int:
        return len(self.judged)


class _AnyPool(Mapping[str, Cause]):
    """Why connections of endpoints end, or no longer do, by the ids of endpoints, whichever pool says so."""

    def __init__(self, of: Causes, judgements: Mapping[str, Judged]) -> None:
        self._causes = of
        self._pools: dict[str, list[str]] = {}
        for name, each in judgements.items():
            if each.ends or any(each.drains):
                for endpoint in each.pool.endpoints:
                    self._pools.setdefault(place_of(endpoint.address, endpoint.port or 0), []).append(name)

    def __getitem__(self, endpoint: str) -> Cause:
        for name in self._pools[endpoint]:
            if found := self._causes[name].get(endpoint):
                return found
        raise KeyError(endpoint)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)
