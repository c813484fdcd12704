# SPDX-License-Identifier: Apache-2.0
"""Names, and references to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reconciler.config.diagnostic import Severity, did_you_mean, quote
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.parts import Use
from reconciler.config.rules.rule import Finding, also, place, rule, title
from reconciler.model import Labels, Node, Pool, Service

MAX_SUGGESTIONS = 20  # a misspelt name or two are worth a search; a thousand are no typing errors


@rule("duplicate-name", Draft)
def _duplicate_name(draft: Draft) -> Iterator[Finding]:
    """Two documents of one kind have the same name.

    A service that names the pool `web` would get one of the two, depending on the names of files; and counters
    and lines of a plan could mean either.

    The way out: give each a name of its own. Documents of different kinds may share a name.
    """
    yield from _declared_again(draft.nodes)
    for services in draft.namesakes:
        yield from _declared_again(services)


@also("duplicate-name", Use)
def _duplicate_pool(use: Use) -> Iterator[Finding]:
    yield from _declared_again(members.pool for members in use.pools)


def _declared_again(items: Iterable[Service | Pool | Node]) -> Iterator[Finding]:
    first: dict[str, Service | Pool | Node] = {}
    for item in items:
        if (other := first.setdefault(item.name, item)) is not item:
            message = f"{title(item)} is declared already ({other.span})"
            yield Finding(item.span, ("metadata", "name"), message, "give each a name of its own")


@rule("service-pool-missing", Draft)
def _service_pool_missing(draft: Draft) -> Iterator[Finding]:
    """A service names a pool that no document declares.

    The service would have no endpoints: every connection to it would be dropped.

    The way out: correct the name, or declare the pool. Names are compared exactly, and a pool may stand in any
    file of the directory.
    """
    missing = [use for use in draft.uses_of(draft.missing_pools) if not use.may_be_declared]
    named = [(use, [service for service in use.services if service.pool == use.name]) for use in missing]
    named.sort(key=lambda item: place(item[1][0]))
    for i, (use, services) in enumerate(named):
        hint = did_you_mean(use.name, sorted(draft.pool_names)) if i < MAX_SUGGESTIONS else ""
        hint = hint or "declare it in a document with `kind: Pool`"
        for service in services:
            yield Finding(service.span, ("spec", "pool"), f"there is no Pool named {quote(use.name)}", hint)


@rule("pool-unused", Use, Severity.WARNING)
def _pool_unused(use: Use) -> Iterator[Finding]:
    """No service names this pool, or a pool whose fallback it is.

    Its endpoints get no connections. Often a renamed or deleted service left it behind, and one day somebody will edit
    it and wonder why nothing changes.

    The way out: remove the pool, or name it in a service.
    """
    for members in use.pools:
        if not use.services and not use.may_be_named:
            hint = "remove it, or name it in the `pool` of a service"
            yield Finding(members.pool.span, ("metadata", "name"), f"no Service uses {title(members.pool)}", hint)


@rule("node-selector-unmatched", Draft)
def _node_selector_unmatched(draft: Draft) -> Iterator[Finding]:
    """No balancer has all the labels that the `nodeSelector` of a service asks for.

    Then no balancer carries the service. There is no error anywhere: its VIP just never answers.

    The way out: correct the labels, here or in the `metadata` of the nodes. A balancer must have all of them;
    nodes of other roles don't count.
    """
    unmatched = {selector for selector, _ in draft.needs if selector and not draft.around.carriers(selector)}
    if not unmatched or draft.may_declare("Node"):
        return
    hints: dict[Labels, str] = {}
    for service in draft.services:
        selector = service.node_selector
        if selector not in unmatched:
            continue
        if selector not in hints:
            hints[selector] = _label_hint(draft, selector) if len(hints) < MAX_SUGGESTIONS else ""
        wanted = ", ".join(f"{label}: {value}" for label, value in selector)
        message = f"no balancer has the labels that {title(service)} selects: {wanted}"
        yield Finding(service.span, ("spec", "nodeSelector"), message, hints[selector])


def _label_hint(draft: Draft, selector: Labels) -> str:
    """A hint at the label that was probably meant by the first one that no balancer has."""
    known = {label for node in draft.balancers for label in node.labels}
    if not known:
        return "no balancer has labels: add them to the `metadata` of a Node"
    unknown = [pair for pair in selector if pair not in known]
    if not unknown:
        return "each label is there, but no balancer has all of them"
    label, value = unknown[0]
    hint = did_you_mean(f"{label}: {value}", sorted(": ".join(pair) for pair in known))
    return hint or f"no balancer has the label {label}: {value}"
