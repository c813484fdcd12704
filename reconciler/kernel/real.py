# SPDX-License-Identifier: Apache-2.0
"""This machine's kernel, as `port.Kernel` describes it: an instance, and the node's other objects.

Nothing is remembered between calls, so any number of processes may look at one instance at the same time.
Interfaces, VIPs and settings are those of the network namespace that the calling thread is in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path

from reconciler.errors import KernelError
from reconciler.kernel import (
    addresses,
    announce,
    claims,
    firewall,
    frr,
    hop_groups,
    hush,
    keepalived,
    ledger,
    links,
    local_vips,
    neighbours,
    next_hop,
    offloads,
    ownership,
    prober,
    proxies,
    rouse,
    routes,
    sysctl,
    tunnels,
    veth,
    vlans,
)
from reconciler.kernel.instance import Instance
from reconciler.kernel.instance_program import InstanceProgram
from reconciler.kernel.mark import alias_of, protocol_of
from reconciler.kernel.objects import (
    Client,
    Firewall,
    HopGroup,
    Link,
    LocalVip,
    Neighbour,
    OffloadState,
    Prober,
    Route,
    TunnelDevice,
    VlanLink,
)
from reconciler.kernel.port import Outcome
from reconciler.kernel.refusal import refused
from reconciler.safe import some

RUN_DIR = Path("/run/lbctl")


class RealKernel(InstanceProgram):
    """One instance on this machine. `source_dir` holds another data plane than lbctl's own, for tests; `netns` is
    the name of --netns that the calling thread entered its network namespace by, if any."""

    def __init__(
        self, instance: str = "default", run_dir: Path = RUN_DIR, source_dir: Path | None = None, netns: str = ""
    ) -> None:
        super().__init__(Instance(instance, run_dir), source_dir)
        self._netns = netns
        self._ledger = ledger.Ledger(self._instance)
        self._mark, self._alias = protocol_of(instance), alias_of(instance)
        self._adopted_vips: set[str] = set()

    # --- the instance ----------------------------------------------------------------------------------
    def check_place(self) -> None:
        """Raise UsageError if this instance is in another network namespace, or another instance is in this one."""
        claims.check(self._instance, self._netns)

    def claim(self) -> None:
        with refused(f"instance {self._instance.name}"):
            if claims.is_stale(self._instance, self._netns):
                self._ledger.discard()  # former values went with their namespace
            claims.claim(self._instance, self._netns)

    def abandon(self) -> None:
        """Remove an instance whose network namespace is gone, with everything that was in it. Raises UsageError."""
        claims.check_gone(self._instance, self._netns)
        self.unload_program()
        self._ledger.discard()
        self.remove_instance()

    def remove_instance(self) -> None:
        """Remove the instance's directory. Raises KernelError if objects or former values are left in it."""
        if left := self._former():
            raise KernelError(f"settings are not restored yet: {some(sorted(left))}", hint="lbctl delete")
        with refused(f"directory {self._instance.directory}"):
            if self._instance.directory.exists():
                prober.remove(self._instance.directory, self._alias)
            self._instance.remove()
            ownership.forget(self._instance)

    def hushed(self, places: Collection[tuple[str, str, int]]) -> AbstractContextManager[None]:
        return hush.hushed(places)

    # --- VIPs of the node ------------------------------------------------------------------------------
    def local_vips(self, addresses: Collection[str] | None = None) -> list[LocalVip]:
        with refused("local addresses"):
            return local_vips.read(self._mark, addresses)

    def foreign_addresses(self, addresses: Collection[str]) -> dict[str, str]:
        with refused("local addresses"):
            return local_vips.foreign(addresses, self._mark)

    def add_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        with refused("local addresses"):
            if not self.adopts:
                return local_vips.add(vips, self._mark)
            self._adopted_vips |= local_vips.foreign([vip.address for vip in vips], self._mark).keys()
            return local_vips.take_over(vips, self._mark)

    def remove_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        with refused("local addresses"):
            # What was taken over stays if that is undone: it was there before.
            gone = [vip for vip in vips if vip.address not in self._adopted_vips]
            outcomes = dict(zip(gone, local_vips.remove(gone, self._mark), strict=True))
            return [outcomes.get(vip) for vip in vips]

    # --- checks through VIPs ---------------------------------------------------------------------------
    def prober(self) -> Prober | None:
        with refused("the interface of checks through VIPs"):
            return prober.read(self._instance.directory, self._alias)

    def add_prober(self, addresses: Sequence[str]) -> None:
        with refused("the interface of checks through VIPs"):
            prober.add(self._instance.directory, addresses, self._alias)

    def remove_prober(self) -> None:
        with refused("the interface of checks through VIPs"):
            prober.remove(self._instance.directory, self._alias)

    # --- tunnels ---------------------------------------------------------------------------------------
    def knows_tunnel(self, form: str) -> bool:
        with refused("tunnels"):
            return tunnels.known(form)

    def tunnels(self) -> list[TunnelDevice]:
        with refused("tunnels"):
            return tunnels.read(self._alias)

    def add_tunnel(self, device: TunnelDevice) -> None:
        with refused(f"tunnel {device.name}"):
            tunnels.add(device, self._alias, adopts=self.adopts)

    def remove_tunnel(self, name: str) -> None:
        with refused(f"tunnel {name}"):
            tunnels.remove(name, self._alias)

    # --- VLANs -----------------------------------------------------------------------------------------
    def vlan_links(self) -> list[VlanLink]:
        with refused("VLANs"):
            return vlans.read(self._alias)

    def add_vlan_link(self, link: VlanLink) -> None:
        with refused(f"VLAN {link.name}"):
            vlans.add(link, self._alias)

    def remove_vlan_link(self, name: str) -> None:
        with refused(f"VLAN {name}"):
            vlans.remove(name, self._alias)

    # --- sysctls ---------------------------------------------------------------------------------------
    def read_sysctl(self, name: str) -> str | None:
        return sysctl.read(name)

    def write_sysctl(self, name: str, value: str) -> None:
        sysctl.write(name, value)

    def former_sysctls(self) -> dict[str, str]:
        return {name: value for name, value in self._former().items() if sysctl.is_known(name)}

    def _former(self) -> dict[str, str]:
        return {} if claims.is_stale(self._instance, self._netns) else self._ledger.values()

    def remember_sysctl(self, name: str, former: str) -> None:
        self._ledger.put(name, former)

    def forget_sysctl(self, name: str) -> None:
        self._ledger.drop(name)

    # --- offloads --------------------------------------------------------------------------------------
    def offloads(self, interfaces: Collection[str]) -> dict[tuple[str, str], OffloadState]:
        with refused("offloads"):
            return offloads.read(interfaces)

    def write_offload(self, interface: str, name: str, is_on: bool) -> None:
        with refused(f"{name} of {interface}"):
            offloads.write(interface, name, is_on)

    def former_offloads(self) -> set[tuple[str, str]]:
        return {offload for name in self._former() if (offload := offloads.parse_former(name))}

    def remember_offload(self, interface: str, name: str) -> None:
        self._ledger.put(offloads.former_name(interface, name), ledger.ON)

    def forget_offload(self, interface: str, name: str) -> None:
        self._ledger.drop(offloads.former_name(interface, name))

    # --- others' firewalls -----------------------------------------------------------------------------
    def firewalls(self, interfaces: Collection[str]) -> list[Firewall]:
        with refused("firewalls"):
            return firewall.firewalls(interfaces)

    # --- interfaces and neighbours ---------------------------------------------------------------------
    def links(self) -> list[Link]:
        with refused("interfaces"):
            return links.read()

    def far_ends(self, interfaces: Collection[str]) -> dict[str, bool]:
        with refused("interfaces"):
            return veth.far_ends(interfaces)

    def missing_addresses(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        with refused("addresses"):
            return addresses.missing(wanted)

    def keeps_neighbours(self) -> bool:
        with refused("neighbours"):
            return neighbours.can_keep()

    def neighbours(self) -> tuple[list[Neighbour], list[Neighbour]]:
        with refused("neighbours"):
            return neighbours.read(self._mark)

    def keep_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return neighbours.keep(wanted, self._mark)

    def forget_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return neighbours.forget(wanted, self._mark)

    def neighbour_proxies(self) -> tuple[list[Neighbour], list[Neighbour]]:
        with refused("neighbours"):
            return proxies.read(self._mark)

    def add_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return proxies.add(wanted, self._mark)

    def remove_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return proxies.remove(wanted, self._mark)

    def announce(self, vips: Collection[str]) -> None:
        with refused("announcements of VIPs"):
            announce.announce(vips, self._mark)

    def rouse(self, clients: Sequence[Client]) -> None:
        with refused("packets for clients"):
            rouse.rouse(clients)

    # --- the routing daemon ----------------------------------------------------------------------------
    def routing_configuration(self) -> str | None:
        return frr.running(self._netns)

    def load_routing(self, lines: Sequence[str]) -> None:
        with refused("FRR"):
            frr.load(self._netns, lines)

    # --- VRRP ------------------------------------------------------------------------------------------
    def vrrp_configuration(self) -> tuple[str | None, str]:
        return keepalived.running(self._netns, self._instance.directory)

    def load_vrrp(self, text: str | None) -> None:
        keepalived.load(self._netns, self._instance.directory, text, adopts=self.adopts)

    def vrrp_runs(self) -> bool:
        return keepalived.is_running(self._netns)

    def vrrp_weight(self) -> int | None:
        return keepalived.weight(self._instance.directory)

    def set_vrrp_weight(self, weight: int) -> None:
        keepalived.set_weight(self._instance.directory, weight)

    # --- routes ----------------------------------------------------------------------------------------
    def routes(self) -> list[Route]:
        with refused("routes"):
            return routes.read(self._mark)

    def announced_routes(self, addresses: Collection[str] | None = None) -> list[Route]:
        with refused("routes"):
            return routes.announced(addresses, self._mark)

    def add_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        with refused("routes"):
            return routes.add(wanted, self._mark, adopts=self.adopts)

    def remove_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        with refused("routes"):
            return routes.remove(wanted, self._mark)

    def hop_groups(self) -> list[HopGroup]:
        with refused("groups of next hops"):
            return hop_groups.read(self._mark)

    def foreign_hop_groups(self, wanted: Collection[HopGroup]) -> dict[int, str]:
        with refused("groups of next hops"):
            return hop_groups.foreign(wanted, self._mark)

    def has_resilient_groups(self) -> bool:
        return hop_groups.is_resilient()

    def put_hop_groups(self, wanted: Sequence[HopGroup]) -> list[Outcome]:
        with refused("groups of next hops"):
            return hop_groups.put(wanted, self._mark, adopts=self.adopts)

    def remove_hop_groups(self, numbers: Sequence[int]) -> list[Outcome]:
        with refused("groups of next hops"):
            return hop_groups.remove(numbers, self._mark)

    def unanswered(self, addresses: Collection[str]) -> list[str]:
        return [address for address in addresses if next_hop.is_silent(ip_address(address))]

    def next_hops(self) -> list[Neighbour]:
        with refused("routes"):
            return routes.next_hops(self._mark)

    def way_out(self, address: str) -> int | None:
        return routes.way_out(address)

    def ways(self, addresses: Collection[str]) -> dict[str, str]:
        with refused("routes"):
            return routes.ways(addresses)

    def hops_to(self, addresses: Collection[str]) -> dict[str, list[str]]:
        with refused("routes"):
            return routes.hops_to(addresses)

    def networks(self) -> list[str]:
        with refused("local addresses"):
            return routes.networks()
