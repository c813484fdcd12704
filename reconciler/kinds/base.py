# SPDX-License-Identifier: Apache-2.0
"""The interface of a kind of live objects: which ones a node must hold, how they are read, how they are written."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import ClassVar, TypeVar

from reconciler.kernel.port import Kernel, Outcome
from reconciler.model import Pool, Role, Service
from reconciler.resource import Change, Concern, Key, Reading, Resource, Span
from reconciler.view import Facts, NodeView, Use

Wanted = tuple[Resource, Span]

S = TypeVar("S")
R = TypeVar("R")
R2 = TypeVar("R2", bound=Resource)


class Kind(ABC):
    """One kind, bound to a kernel. `phase` orders writes: creates and updates ascend, deletes descend.

    Only nodes with one of these `roles` need objects of the kind.
    """

    phase: ClassVar[int]
    roles: ClassVar[tuple[Role, ...]] = (Role.BALANCER,)
    resource: ClassVar[type[Resource]]
    is_in_maps: ClassVar[bool] = False
    """Whether the kind's objects are rows of the program's maps, and nothing besides."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        """The resources that this node must hold as a whole, each with the place in the manifests that asks for it.

        Pure. On a balancer it may look at the node, at the traits of services and at `view.sizes` only: if none of
        these changes, it is not asked again.
        """
        return ()

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        """The resources that a balancer must hold for one service. Pure."""
        return ()

    @staticmethod
    def of_pool(pool: Pool, use: Use, facts: Facts) -> Iterable[Wanted]:
        """The resources that a balancer must hold for one pool. Pure."""
        return ()

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        """The one resource of several that have the same key; they are in the order of their services or pools."""
        return claims[-1]

    @abstractmethod
    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        """The resources that the node holds. `wanted` has the keys of this kind that the manifests ask for, with what
        they ask for.

        With `only`, just these keys are asked about, and `wanted` has no others; what else the node holds may be left
        out. A kind that can look up single rows saves the rest of its dump then.

        In canonical form: a resource that was just written reads back equal. Where the kernel holds exactly what is
        wanted, that very object may be returned, so nothing has to be decoded.
        """

    def look(self, wanted: Mapping[Key, Resource]) -> Iterator[Collection[Key]]:
        """Look at all objects of the kind, slice by slice: the keys of which the node seems to hold something else
        than is wanted.

        Whoever waits for this process waits for one slice at most, so none should take longer than 50 ms, whatever the
        node holds. Others may write between two slices. What was read before may then be out of date, and a key named
        or missed for that: so whoever mends anything reads it again, and looks again another time.
        """
        yield differing(self.read(wanted), wanted)

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """Facts about the node that may keep these resources from working though they are in place. Only facts that
        are known for sure. Writes nothing."""
        return ()

    @abstractmethod
    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        """Make the changes; one outcome each, in order.

        Idempotent: it is no error to write a resource that is there or to delete one that is absent, so a change that
        failed half-way can be repeated or taken back.
        """


def differing(reading: Reading, wanted: Mapping[Key, Resource]) -> list[Key]:
    """The keys of which a reading has something else than is wanted; of given resources, the impossible ones, too."""
    held = {resource.key: resource for resource in reading.resources}
    found = [key for key in held if key not in wanted]
    for key, resource in wanted.items():
        if resource.is_given:
            found += (key,) if key in reading.impossible else ()
        elif held.get(key) is not resource and held.get(key) != resource:
            found.append(key)
    return found


def in_parts(wanted: Mapping[Key, R2], size: int) -> Iterator[dict[Key, R2]]:
    """The same resources, so many at a time."""
    items = iter(wanted.items())
    while part := dict(islice(items, size)):
        yield part


def once(make: Callable[[S], R]) -> Callable[[S], R]:
    """A function that several kinds ask about the same object, one after the other; all get the same answer."""
    last: list[tuple[S, R]] = []

    @functools.wraps(make)
    def made(source: S) -> R:
        if not last or last[0][0] is not source:
            last[:] = [(source, make(source))]
        return last[0][1]

    return made


def each(changes: Sequence[Change], outcomes: Iterable[tuple[Change, Outcome]]) -> list[Outcome]:
    """Outcomes in the order of the changes, from pairs in any order; a change without a pair succeeded."""
    found = {id(change): outcome for change, outcome in outcomes}
    return [found.get(id(change)) for change in changes]
