# SPDX-License-Identifier: Apache-2.0
"""Kernel settings that a node needs. Their former values are written down and come back."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.objects import Firewall
from reconciler.kernel.port import Outcome
from reconciler.kernel.sysctl import is_known
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.interface import THIS_NODE, interface_key
from reconciler.model import IcmpRedirects, Interface, Role
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.view import NodeView

_FORWARDING6 = "net/ipv6/conf/all/forwarding"
_RESETS = {"net/ipv4/ip_forward": "net/ipv4/conf/{}/forwarding", _FORWARDING6: "net/ipv6/conf/{}/forwarding"}
"""A write of one of these also sets the setting of each interface (inet_forward_change, addrconf_forward_change)."""

_HASH = "net/ipv4/fib_multipath_hash_policy"

GONE = "gone"
"""The value of a setting that lbctl changed, once its interface is gone."""

_OF_INTERFACE6 = re.compile("net/ipv6/conf/[^/]+/forwarding")


@dataclass(frozen=True, slots=True)
class Sysctl(Resource):
    """`name` in the form of paths, e.g. `net/ipv4/ip_forward`: names of interfaces may hold dots. `before` is what
    it was before lbctl changed it."""

    kind: ClassVar[str] = "sysctl"
    is_restored: ClassVar[bool] = True

    name: str
    value: str
    before: str = field(default="", compare=False, repr=False)

    @property
    def id(self) -> str:
        return self.name

    @property
    def flaw(self) -> str:
        return "" if is_known(self.name, self.value) else f"lbctl never sets {self.name!r} to {self.value!r}"

    @property
    def needs(self) -> tuple[Key, ...]:
        interface = interface_of(self.name)
        return (interface_key(interface) if interface else THIS_NODE,)

    def describe(self) -> dict[str, str]:
        return {"value": self.value}

    def former(self) -> dict[str, str]:
        return {"value": self.before or "as before lbctl"}

    def effect(self, after: Resource | None, context: Context) -> str:
        if not (isinstance(after, Sysctl) and (self.value, after.value) == ("0", "1")):
            return ""
        # Each such write removes these routes (rt6_purge_dflt_routers, net/ipv6/addrconf.c); only one change says so.
        of_all = context.live.resources.get(Key(self.kind, _FORWARDING6))
        is_last = isinstance(of_all, Sysctl) and of_all.value == "1" and _OF_INTERFACE6.fullmatch(self.name)
        if self.name == _FORWARDING6 or is_last:
            return "default routes learnt from router advertisements go, but for interfaces whose accept_ra is 2"
        return ""


class SysctlKind(Kind):
    phase = 0
    roles = tuple(Role)
    resource = Sysctl

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if view.node.role is Role.ROUTER:
            yield from _of_router(view)
            return
        if not view.services:
            return
        if view.node.role is Role.ENDPOINT:
            yield from _of_endpoint(view)
            yield from _ipv6_on(view)
            return
        yield from _of_balancer4(view)
        if view.has_ipv6:
            # The kernel forwards if `all` says so; the data plane's FIB lookup heeds the incoming interface's setting.
            yield Sysctl(_FORWARDING6, "1"), view.node.span
            for interface in view.node.interfaces:
                yield Sysctl(f"net/ipv6/conf/{interface.name}/forwarding", "1"), interface.span
            # These interfaces answer neighbour solicitations for VIPs.
            asked = {name for address, name in view.prober_on_link if address.version == 6}
            for name in sorted(asked | {interface for _, interface in view.on_link6}):
                yield Sysctl(proxy_setting(name), "1"), view.node.span
        yield from _ipv6_on(view)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        former = self.kernel.former_sysctls()
        names = {key.id for key in wanted}
        values = {name: self.kernel.read_sysctl(name) for name in sorted(names | former.keys())}
        absent = [key for key in wanted if values[key.id] is None and not interface_of(key.id)]
        values |= {name: GONE for name in former.keys() - names if values[name] is None}
        return Reading(
            tuple(Sysctl(n, value, former.get(n, "")) for n, value in values.items() if value is not None),
            impossible={key: f"the kernel has no setting {key.id}" for key in absent},
        )

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """Firewalls that drop packets although these settings let the kernel forward them."""
        forwarding = [r.id.split("/") for r in wanted if r.id.endswith("/forwarding")]
        for version in (4, 6):
            names = [parts[3] for parts in forwarding if parts[1] == f"ipv{version}" and parts[3] != "all"]
            for wall in self.kernel.firewalls(names) if names else ():
                if version in wall.versions and wall.unnamed:
                    yield _dropping(wall, version)

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
        if former.get(name) == value:  # an undo: this is the former value
            return self._restore(name)
        current = self.kernel.read_sysctl(name)
        if current is None:
            raise KernelError(f"the kernel has no setting {name}", hint="does the interface exist, and the protocol?")
        if name not in former:
            self.kernel.remember_sysctl(name, current)  # before the write: a crash between them loses nothing
        try:
            self._put(name, value)
        except KernelError:
            if name not in former and self.kernel.read_sysctl(name) == current:
                self.kernel.forget_sysctl(name)  # nothing was changed, so there is nothing to restore
            raise

    def _restore(self, name: str) -> None:
        former = self.kernel.former_sysctls().get(name)
        if former is None:
            return
        if self.kernel.read_sysctl(name) not in (former, None):  # the interface may be gone
            self._put(name, former)
        self.kernel.forget_sysctl(name)

    def _put(self, name: str, value: str) -> None:
        """Write this setting and no other: settings that the kernel changes with it get their values back at once."""
        places = ["default", "lo", *(link.name for link in self.kernel.links())] if name in _RESETS else []
        others = {other: self.kernel.read_sysctl(other) for other in map(_RESETS.get(name, "").format, places)}
        self.kernel.write_sysctl(name, value)
        for other, was in others.items():
            if was is not None and self.kernel.read_sysctl(other) not in (was, None):
                self.kernel.write_sysctl(other, was)


def proxy_setting(interface: str) -> str:
    """The setting with which an interface answers neighbour solicitations for addresses that are not its own."""
    return f"net/ipv6/conf/{interface}/proxy_ndp"


def _dropping(wall: Firewall, version: int) -> Concern:
    return Concern(
        Key("firewall", wall.name),
        f"drops forwarded packets of IPv{version} by default, and no rule names {', '.join(wall.unnamed)}: so "
        "packets that the kernel forwards are lost, though they count as sent: packets to a next hop whose MAC is not "
        "known yet, and replies of endpoints whose way to clients leads over this node",
        f"let them through: {'; '.join(map(wall.remedy.format, wall.unnamed))}",
    )


def interface_of(name: str) -> str:
    """The interface that a setting belongs to, e.g. `net/ipv4/conf/eth0/rp_filter`; empty if it is none's."""
    parts = name.split("/")
    return parts[3] if len(parts) == 5 and parts[2] == "conf" and parts[3] not in ("all", "default") else ""


def is_silence(name: str) -> bool:
    """Whether a setting keeps a node from telling by ARP which VIPs it holds."""
    return name.endswith(("/arp_ignore", "/arp_announce"))


def _of_balancer4(view: NodeView) -> Iterable[Wanted]:
    """What IPv4 needs on a balancer. The kernel combines the setting of an interface with that of `all`: forwarding
    depends on the incoming interface alone; send_redirects and accept_local are on if either is on; of rp_filter and
    arp_ignore the greater one counts.
    """
    # Redirects would tell clients and endpoints on a shared segment to go past the balancer.
    redirects_off = view.node.icmp_redirects is IcmpRedirects.OFF
    if redirects_off:
        yield Sysctl("net/ipv4/conf/all/send_redirects", "0"), view.node.span
    heard = [face for face in view.node.interfaces if _has_vip_on_link(face, view)]
    if heard:
        yield Sysctl("net/ipv4/conf/all/arp_ignore", "0"), view.node.span
    for interface in view.node.interfaces:
        conf = f"net/ipv4/conf/{interface.name}"
        # The data plane's FIB lookup answers only where the kernel may forward, too.
        yield Sysctl(f"{conf}/forwarding", "1"), interface.span
        if redirects_off:
            yield Sysctl(f"{conf}/send_redirects", "0"), interface.span
        # Machines on a network with a VIP ask there for its MAC, though the VIP is an address of the loopback.
        if interface in heard:
            yield Sysctl(f"{conf}/arp_ignore", "0"), interface.span
        # The kernel, not the program, forwards some packets: requests whose next hop has no known MAC, from clients
        # whose way back may be another interface; and replies whose source is a VIP, by NAT or from endpoints whose
        # way to the client leads over this node. The kernel drops them if the reverse-path check is strict, and those
        # from a VIP without accept_local (fib_validate_source in net/ipv4/fib_frontend.c).
        yield Sysctl(f"{conf}/accept_local", "1"), interface.span
        yield Sysctl(f"{conf}/rp_filter", "2"), interface.span


def _of_router(view: NodeView) -> Iterable[Wanted]:
    """A router spreads a VIP over balancers by addresses and ports: by addresses alone, all connections of one client,
    or of a whole network behind NAT, would go to one balancer. Redirects would tell clients of a shared segment to go
    to one balancer for good."""
    redirects_off = view.node.icmp_redirects is IcmpRedirects.OFF
    if (view.node.multipath or 1) > 1 or view.node.vip_routes:
        yield Sysctl(_HASH, "1"), view.node.places.get("multipath", view.node.span)
    if redirects_off:
        yield Sysctl("net/ipv4/conf/all/send_redirects", "0"), view.node.span
    for interface in view.node.interfaces:
        yield Sysctl(f"net/ipv4/conf/{interface.name}/forwarding", "1"), interface.span
        if redirects_off:
            yield Sysctl(f"net/ipv4/conf/{interface.name}/send_redirects", "0"), interface.span


def _has_vip_on_link(interface: Interface, view: NodeView) -> bool:
    """Whether a VIP of IPv4 is in a network of the interface."""
    networks = [address.network for address in interface.addresses if address.version == 4]
    return any(vip in network for network in networks for service in view.services for vip in service.vips)


def _ipv6_on(view: NodeView) -> Iterable[Wanted]:
    """IPv6 may be off on the loopback, which has the VIPs, and on the interfaces of the node: it has to be on."""
    if view.has_ipv6:
        places = {"lo": view.node.span} | {interface.name: interface.span for interface in view.node.interfaces}
        for name, span in places.items():
            yield Sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "0"), span


def _of_endpoint(view: NodeView) -> Iterable[Wanted]:
    """The settings of an endpoint, which holds VIPs on its loopback while the balancer answers ARP requests for them.

    IPv6 needs none: an interface answers neighbour solicitations for its own addresses only.
    The greater one of an interface's setting and that of `all` counts, so it suffices to raise that of the interface.
    """
    if not any(vip.version == 4 for service in view.services for vip in service.vips):
        return
    places = [(interface.name, interface.span) for interface in view.node.interfaces] or [("all", view.node.span)]
    for name, span in places:
        conf = f"net/ipv4/conf/{name}"
        # Answer only requests for an address of the interface itself; use such an address as the sender of requests.
        yield Sysctl(f"{conf}/arp_ignore", "1"), span
        yield Sysctl(f"{conf}/arp_announce", "2"), span
        # Requests come from the balancer, replies leave by whatever way leads to the client.
        yield Sysctl(f"{conf}/rp_filter", "2"), span
    if view.tunnelled and not view.decapsulates:
        # Packets come out of a tunnel device without an address. There every reverse-path check fails (`no_addr` in
        # __fib_validate_source), so it must be off, for the device and for `all`, since the greater value counts.
        # Declared interfaces keep the check by their own setting.
        yield Sysctl("net/ipv4/conf/all/rp_filter", "0"), view.node.span


KIND = SysctlKind
