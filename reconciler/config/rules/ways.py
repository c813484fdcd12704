# SPDX-License-Identifier: Apache-2.0
"""Whether the interfaces of a balancer lead to its endpoints, as far as manifests can tell."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.rule import Finding, more, rule, title
from reconciler.config.rules.segments import outside
from reconciler.model import Mode


@rule("endpoint-way-unknown", Draft, Severity.WARNING)
def _endpoint_way_unknown(draft: Draft) -> Iterator[Finding]:
    """A balancer on one interface without a gateway has endpoints of mode dsr-l3 in other networks.

    Its tunnels leave by the interface by which packets come in, and the manifests don't name the next hop. If the
    kernel has no route to the endpoints by this interface, every packet is dropped.

    The way out: the `gateway` of the interface. If routes are set up by other means, say by a routing daemon, you
    may ignore this. A balancer whose interface declares no addresses is not checked.
    """
    for reach in draft.reach(Mode.DSR_L3):
        for node in reach.balancers:
            if len(node.attached) != 1 or node.attached[0].gateway:
                continue
            lost = set(outside(reach.numbers, draft.around.near(node)))
            if lost:
                wrong = [(m.pool, i) for m in reach.pools for i, value in enumerate(m.numbers) if value in lost]
                pool, i = wrong[0]
                message = (
                    f"nothing says how {title(node)} reaches {pool.endpoints[i].address}: it is in no network of "
                    f"{node.attached[0].name}, which has no gateway{more(len(wrong), 'endpoint')}"
                )
                hint = "declare its `gateway`, or see to it that the kernel has a route"
                path = ("spec", "interfaces", node.interfaces.index(node.attached[0]))
                yield Finding(node.span, path, message, hint)
