# SPDX-License-Identifier: Apache-2.0
"""Kernel settings that a node needs. What they were before is written down and comes back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.model import IcmpRedirects, Mode, Role
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView

_FORWARDING6 = "net/ipv6/conf/all/forwarding"


@dataclass(frozen=True, slots=True)
class Sysctl(Resource):
    """`name` in the form of paths, e.g. `net/ipv4/ip_forward`: names of interfaces may hold dots."""

    kind: ClassVar[str] = "sysctl"

    name: str
    value: str

    @property
    def id(self) -> str:
        return self.name

    def describe(self) -> dict[str, str]:
        return {"value": self.value}

    def effect(self, after: Resource | None, context: Context) -> str:
        # rt6_purge_dflt_routers in net/ipv6/route.c: a router learns no default route unless accept_ra is 2.
        if self.name == _FORWARDING6 and self.value == "0" and isinstance(after, Sysctl):
            return "default routes learnt from router advertisements go, but for interfaces whose accept_ra is 2"
        return ""


class SysctlKind(Kind):
    phase = 0
    roles = (Role.BALANCER, Role.ENDPOINT)
    resource = Sysctl

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if not view.services:
            return
        if view.node.role is Role.ENDPOINT:
            yield from _of_endpoint(view)
            return
        # The FIB lookup of the data plane answers only where the kernel forwards.
        yield Sysctl("net/ipv4/ip_forward", "1"), view.node.span
        if view.has_ipv6:
            yield Sysctl(_FORWARDING6, "1"), view.node.span
        # Redirects would tell clients and endpoints on a shared segment to go past the balancer. The kernel
        # sends them if either the interface's setting or that of `all` is on.
        has_nat = any(service.mode is Mode.NAT for service in view.services)
        redirects_off = view.node.icmp_redirects is IcmpRedirects.OFF
        if redirects_off:
            yield Sysctl("net/ipv4/conf/all/send_redirects", "0"), view.node.span
        for interface in view.node.interfaces:
            conf = f"net/ipv4/conf/{interface.name}"
            if redirects_off:
                yield Sysctl(f"{conf}/send_redirects", "0"), interface.span
            # Packets whose next hop has no known MAC go through the kernel: requests with the client's address
            # for a source, which may have its way back elsewhere, and replies of NAT with a VIP of ours. It
            # forwards these only with no strict reverse-path check, and VIPs only with accept_local
            # (fib_validate_source in net/ipv4/fib_frontend.c).
            if has_nat:
                yield Sysctl(f"{conf}/accept_local", "1"), interface.span
            yield Sysctl(f"{conf}/rp_filter", "2"), interface.span

    def read(self, wanted: Collection[Key]) -> Reading:
        names = {key.id for key in wanted} | self.kernel.former_sysctls().keys()
        values = {name: self.kernel.read_sysctl(name) for name in sorted(names)}
        return Reading(tuple(Sysctl(name, value) for name, value in values.items() if value is not None))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        try:
            match change.after:
                case Sysctl(name=name, value=value):
                    self._set(name, value)
                case None:
                    self._restore(change.key.id)
        except KernelError as error:
            return error
        return None

    def _set(self, name: str, value: str) -> None:
        former = self.kernel.former_sysctls()
        if former.get(name) == value:  # an undo leads back to where we found it
            return self._restore(name)
        current = self.kernel.read_sysctl(name)
        if current is None:
            raise KernelError(f"the kernel has no setting {name}", hint="does the interface exist, and the protocol?")
        if name not in former:
            self.kernel.remember_sysctl(name, current)  # before the write: a crash between them loses nothing
        return self.kernel.write_sysctl(name, value)

    def _restore(self, name: str) -> None:
        former = self.kernel.former_sysctls().get(name)
        if former is None:
            return
        if self.kernel.read_sysctl(name) is not None:  # the interface may be gone
            self.kernel.write_sysctl(name, former)
        self.kernel.forget_sysctl(name)


def is_silence(name: str) -> bool:
    """Whether a setting is one of those that keep a node from telling by ARP which VIPs it holds."""
    return name.endswith(("/arp_ignore", "/arp_announce"))


def _of_endpoint(view: NodeView) -> Iterable[Wanted]:
    """What an endpoint needs that holds VIPs on its loopback while the balancer answers for them.

    IPv6 needs nothing: its neighbour discovery speaks only for addresses of the interface that is asked.
    The greater one of an interface's setting and that of `all` counts, so it suffices to raise that of the interface.
    """
    if not any(vip.version == 4 for service in view.services for vip in service.vips):
        return
    places = [(interface.name, interface.span) for interface in view.node.interfaces] or [("all", view.node.span)]
    for name, span in places:
        conf = f"net/ipv4/conf/{name}"
        # Answer only who asks for an address of the interface itself; ask with such an address as the sender.
        yield Sysctl(f"{conf}/arp_ignore", "1"), span
        yield Sysctl(f"{conf}/arp_announce", "2"), span
        # Requests come from the balancer, replies leave by whatever way leads to the client.
        yield Sysctl(f"{conf}/rp_filter", "2"), span
    if view.tunnelled and not view.decapsulates:
        # Packets come out of a device without an address, where no reverse path will do but none at all
        # (`no_addr` in __fib_validate_source); the device alone can't say so where `all` says more. Interfaces
        # that are declared keep a check of their own.
        yield Sysctl("net/ipv4/conf/all/rp_filter", "0"), view.node.span


KIND = SysctlKind
