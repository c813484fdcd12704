# SPDX-License-Identifier: Apache-2.0
"""The vrrp_instance blocks of keepalived.conf, as lines for the Node of a balancer.

No Node is made of them: that needs the networks of its interfaces, which keepalived.conf doesn't name. VIPs of virtual
servers need not be shared, since each balancer has them; other addresses, as the gateway of endpoints, do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_interface

from reconciler.importers import values
from reconciler.importers.draft import Address, InputError, Notices, bare
from reconciler.importers.keepalived_syntax import Statement

INSTANCE = "vrrp_instance"
_BLOCKS = ("virtual_ipaddress", "virtual_ipaddress_excluded")
_DEFAULT_PRIORITY = "100"


def note(instances: Sequence[Statement], vips: Collection[Address], notices: Notices) -> None:
    """Say of each instance what the Node needs."""
    for instance in instances:
        with notices.leaving_out(f"the {INSTANCE}"):
            notices.add(instance.line, _told(instance, vips))


def _told(instance: Statement, vips: Collection[Address]) -> str:
    """Raises InputError."""
    body = instance.block or []
    title = bare(str(instance))
    shared = [address for address in _addresses(body) if ip_interface(address).ip not in vips]
    if not shared:
        return f"{title} moves VIPs alone, which each balancer has here: it is left out; see `announce` of a Node"
    number = values.number(_last(body, "virtual_router_id"), instance.line, "a virtual_router_id", 1, 255)
    priority = values.number(_last(body, "priority") or _DEFAULT_PRIORITY, instance.line, "a priority", 1, 254)
    vrrp = f"{{id: {number}, addresses: [{', '.join(shared)}], priority: {priority}}}"
    return f"{title} is left out: add `announce: {{vrrp: {vrrp}}}` to the Node of this balancer"


def _addresses(body: Sequence[Statement]) -> Iterator[str]:
    """The shared addresses, each with the length of its prefix."""
    for block in body:
        for line in (block.block or []) if block.keyword in _BLOCKS else ():
            try:
                yield str(ip_interface(line.keyword))
            except ValueError:
                raise InputError(line.line, f"expected an address, got {bare(line.keyword)}") from None


def _last(body: Sequence[Statement], keyword: str) -> str:
    return next((statement.value for statement in reversed(body) if statement.keyword == keyword), "")
