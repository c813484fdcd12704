# SPDX-License-Identifier: Apache-2.0
"""All rules about how manifests fit together, over a tree that changes from one check to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

from reconciler.config.rules.draft import Draft
from reconciler.config.rules.parts import Carried, FileParts
from reconciler.config.rules.rule import MAX_RIVALS, Told, findings
from reconciler.resource import Span

K = TypeVar("K")


class Checker:
    """A draft, and the findings about its parts, each of which hold until the part changes."""

    def __init__(self) -> None:
        self.draft = Draft()
        self._uses: dict[str, list[Told]] = {}
        self._vips: dict[int, list[Told]] = {}
        self._carried: dict[int, list[Told]] = {}  # by the `id` of the service

    def check(self, files: Sequence[FileParts], *, unread: bool) -> list[Told]:
        """The findings of all rules about more than a single object, in files in order of their names."""
        draft = self.draft
        changed = draft.update(files, unread=unread)
        _forget(self._uses, changed.uses)
        for use in draft.uses_of(changed.uses):
            if about := findings(use):
                self._uses[use.name] = about
        vips: Iterable[int] = draft.vips if changed.around else changed.vips
        _forget(self._vips, chain(vips, changed.vips))
        for vip in draft.vips_of(vips):
            if about := findings(vip):
                self._vips[vip.number] = about
        services = draft.services if changed.around else changed.new
        _forget(self._carried, map(id, chain(services, changed.gone)))
        for service in services:
            if about := findings(Carried(service, draft.around)):
                self._carried[id(service)] = about
        parts = chain(self._uses.values(), self._vips.values(), self._carried.values())
        found = chain.from_iterable(parts)
        return [*_distinct(found), *findings(draft)]


def _forget(memory: dict[K, list[Told]], keys: Iterable[K]) -> None:
    for key in keys:
        memory.pop(key, None)


def _distinct(found: Iterable[Told]) -> Iterator[Told]:
    """The findings, of those about the same two objects the first, and only some for each object."""
    rivals: dict[tuple[str, Span], dict[Span, Told]] = {}
    for told in found:
        rule, finding = told
        if finding.rival is None:
            yield told
            continue
        group = rivals.setdefault((rule.name, finding.span), {})
        other = group.get(finding.rival)
        if other is None or (finding.rank, finding.message) < (other[1].rank, other[1].message):
            group[finding.rival] = told
    for group in rivals.values():
        for rival in sorted(group)[:MAX_RIVALS]:
            yield group[rival]
