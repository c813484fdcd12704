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
    hush,
    links,
    local_vips,
    neighbours,
    next_hop,
    ownership,
    prober,
    proxies,
    routes,
    sysctl,
    tunnels,
    veth,
)
from reconciler.kernel.instance import Instance
from reconciler.kernel.instance_program import InstanceProgram
from reconciler.kernel.port import (
    Firewall,
    Link,
    LocalVip,
    Neighbour,
    Outcome,
    Prober,
    Route,
    TunnelDevice,
)
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
        self._ledger = sysctl.Ledger(self._instance)

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
        if left := self.former_sysctls():
            raise KernelError(f"settings are not restored yet: {some(sorted(left))}", hint="lbctl delete")
        with refused(f"directory {self._instance.directory}"):
            if self._instance.directory.exists():
                prober.remove(self._instance.directory)
            self._instance.remove()
            ownership.forget(self._instance)

    def hushed(self, places: Collection[tuple[str, str, int]]) -> AbstractContextManager[None]:
        return hush.hushed(places)

    # --- VIPs of the node ------------------------------------------------------------------------------
    def local_vips(self) -> list[LocalVip]:
        with refused("local addresses"):
            return local_vips.read()

    def foreign_addresses(self, addresses: Collection[str]) -> dict[str, str]:
        with refused("local addresses"):
            return local_vips.foreign(addresses)

    def add_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        with refused("local addresses"):
            return local_vips.add(vips)

    def remove_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        with refused("local addresses"):
            return local_vips.remove(vips)

    # --- checks through VIPs ---------------------------------------------------------------------------
    def prober(self) -> Prober | None:
        with refused("the interface of checks through VIPs"):
            return prober.read(self._instance.directory)

    def add_prober(self, addresses: Sequence[str]) -> None:
        with refused("the interface of checks through VIPs"):
            prober.add(self._instance.directory, addresses)

    def remove_prober(self) -> None:
        with refused("the interface of checks through VIPs"):
            prober.remove(self._instance.directory)

    # --- tunnels ---------------------------------------------------------------------------------------
    def knows_tunnel(self, form: str) -> bool:
        with refused("tunnels"):
            return tunnels.known(form)

    def tunnels(self) -> list[TunnelDevice]:
        with refused("tunnels"):
            return tunnels.read()

    def add_tunnel(self, device: TunnelDevice) -> None:
        with refused(f"tunnel {device.name}"):
            tunnels.add(device)

    def remove_tunnel(self, name: str) -> None:
        with refused(f"tunnel {name}"):
            tunnels.remove(name)

    # --- sysctls ---------------------------------------------------------------------------------------
    def read_sysctl(self, name: str) -> str | None:
        return sysctl.read(name)

    def write_sysctl(self, name: str, value: str) -> None:
        sysctl.write(name, value)

    def former_sysctls(self) -> dict[str, str]:
        return {} if claims.is_stale(self._instance, self._netns) else self._ledger.values()

    def remember_sysctl(self, name: str, former: str) -> None:
        self._ledger.put(name, former)

    def forget_sysctl(self, name: str) -> None:
        self._ledger.drop(name)

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
            return neighbours.read()

    def keep_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return neighbours.keep(wanted)

    def forget_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return neighbours.forget(wanted)

    def neighbour_proxies(self) -> tuple[list[Neighbour], list[Neighbour]]:
        with refused("neighbours"):
            return proxies.read()

    def add_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return proxies.add(wanted)

    def remove_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return proxies.remove(wanted)

    def announce(self, vips: Collection[str]) -> None:
        with refused("announcements of VIPs"):
            announce.announce(vips)

    # --- the routing daemon ----------------------------------------------------------------------------
    def routing_configuration(self) -> str | None:
        return frr.running(self._netns)

    def load_routing(self, lines: Sequence[str]) -> None:
        with refused("FRR"):
            frr.load(self._netns, lines)

    # --- routes ----------------------------------------------------------------------------------------
    def routes(self) -> list[Route]:
        with refused("routes"):
            return routes.read()

    def announced_routes(self) -> list[Route]:
        with refused("routes"):
            return routes.announced()

    def add_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        with refused("routes"):
            return routes.add(wanted)

    def remove_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        with refused("routes"):
            return routes.remove(wanted)

    def unanswered(self, addresses: Collection[str]) -> list[str]:
        return [address for address in addresses if next_hop.is_silent(ip_address(address))]

    def next_hops(self) -> list[Neighbour]:
        with refused("routes"):
            return routes.next_hops()

    def way_out(self, address: str) -> int | None:
        return routes.way_out(address)

    def ways(self, addresses: Collection[str]) -> dict[str, str]:
        with refused("routes"):
            return routes.ways(addresses)

    def networks(self) -> list[str]:
        with refused("local addresses"):
            return routes.networks()
