# SPDX-License-Identifier: Apache-2.0
"""VIPs on the loopback, and sources of fullnat: the node accepts packets to them. A balancer answers ARP requests for
those of IPv4, an endpoint of direct server return never does. The kernel answers no neighbour solicitation for an
address of the loopback: for IPv6 VIPs in a balancer's own networks there is `neighbour_proxy`; routers must send it
the packets to all others.

The default form is a `local` route with our protocol number; adding addresses to a link is quadratic in the
kernel (50,000: 81 s against 0.8 s as routes).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import ClassVar

from reconciler.kernel.objects import LocalVip
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.foundation import foundation_of
from reconciler.kinds.service_row import ServiceRow, rows_of
from reconciler.kinds.sysctl import Sysctl, SysctlKind, is_silence
from reconciler.kinds.vip import VipRow
from reconciler.model import Address, Mode, Role, Service, VipBinding, text_of
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.view import Facts, NodeView, sources_of


@dataclass(frozen=True, slots=True)
class LoopbackVip(Resource):
    """`form`: route or address. `services` are the ids of the services at this VIP, `silence` are the names of the
    settings that keep an endpoint from answering ARP requests for it. `is_source`: fullnat's requests come from it."""

    kind: ClassVar[str] = "loopback"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("sysctl", "foundation", "vip"))
    announces: ClassVar[bool] = True

    address: Address
    form: str
    services: tuple[str, ...] = field(default=(), compare=False, repr=False)
    silence: tuple[str, ...] = field(default=(), compare=False, repr=False)
    is_source: bool = field(default=False, compare=False, repr=False)

    @property
    def id(self) -> str:
        return text_of(self.address)

    @property
    def needs(self) -> tuple[Key, ...]:
        silence = tuple(Key(Sysctl.kind, name) for name in self.silence)
        rows = (Key(VipRow.kind, self.id),) if self.services or self.is_source else ()
        return (*silence, foundation_of(self.address), *rows)

    @property
    def needs_any(self) -> tuple[Key, ...]:
        # A VIP that is announced without a service swallows traffic that other balancers could serve.
        return tuple(Key(ServiceRow.kind, service) for service in self.services)

    @property
    def flaw(self) -> str:
        return "" if self.form in list(VipBinding) else f"form {self.form}"

    def describe(self) -> dict[str, str]:
        return {"form": self.form}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else "the node no longer answers for this VIP"


class LoopbackKind(Kind):
    phase = 70
    roles = (Role.BALANCER, Role.ENDPOINT)
    resource = LoopbackVip

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        return _of_endpoint(view) if view.node.role is Role.ENDPOINT else ()

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        ids: dict[Address, list[str]] = {}
        for row in rows_of(service):
            ids.setdefault(row.vip, []).append(row.key.id)
        form = facts.node.vip_binding.value
        yield from ((LoopbackVip(vip, form, tuple(services)), service.span) for vip, services in ids.items())
        if service.mode is Mode.FULLNAT:
            sources = (LoopbackVip(source, form, is_source=True) for source in sources_of(facts.node, service))
            yield from ((source, service.span) for source in sources)

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        vips = [vip for vip, _ in claims if isinstance(vip, LoopbackVip)]
        return replace(vips[0], services=tuple(dict.fromkeys(s for vip in vips for s in vip.services))), claims[0][1]

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        forms = _forms(self.kernel.local_vips(None if only is None else {key.id for key in only}))
        foreign = {} if self.kernel.adopts else self.kernel.foreign_addresses([key.id for key in wanted])
        silence = tuple(name for name in self.kernel.former_sysctls() if is_silence(name))
        known = {key.id: vip for key, vip in wanted.items() if isinstance(vip, LoopbackVip)}
        found: list[LoopbackVip] = []
        for address, held in forms.items():
            right, form = known.get(address), " and ".join(sorted(held))
            if right is None or right.form != form:
                right = LoopbackVip(ip_address(address), form, silence=silence)
            found.append(right)
        return Reading(
            tuple(found),
            {Key(LoopbackVip.kind, address): owner for address, owner in foreign.items()},
        )

    def look(self, wanted: Mapping[Key, Resource]) -> Iterator[Collection[Key]]:
        vips = self.kernel.local_vips()
        yield ()
        forms = _forms(vips)
        ids = {key.id for key in wanted}
        yield [Key(LoopbackVip.kind, address) for address in forms if address not in ids]
        yield [
            key for key, vip in wanted.items()
            if isinstance(vip, LoopbackVip) and " and ".join(sorted(forms.get(key.id, ()))) != vip.form
        ]  # fmt: skip

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """VIPs of a balancer in service that became an address of the node itself; before they serve, that blocks."""
        balanced = [r.id for r in wanted if isinstance(r, LoopbackVip) and (r.services or r.is_source)]
        if foreign := self.kernel.foreign_addresses(balanced):
            ours = {vip.address for vip in self.kernel.local_vips()}
            for address in foreign.keys() & ours:
                yield Concern(
                    Key(LoopbackVip.kind, address),
                    f"{address} is in service, and is the node's own by now, too ({foreign[address]}): "
                    "packets to it are for the services, so whatever else the node offers there, such as ssh, is lost",
                    "remove it there, or choose another VIP",
                )

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(c, LocalVip(c.key.id, c.after.form)) for c in changes if isinstance(c.after, LoopbackVip)]
        outcomes = list(zip((c for c, _ in puts), self.kernel.add_local_vips([v for _, v in puts]), strict=True))
        failed = {id(change) for change, outcome in outcomes if outcome}
        # A VIP that changes its form holds both for a moment, so that it is never without.
        kept = {vip for _, vip in puts}
        takes = [
            (c, LocalVip(c.key.id, form))
            for c in changes if c.before and id(c) not in failed
            for form in VipBinding if LocalVip(c.key.id, form) not in kept
        ]  # fmt: skip
        removed = self.kernel.remove_local_vips([vip for _, vip in takes])
        outcomes += [(c, outcome) for (c, _), outcome in zip(takes, removed, strict=True) if outcome]
        return each(changes, outcomes)


def _forms(vips: Iterable[LocalVip]) -> dict[str, list[str]]:
    """The forms in which the node holds each VIP."""
    forms: dict[str, list[str]] = {}
    for vip in vips:
        forms.setdefault(vip.address, []).append(vip.form)
    return forms


def _of_endpoint(view: NodeView) -> Iterable[Wanted]:
    silence = tuple(row.id for row, _ in SysctlKind.desired(view) if is_silence(row.id))
    found = {vip: s.span for s in reversed(view.services) for vip in s.vips}
    for vip, span in found.items():
        # A server can't listen at an IPv6 VIP that is only a route (__inet6_bind in net/ipv6/af_inet6.c).
        form = view.node.vip_binding if vip.version == 4 else VipBinding.ADDRESS
        yield LoopbackVip(vip, form.value, silence=silence), span


KIND = LoopbackKind
