# SPDX-License-Identifier: Apache-2.0
"""The way of a client's request, step by step, as far as a node has to do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reconciler.kernel.port import Kernel
from reconciler.model import Address, Mode, Role, Service, place_of
from reconciler.view import NodeView

MOST = 8
"""Of more services, the first ones are walked."""

Explain = Callable[[Service, Address, int], str]
"""What the loaded program does with the first packet to a VIP and port, in words."""


def walk(view: NodeView, client: Address, kernel: Kernel, explain: Explain) -> Iterator[str]:
    """Lines. On a balancer `explain` is asked."""
    fitting = [(s, vip) for s in view.services for vip in s.vips[:1] if vip.version == client.version]
    for service, vip in fitting[:MOST]:
        port = service.ports[0] if service.ports else 0
        yield f"{client} → {place_of(vip, port)}/{service.protocol} (service {service.name}, {service.mode})"
        yield from (f"  {line}" for line in _steps(view, service, vip, port, client, kernel, explain))
    if not fitting:
        yield f"no service of this node has a VIP of IPv{client.version}"
    elif len(fitting) > MOST:
        yield f"and {len(fitting) - MOST:,} more services"


def _steps(
    view: NodeView, service: Service, vip: Address, port: int, client: Address, kernel: Kernel, explain: Explain
) -> Iterator[str]:
    here = {Role.BALANCER: "balancer", Role.ENDPOINT: "endpoint", Role.ROUTER: "router"}[view.node.role]
    if view.node.role is Role.ROUTER:
        out = kernel.ways([str(vip)]).get(str(vip), "")
        yield f"1. this {here} " + (f"sends it out by {out}" if out else "has NO route to the VIP: it ends here")
        yield "2. the balancer that gets it knows more: lbctl doctor --from there"
        return
    own = {local.address for local in kernel.local_vips()}
    yield f"1. the VIP is {'' if str(vip) in own else 'NOT '}this {here}'s own"
    back = kernel.ways([str(client)]).get(str(client), "")
    if view.node.role is Role.ENDPOINT:
        how = "out of a tunnel" if service.mode is Mode.DSR_L3 else "with this machine's MAC"
        yield f"2. it comes from a balancer {how}; the server has to listen at the VIP, or at all addresses"
        yield f"3. the reply leaves by {back}" if back else "3. there is NO way to the client: the reply is dropped"
        return
    first, *more = explain(service, vip, port).splitlines()
    yield f"2. {first}"
    yield from (f"   {line}" for line in more)
    if service.mode.is_dsr:
        yield "3. the reply goes from the endpoint to the client, not by this machine: lbctl doctor --from there"
    elif back:
        yield f"3. the reply comes back here, and leaves for the client by {back}"
    else:
        yield "3. the reply comes back here, and there is NO way to the client, unless a gateway is declared"
