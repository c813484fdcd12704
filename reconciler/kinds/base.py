# SPDX-License-Identifier: Apache-2.0
"""What a kind of live object is: what nodes want of it, how it is read, how it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

from reconciler.kernel.port import Kernel, Outcome
from reconciler.model import Role
from reconciler.resource import Change, Concern, Key, Reading, Resource, Span
from reconciler.view import NodeView

Wanted = tuple[Resource, Span]


class Kind(ABC):
    """One kind, bound to a kernel. `phase` orders writes: creates and updates ascend, deletes descend.

    Only nodes of one of the `roles` want anything of it.
    """

    phase: ClassVar[int]
    roles: ClassVar[tuple[Role, ...]] = (Role.BALANCER,)
    resource: ClassVar[type[Resource]]

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @staticmethod
    @abstractmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        """What this node must hold, each with the place in the manifests that asks for it. Pure."""

    @abstractmethod
    def read(self, wanted: Collection[Key]) -> Reading:
        """What the node holds. `wanted` are keys of this kind that the manifests ask for.

        One dump, in canonical form: a resource that was just written reads back equal.
        """

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """What about the node may keep these from working, though they will be there. Only what is known for sure
        is said. Writes nothing."""
        return ()

    @abstractmethod
    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        """Make the changes; one outcome each, in order.

        Idempotent: writing what is there and deleting what is absent are no errors, so that a change that
        failed half-way can be repeated or taken back.
        """


def each(changes: Sequence[Change], outcomes: Iterable[tuple[Change, Outcome]]) -> list[Outcome]:
    """Outcomes in the order of the changes, from pairs in any order; a change without a pair is done."""
    found = {id(change): outcome for change, outcome in outcomes}
    return [found.get(id(change)) for change in changes]
