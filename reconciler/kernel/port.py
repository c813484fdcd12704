# SPDX-License-Identifier: Apache-2.0
"""Everything that lbctl can see and change on a node: the one interface between kinds and any kernel.

Rows are bytes here; the kinds give them meaning. A write of many rows is one call and gives one outcome a
row, in order: None for success, else the error. Rows after a failed one are still tried. Writing a row that is
there replaces it; deleting an absent row is no error. Reading a map that was never made gives nothing, so a node
without a data plane reads as empty.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from reconciler.kernel.objects import (
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
from reconciler.limits import Sizes

if TYPE_CHECKING:  # numpy takes long to import, and most commands that name this interface need none
    from reconciler.dataplane.slots import Words

Outcome = Exception | None
Row = tuple[bytes, bytes]


class Kernel(Protocol):
    """One node. Every method raises KernelError where the kernel refuses the whole call."""

    adopts: bool
    """Whether what is there already, but not ours, becomes ours where we want something in its place: VIPs on the
    loopback, routes, groups of next hops, tunnels, programs on interfaces, configurations of daemons."""

    def claim(self) -> None:
        """Note that the node is this instance's, before its first change. UsageError if it is another instance's."""
        ...

    def steady(self) -> AbstractContextManager[None]:
        """Within this, the caller holds the instance's lock (lock.py): nobody else changes programs or rings, so what
        was found out about them once need not be found out again."""
        ...

    # --- maps ------------------------------------------------------------------------------------------
    def dump(self, map_name: str) -> list[Row]:
        """All rows. Of an array: those that are not all zero. Of a per-CPU map: the values of all CPUs, joined.

        Of an array of arrays: the indexes that have an inner array, with a number that means nothing here.
        """
        ...

    def joined(self, map_name: str) -> Row:
        """All keys of a map, joined, and all its values, in the same order: what a scan of many rows begins with.

        Of an array, rows that are all zero may be left out. Not for arrays of arrays.
        """
        ...

    def lookup(self, map_name: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of these keys, in order; None where there is none. A row of an array that was never written is
        all zero."""
        ...

    def update(self, map_name: str, rows: Sequence[Row]) -> list[Outcome]: ...

    def delete(self, map_name: str, keys: Sequence[bytes]) -> list[Outcome]:
        """Remove rows; the rows of an array are filled with zeros."""
        ...

    def capacity(self, map_name: str) -> int:
        """How many rows a map has room for; 0 if there is no such map."""
        ...

    # --- memory that programs and processes share ------------------------------------------------------
    def words(self, map_name: str) -> Words | None:
        """The content of an array that can be mapped into memory, as 64-bit words. None if it was never made.

        It shows whatever is written later, or not. Not to be written: `update` writes rows of one word in one atomic
        step.
        """
        ...

    def swap_words(self, map_name: str, swaps: Sequence[tuple[int, int, int]]) -> list[bool]:
        """Change words of such an array, each in one atomic step: its place, what it was when somebody looked, and
        what it becomes; returns for each whether it was still that."""
        ...

    def sweep_translated(self, version: int, buckets: int) -> int:
        """Clear the places of connections of fullnat that are no more, in the next so many buckets of a table;
        returns how many. Raises KernelError."""
        ...

    def chunk(self, outer: str, index: int) -> Words | None:
        """An inner array of an array of arrays, to be read and written in place. None if there is none."""
        ...

    def add_chunk(self, outer: str, index: int) -> Words:
        """Put an inner array of zeros at an index that has none."""
        ...

    def remove_chunks(self, outer: str, indexes: Sequence[int]) -> None: ...

    def words_elsewhere(self, map_name: str) -> list[Words]:
        """The content of maps like this one that programs of other generations still read, since an interface could
        not change programs yet; as this version would have it. Raises KernelError."""
        ...

    def wait_for_programs(self, outer: str) -> None:
        """Return once every program has ended that was under way, and so may have read what was there before."""
        ...

    # --- the program -----------------------------------------------------------------------------------
    def loaded_program(self) -> LoadedProgram | None: ...

    def load_program(self, name: str, features: Sequence[str], sizes: Sizes | None = None) -> None:
        """Build or fetch the program, and pin it with the maps that it needs.

        Maps that the live program has in the same layout and size are kept; others are made beside those, with their
        rows. `sizes` None: those of the live program. A program whose pin is lost is live as long as an interface runs
        it.
        """
        ...

    def unload_program(self) -> None:
        """Unpin the program. What is still attached keeps running, with its maps, until it is detached."""
        ...

    def attached_programs(self, interfaces: Collection[str]) -> list[AttachedProgram]:
        """The programs on these interfaces, and our own programs on any others."""
        ...

    def taking_over(self) -> AbstractContextManager[None]:
        """Within this, interfaces change from earlier programs to the loaded one, without breaking a connection."""
        ...

    def attach(self, interface: str, mode: str, replaces: int | None) -> None:
        """Attach the loaded program if the interface runs `replaces` (a program id; None: nothing) just now."""
        ...

    def detach(self, interface: str, mode: str, replaces: int) -> None: ...

    def hushed(self, places: Collection[tuple[str, str, int]]) -> AbstractContextManager[None]:
        """While this is held, no answer comes from these places of the node (protocol, address, port), as far as
        nobody listens there."""
        ...

    def remove_instance(self) -> None:
        """Remove what is left of the instance itself. Raises KernelError while it still holds objects."""
        ...

    # --- VIPs of the node ------------------------------------------------------------------------------
    def local_vips(self, addresses: Collection[str] | None = None) -> list[LocalVip]:
        """The VIPs that carry our mark; only these, if any are named."""
        ...

    def foreign_addresses(self, addresses: Collection[str]) -> dict[str, str]:
        """Which of these the node already holds without our mark: address → owner for a person."""
        ...

    def add_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]: ...

    def remove_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]: ...

    # --- checks through VIPs ---------------------------------------------------------------------------
    def prober(self) -> Prober | None: ...

    def add_prober(self, addresses: Sequence[str]) -> None:
        """Make it, or bring it to what it should be."""
        ...

    def remove_prober(self) -> None:
        """Remove it; no error if there is none."""
        ...

    # --- tunnels ---------------------------------------------------------------------------------------
    def knows_tunnel(self, form: str) -> bool:
        """Whether devices of this form can be made. Makes none."""
        ...

    def tunnels(self) -> list[TunnelDevice]:
        """All that take packets from any sender, whoever made them."""
        ...

    def add_tunnel(self, device: TunnelDevice) -> None:
        """Make a device, or bring ours of this name to what it should be."""
        ...

    def remove_tunnel(self, name: str) -> None: ...

    # --- VLANs -----------------------------------------------------------------------------------------
    def vlan_links(self) -> list[VlanLink]:
        """Those that are ours, with all their addresses."""
        ...

    def add_vlan_link(self, link: VlanLink) -> None:
        """Make one, or bring ours of this name to what it should be."""
        ...

    def remove_vlan_link(self, name: str) -> None: ...

    # --- sysctls ---------------------------------------------------------------------------------------
    def read_sysctl(self, name: str) -> str | None:
        """The value of e.g. `net/ipv4/ip_forward`, None if the kernel has no such setting."""
        ...

    def write_sysctl(self, name: str, value: str) -> None: ...

    def former_sysctls(self) -> dict[str, str]:
        """The settings that we changed, with their former values."""
        ...

    def remember_sysctl(self, name: str, former: str) -> None: ...

    def forget_sysctl(self, name: str) -> None: ...

    # --- offloads --------------------------------------------------------------------------------------
    def offloads(self, interfaces: Collection[str]) -> dict[tuple[str, str], OffloadState]:
        """What of GRO, LRO, GRO_HW and RX_VLAN these interfaces do, by names of interface and offload, as far as they
        are there."""
        ...

    def write_offload(self, interface: str, name: str, is_on: bool) -> None:
        """Ask for it, or no more. The driver may do otherwise."""
        ...

    def former_offloads(self) -> set[tuple[str, str]]:
        """The offloads that we ended, which were on: names of interface and offload."""
        ...

    def remember_offload(self, interface: str, name: str) -> None: ...

    def forget_offload(self, interface: str, name: str) -> None: ...

    # --- others' firewalls -----------------------------------------------------------------------------
    def firewalls(self, interfaces: Collection[str]) -> list[Firewall]:
        """The firewalls that drop forwarded packets by default. Changes nothing."""
        ...

    # --- interfaces and neighbours ---------------------------------------------------------------------
    def links(self) -> list[Link]: ...

    def far_ends(self, interfaces: Collection[str]) -> dict[str, bool]:
        """The veth interfaces among these, each with whether its far end is seen to run a program in native mode."""
        ...

    def missing_addresses(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """The missing ones of these (interface, address with its prefix length), each with a text about what is there
        instead.

        An address without a prefix length may be on any interface.
        """
        ...

    def keeps_neighbours(self) -> bool:
        """Whether this kernel can keep neighbours resolved by itself."""
        ...

    def neighbours(self) -> tuple[list[Neighbour], list[Neighbour]]:
        """The neighbours that the kernel keeps for us, and those that others take care of."""
        ...

    def keep_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        """Have the kernel keep these resolved. Those of others are left alone, without an error."""
        ...

    def forget_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]: ...

    def neighbour_proxies(self) -> tuple[list[Neighbour], list[Neighbour]]:
        """The addresses of IPv6 that the kernel answers for on an interface: ours, and those of others."""
        ...

    def add_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]: ...

    def remove_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]: ...

    def announce(self, vips: Collection[str]) -> None:
        """Tell the machines of each attached network which of these VIPs are in that network, and here now."""
        ...

    def rouse(self, clients: Sequence[Client]) -> None:
        """Have clients of TCP send a packet of their connection, which the program then knows what to do with."""
        ...

    # --- the routing daemon ----------------------------------------------------------------------------
    def routing_configuration(self) -> str | None:
        """What the routing daemon FRR runs with; None if there is none."""
        ...

    def load_routing(self, lines: Sequence[str]) -> None:
        """Type lines into the configuration of FRR, from its top; it may ignore some without a word."""
        ...

    # --- VRRP ------------------------------------------------------------------------------------------
    def vrrp_configuration(self) -> tuple[str | None, str]:
        """Our configuration of keepalived, None if there is none; and of one that is not ours, what it is."""
        ...

    def load_vrrp(self, text: str | None) -> None:
        """Have keepalived work by this; None: by nothing, and it gives up all addresses."""
        ...

    def vrrp_runs(self) -> bool:
        """Whether keepalived runs."""
        ...

    def vrrp_weight(self) -> int | None:
        """What keepalived adds to its priority; None if it was never told."""
        ...

    def set_vrrp_weight(self, weight: int) -> None: ...

    # --- routes ----------------------------------------------------------------------------------------
    def routes(self) -> list[Route]:
        """The routes of the main table that carry our mark."""
        ...

    def announced_routes(self, addresses: Collection[str] | None = None) -> list[Route]:
        """The routes to interfaces alone that carry our mark, in all other tables but `local`; only those to these
        single addresses, if any are given."""
        ...

    def add_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        """Make routes, or correct our routes to the same networks with the same table and metric."""
        ...

    def remove_routes(self, wanted: Sequence[Route]) -> list[Outcome]: ...

    def hop_groups(self) -> list[HopGroup]:
        """The groups of next hops that carry our mark, by number."""
        ...

    def foreign_hop_groups(self, wanted: Collection[HopGroup]) -> dict[int, str]:
        """Objects that are not ours in the place of these groups or their members, described, by the group's number.
        """
        ...

    def has_resilient_groups(self) -> bool:
        """Whether this kernel can keep all other flows where they are while a member comes or goes."""
        ...

    def put_hop_groups(self, wanted: Sequence[HopGroup]) -> list[Outcome]:
        """Make groups, or give them other members."""
        ...

    def remove_hop_groups(self, numbers: Sequence[int]) -> list[Outcome]: ...

    def unanswered(self, addresses: Collection[str]) -> list[str]:
        """Which of these the kernel asks for their MAC in vain; those that it never asked are not."""
        ...

    def next_hops(self) -> list[Neighbour]:
        """The routers that the routes of others lead by."""
        ...

    def way_out(self, address: str) -> int | None:
        """The index of the interface by which the kernel sends what is for an address; None if it has no way."""
        ...

    def ways(self, addresses: Collection[str]) -> dict[str, str]:
        """The interface by which the kernel sends what is for each address; empty where it has no way. Addresses about
        which it gives no answer are left out."""
        ...

    def hops_to(self, addresses: Collection[str]) -> dict[str, list[str]]:
        """The next hops of the route that the kernel would take to each address; none where it leads to no router."""
        ...

    def networks(self) -> list[str]:
        """The networks that the node is attached to by an address, and its own single addresses."""
        ...
