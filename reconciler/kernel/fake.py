# SPDX-License-Identifier: Apache-2.0
"""A kernel in memory: the same rows and the same rules, on any machine and without root."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from reconciler.dataplane import endpoint_filter, endpoint_table
from reconciler.dataplane.description import describe, layout_digest, specs_of
from reconciler.dataplane.layout import ENDPOINT_FILTER, ENDPOINTS, ENDPOINTS6
from reconciler.dataplane.sizes import capacity_of
from reconciler.errors import ForeignError, KernelError
from reconciler.kernel.fake_frr import FakeDaemon
from reconciler.kernel.fake_maps import FakeMaps
from reconciler.kernel.objects import (
    GRO,
    GRO_HW,
    LRO,
    PROBER_DEVICE,
    RX_VLAN,
    AttachedProgram,
    Client,
    Firewall,
    HopGroup,
    Link,
    LoadedProgram,
    LocalVip,
    Neighbour,
    OffloadState,
    Prober,
    Route,
    TunnelDevice,
    VlanLink,
)
from reconciler.kernel.port import Outcome
from reconciler.limits import Sizes


@dataclass
class FakeKernel(FakeMaps):
    """`foreign_vips` (address → owner) and `foreign_programs` (interface → program) stand for other people's
    objects; `vlans` are interfaces, too: name → its trunk and tag; `veths` are the veth interfaces: name → whether the
    far end runs a program in native mode. `offload_states` are those of offloads that are not off. Interfaces have
    every address that is asked for, except those in `lacks`: (interface, address) → the address that the interface has
    instead. `on_write` is called after each write: tests use it to check every state that packets would see.
    """

    interfaces: tuple[str, ...] = ("front", "back")
    program: LoadedProgram | None = None
    attached: dict[str, AttachedProgram] = field(default_factory=dict)
    foreign_programs: dict[str, AttachedProgram] = field(default_factory=dict)
    silent: set[tuple[str, str, int]] | None = None
    vips: set[LocalVip] = field(default_factory=set)
    foreign_vips: dict[str, str] = field(default_factory=dict)
    lacks: dict[tuple[str, str], str] = field(default_factory=dict)
    checks_from: Prober | None = None
    tunnel_forms: frozenset[str] = frozenset({"ipip", "ip6tnl"})
    tunnel_devices: dict[str, TunnelDevice] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    former: dict[str, str] = field(default_factory=dict)
    can_keep: bool = True
    kept: set[Neighbour] = field(default_factory=set)
    others_neighbours: set[Neighbour] = field(default_factory=set)
    proxies: set[Neighbour] = field(default_factory=set)
    others_proxies: set[Neighbour] = field(default_factory=set)
    announced: list[list[str]] = field(default_factory=list)
    roused: list[Client] = field(default_factory=list)
    held_routes: dict[str, Route] = field(default_factory=dict)
    held_groups: dict[int, HopGroup] = field(default_factory=dict)
    others_groups: dict[int, str] = field(default_factory=dict)
    knows_resilient: bool = True
    announcements: set[Route] = field(default_factory=set)
    daemon: FakeDaemon | None = None
    vrrp: str | None = None
    others_vrrp: str = ""
    runs_vrrp: bool = True
    weight: int | None = None
    adopts: bool = False
    mute: set[str] = field(default_factory=set)
    others_hops: set[Neighbour] = field(default_factory=set)
    own_networks: set[str] = field(default_factory=set)
    ways_out: dict[str, int] = field(default_factory=dict)
    known_ways: dict[str, str] = field(default_factory=dict)
    known_hops: dict[str, list[str]] = field(default_factory=dict)
    vlans: dict[str, tuple[str, int]] = field(default_factory=dict)
    own_vlans: dict[str, VlanLink] = field(default_factory=dict)
    offload_states: dict[tuple[str, str], OffloadState] = field(default_factory=dict)
    former_on: set[tuple[str, str]] = field(default_factory=set)
    down: set[str] = field(default_factory=set)
    masters: dict[str, str] = field(default_factory=dict)
    promiscuous: set[str] = field(default_factory=set)
    walls: list[Firewall] = field(default_factory=list)
    veths: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sysctls.setdefault("net/ipv4/ip_forward", "0")
        self.sysctls.setdefault("net/ipv4/fib_multipath_hash_policy", "0")
        for name in ("all", "default", "lo", *self.interfaces, *self.vlans):
            self._make_settings(name)

    def _make_settings(self, interface: str) -> None:
        for setting in ("send_redirects", "accept_local", "rp_filter", "arp_ignore", "arp_announce", "forwarding"):
            value = "1" if setting == "send_redirects" else "0"
            self.sysctls.setdefault(f"net/ipv4/conf/{interface}/{setting}", value)
        for setting in ("forwarding", "disable_ipv6", "proxy_ndp"):
            self.sysctls.setdefault(f"net/ipv6/conf/{interface}/{setting}", "0")

    def claim(self) -> None:
        """Always granted: no other instance shares this memory."""

    # --- maps of programs that run -------------------------------------------------------------------
    def sweep_translated(self, version: int, buckets: int) -> int:
        """No program runs here, and so there is no connection."""
        return 0

    def steady(self) -> AbstractContextManager[None]:
        return nullcontext()

    def wait_for_programs(self, outer: str) -> None:
        """No program runs here."""

    # --- the program -----------------------------------------------------------------------------------
    def loaded_program(self) -> LoadedProgram | None:
        return self.program

    def load_program(self, name: str, features: Sequence[str], sizes: Sizes | None = None) -> None:
        sizes = sizes or (self.program.sizes if self.program else Sizes())
        specs = specs_of(features)
        for spec in specs:
            self.maps.setdefault(spec.name, {})
        self.sizes = {spec.name: capacity_of(spec, sizes) for spec in specs}
        self._open_filter()
        layout = layout_digest({spec.name: describe(spec) for spec in specs})
        number = (self.program.id if self.program else 0) + 1
        self.program = LoadedProgram(number, name, tuple(features), sizes, layout)
        self._wrote("load_program", name)

    def _open_filter(self) -> None:
        """A new generation's filter lets all endpoints pass that there are."""
        lines = endpoint_filter.lines_of((b"", b""), self.capacity(ENDPOINT_FILTER.name))
        if len(lines):
            table = endpoint_table.table(self.joined(ENDPOINTS.name), lambda: self.joined(ENDPOINTS6.name))
            wanted = endpoint_filter.filter_of(table.words, len(lines))
            self.maps[ENDPOINT_FILTER.name] = dict(endpoint_filter.changed(lines, wanted))

    def unload_program(self) -> None:
        self.program = None
        self.maps.clear()
        self.inner.clear()
        self.sizes.clear()
        self._wrote("unload_program", None)

    def remove_instance(self) -> None:
        if self.program or self.former or self.former_on:
            raise KernelError("the instance still holds objects")

    def attached_programs(self, interfaces: Collection[str]) -> list[AttachedProgram]:
        foreign = [program for name, program in self.foreign_programs.items() if name in interfaces]
        loaded = self.program.id if self.program else None
        return [*(replace(held, is_loaded=held.id == loaded) for held in self.attached.values()), *foreign]

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        yield

    def attach(self, interface: str, mode: str, replaces: int | None) -> None:
        if interface not in self.interfaces:
            raise KernelError(f"there is no interface {interface}")
        if self.adopts:
            self.foreign_programs.pop(interface, None)
        if interface in self.foreign_programs:
            raise ForeignError(f"{interface} runs {self.foreign_programs[interface].owner}")
        if self.program is None:
            raise KernelError("no program is loaded")
        held = self.attached.get(interface)
        if (held.id if held else None) != replaces:
            raise KernelError(f"{interface} runs another program than expected")
        self.attached[interface] = AttachedProgram(
            interface, mode, self.program.id, self.program.name, "lbctl", maps=self.program.maps
        )
        self._wrote("attach", interface)

    def detach(self, interface: str, mode: str, replaces: int) -> None:
        del self.attached[interface]
        self._wrote("detach", interface)

    @contextmanager
    def hushed(self, places: Collection[tuple[str, str, int]]) -> Iterator[None]:
        self.silent = set(places)
        try:
            yield
        finally:
            self.silent = None

    # --- VIPs of the node ------------------------------------------------------------------------------
    def local_vips(self, addresses: Collection[str] | None = None) -> list[LocalVip]:
        return sorted(vip for vip in self.vips if addresses is None or vip.address in addresses)

    def foreign_addresses(self, addresses: Collection[str]) -> dict[str, str]:
        return {address: owner for address, owner in self.foreign_vips.items() if address in addresses}

    def add_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        return [self._add_vip(vip) for vip in vips]

    def _add_vip(self, vip: LocalVip) -> Outcome:
        if self.adopts:
            self.foreign_vips.pop(vip.address, None)
        if vip.address in self.foreign_vips:
            return ForeignError(f"{vip.address} is there: {self.foreign_vips[vip.address]}")
        self.vips.add(vip)
        self._wrote("add_vip", vip)
        return None

    def remove_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        for vip in vips:
            if vip in self.vips:
                self.vips.remove(vip)
                self._wrote("remove_vip", vip)
        return [None] * len(vips)

    # --- tunnels ---------------------------------------------------------------------------------------
    def prober(self) -> Prober | None:
        return self.checks_from

    def add_prober(self, addresses: Sequence[str]) -> None:
        self.checks_from = Prober(tuple(addresses), 99, b"prober")
        self._wrote("add_prober", tuple(addresses))

    def remove_prober(self) -> None:
        self.checks_from = None
        self.attached.pop(PROBER_DEVICE, None)
        self._wrote("remove_prober", "")

    def knows_tunnel(self, form: str) -> bool:
        return form in self.tunnel_forms

    def tunnels(self) -> list[TunnelDevice]:
        return list(self.tunnel_devices.values())

    def add_tunnel(self, device: TunnelDevice) -> None:
        held = self.tunnel_devices.get(device.name)
        if held and not held.is_ours:
            raise ForeignError(f"{device.name} is there")
        if device.form not in self.tunnel_forms:
            raise KernelError(f"no {device.form} devices")
        self.tunnel_devices[device.name] = replace(device, settings=())
        self.sysctls |= dict(device.settings)
        self._wrote("add_tunnel", device.name)

    def remove_tunnel(self, name: str) -> None:
        if name in self.tunnel_devices:
            del self.tunnel_devices[name]
            self._wrote("remove_tunnel", name)

    # --- VLANs -----------------------------------------------------------------------------------------
    def vlan_links(self) -> list[VlanLink]:
        return list(self.own_vlans.values())

    def add_vlan_link(self, link: VlanLink) -> None:
        if link.name in self.vlans and link.name not in self.own_vlans:
            raise ForeignError(f"{link.name} is there")
        self.vlans[link.name], self.own_vlans[link.name] = (link.trunk, link.tag), link
        self.lacks = {asked: text for asked, text in self.lacks.items() if asked[1] not in link.addresses}
        self._make_settings(link.name)
        self._wrote("add_vlan_link", link.name)

    def remove_vlan_link(self, name: str) -> None:
        if self.own_vlans.pop(name, None):
            del self.vlans[name]
            self.sysctls = {setting: v for setting, v in self.sysctls.items() if f"/{name}/" not in setting}
            self._wrote("remove_vlan_link", name)

    # --- sysctls ---------------------------------------------------------------------------------------
    def read_sysctl(self, name: str) -> str | None:
        return self.sysctls.get(name)

    def write_sysctl(self, name: str, value: str) -> None:
        family, of_all = name.split("/")[1], name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
        for other in list(self.sysctls) if of_all and self.sysctls[name] != value else []:
            if other.startswith(f"net/{family}/conf/") and other.endswith("/forwarding"):
                self.sysctls[other] = value
        self.sysctls[name] = value
        self._wrote("write_sysctl", name)

    def former_sysctls(self) -> dict[str, str]:
        return dict(self.former)

    def remember_sysctl(self, name: str, former: str) -> None:
        self.former[name] = former

    def forget_sysctl(self, name: str) -> None:
        self.former.pop(name, None)

    # --- offloads --------------------------------------------------------------------------------------
    def offloads(self, interfaces: Collection[str]) -> dict[tuple[str, str], OffloadState]:
        off = OffloadState(False, is_asked_for=False)
        there = [name for name in interfaces if name in (*self.interfaces, *self.vlans)]
        names = (GRO, LRO, GRO_HW, RX_VLAN)
        return {(i, name): self.offload_states.get((i, name), off) for i in there for name in names}

    def write_offload(self, interface: str, name: str, is_on: bool) -> None:
        state = self.offloads([interface]).get((interface, name))
        if state is None or not state.is_free:
            raise KernelError(f"{interface} can't change {name}")
        is_forced = state.is_on and not state.is_asked_for
        self.offload_states[interface, name] = OffloadState(is_on or is_forced, is_asked_for=is_on)
        self._wrote("write_offload", (interface, name, is_on))

    def former_offloads(self) -> set[tuple[str, str]]:
        return set(self.former_on)

    def remember_offload(self, interface: str, name: str) -> None:
        self.former_on.add((interface, name))

    def forget_offload(self, interface: str, name: str) -> None:
        self.former_on.discard((interface, name))

    # --- others' firewalls -----------------------------------------------------------------------------
    def firewalls(self, interfaces: Collection[str]) -> list[Firewall]:
        return [replace(wall, unnamed=tuple(n for n in wall.unnamed if n in interfaces)) for wall in self.walls]

    # --- interfaces and neighbours ---------------------------------------------------------------------
    def links(self) -> list[Link]:
        indexes = {name: i for i, name in enumerate((*self.interfaces, *self.vlans), 2)}
        own = [Link(name, indexes[name]) for name in self.interfaces]
        links = own + [Link(name, indexes[name], indexes[trunk], tag) for name, (trunk, tag) in self.vlans.items()]
        ports = {port: indexes[master] for port, master in self.masters.items()}
        return [
            replace(
                link, is_up=link.name not in self.down, master=ports.get(link.name),
                is_promiscuous=link.name in self.promiscuous,
            ) for link in links
        ]  # fmt: skip

    def far_ends(self, interfaces: Collection[str]) -> dict[str, bool]:
        return {name: is_native for name, is_native in self.veths.items() if name in interfaces}

    def missing_addresses(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        return {asked: self.lacks[asked] for asked in wanted if asked in self.lacks}

    def keeps_neighbours(self) -> bool:
        return self.can_keep

    def neighbours(self) -> tuple[list[Neighbour], list[Neighbour]]:
        return sorted(self.kept), sorted(self.others_neighbours)

    def keep_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        return [self._keep(neighbour) for neighbour in wanted]

    def _keep(self, neighbour: Neighbour) -> Outcome:
        if neighbour.interface not in (*self.interfaces, *self.vlans):
            return KernelError(f"there is no interface {neighbour.interface}")
        if neighbour not in self.others_neighbours:
            self.kept.discard(neighbour)  # it may be in the set with another `is_lasting`
            self.kept.add(neighbour)
            self._wrote("keep_neighbour", neighbour)
        return None

    def forget_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        for neighbour in wanted:
            if neighbour in self.kept:
                self.kept.remove(neighbour)
                self._wrote("forget_neighbour", neighbour)
        return [None] * len(wanted)

    def neighbour_proxies(self) -> tuple[list[Neighbour], list[Neighbour]]:
        return sorted(self.proxies), sorted(self.others_proxies)

    def add_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        for proxy in wanted:
            if proxy not in self.others_proxies:
                self.proxies.add(proxy)
                self._wrote("add_proxy", proxy)
        return [None] * len(wanted)

    def remove_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        for proxy in wanted:
            if proxy in self.proxies:
                self.proxies.remove(proxy)
                self._wrote("remove_proxy", proxy)
        return [None] * len(wanted)

    def announce(self, vips: Collection[str]) -> None:
        self.announced.append(sorted(vips))

    def rouse(self, clients: Sequence[Client]) -> None:
        self.roused.extend(clients)

    # --- the routing daemon ----------------------------------------------------------------------------
    def routing_configuration(self) -> str | None:
        if self.daemon is not None and self.daemon.is_closed:
            raise KernelError("FRR refuses: no right", hint="frrvty")
        return None if self.daemon is None else self.daemon.text()

    def load_routing(self, lines: Sequence[str]) -> None:
        if self.daemon is None:
            raise KernelError("there is no routing daemon")
        self.daemon.type(lines)
        self._wrote("load_routing", tuple(lines))

    # --- VRRP ------------------------------------------------------------------------------------------
    def vrrp_configuration(self) -> tuple[str | None, str]:
        return self.vrrp, self.others_vrrp

    def load_vrrp(self, text: str | None) -> None:
        if self.others_vrrp and not self.adopts:
            raise ForeignError(f"{self.others_vrrp} is there")
        self.vrrp, self.others_vrrp = text, ""
        self._wrote("load_vrrp", text)

    def vrrp_runs(self) -> bool:
        return self.runs_vrrp

    def vrrp_weight(self) -> int | None:
        return self.weight

    def set_vrrp_weight(self, weight: int) -> None:
        self.weight = weight
        self._wrote("set_vrrp_weight", weight)

    # --- routes ----------------------------------------------------------------------------------------
    def routes(self) -> list[Route]:
        return sorted(self.held_routes.values())

    def announced_routes(self, addresses: Collection[str] | None = None) -> list[Route]:
        found = sorted(self.announcements)
        return found if addresses is None else [route for route in found if route.to.partition("/")[0] in addresses]

    def add_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        return [self._add_route(route) for route in wanted]

    def _add_route(self, route: Route) -> Outcome:
        if route.via and route.interface not in (*self.interfaces, *self.vlans):
            return KernelError(f"there is no interface {route.interface}")
        if route.via or not route.interface:
            self.held_routes[route.to] = route
        else:
            self.announcements.add(route)
        self._wrote("add_route", route)
        return None

    def remove_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        for route in wanted:
            if route.via or not route.interface:
                found = self.held_routes.pop(route.to, None) is not None
            else:
                found = route in self.announcements
                self.announcements.discard(route)
            if found:
                self._wrote("remove_route", route)
        return [None] * len(wanted)

    def hop_groups(self) -> list[HopGroup]:
        return sorted(self.held_groups.values())

    def foreign_hop_groups(self, wanted: Collection[HopGroup]) -> dict[int, str]:
        numbers = {group.number for group in wanted}
        return {number: owner for number, owner in self.others_groups.items() if number in numbers}

    def has_resilient_groups(self) -> bool:
        return self.knows_resilient

    def put_hop_groups(self, wanted: Sequence[HopGroup]) -> list[Outcome]:
        for group in wanted:
            if self.adopts:
                self.others_groups.pop(group.number, None)
            if group.number in self.others_groups:
                continue
            made = group if self.knows_resilient else replace(group, buckets=0, idle_s=0)
            self.held_groups[group.number] = made
            self._wrote("put_hop_group", made)
        in_the_way = self.foreign_hop_groups(wanted)
        return [ForeignError(f"{g.number} is there") if g.number in in_the_way else None for g in wanted]

    def remove_hop_groups(self, numbers: Sequence[int]) -> list[Outcome]:
        for number in numbers:
            if self.held_groups.pop(number, None):
                self.held_routes = {to: route for to, route in self.held_routes.items() if route.group != number}
                self._wrote("remove_hop_group", number)
        return [None] * len(numbers)

    def unanswered(self, addresses: Collection[str]) -> list[str]:
        return [address for address in addresses if address in self.mute]

    def next_hops(self) -> list[Neighbour]:
        return sorted(self.others_hops)

    def way_out(self, address: str) -> int | None:
        return self.ways_out.get(address)

    def ways(self, addresses: Collection[str]) -> dict[str, str]:
        return {address: self.known_ways[address] for address in addresses if address in self.known_ways}

    def hops_to(self, addresses: Collection[str]) -> dict[str, list[str]]:
        return {address: self.known_hops.get(address, []) for address in addresses}

    def networks(self) -> list[str]:
        return sorted(self.own_networks)
