# SPDX-License-Identifier: Apache-2.0
"""What a node has beside rows of maps: programs, addresses, neighbours, routes, links, tunnels, firewalls. Plain data,
as the kernel interface (`port`) gives and takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from reconciler.limits import Sizes


def maps_of(layout: str, sizes: Sizes) -> str:
    """The layout and the sizes of a program's maps in one text: equal if no map has to be made anew."""
    return f"{layout}/{sizes}" if layout else ""


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """The program that is pinned for this instance. `name` carries the digest of what it was built from.

    `features` None: nobody wrote down which features it was built with. `sizes` is what its maps have room for, and
    `layout` the digest of what their rows look like, empty if nobody described them. `is_taking_over`: it began to
    take over from an earlier program and was cut off.
    """

    id: int
    name: str
    features: tuple[str, ...] | None = None
    sizes: Sizes = Sizes()  # noqa: RUF009 - frozen
    layout: str = ""
    is_taking_over: bool = False

    @property
    def maps(self) -> str:
        return maps_of(self.layout, self.sizes)


@dataclass(frozen=True, slots=True)
class AttachedProgram:
    """The program that an interface runs: `mode` is "native" or "generic"; `owner` describes it for a person.

    `is_loaded`: it is the program that is pinned. `has_our_maps`: the pinned program took over from it. `maps` is what
    `maps_of` says of its maps, empty if nobody described them.
    """

    interface: str
    mode: str
    id: int
    name: str
    owner: str
    is_loaded: bool = True
    has_our_maps: bool = True
    maps: str = ""


@dataclass(frozen=True, slots=True, order=True)
class LocalVip:
    """A VIP that the node takes for its own: `form` is "route" or "address"."""

    address: str
    form: str


@dataclass(frozen=True, slots=True, order=True)
class Neighbour:
    """An address on a network of the node, and the interface that it is reached by.

    `is_lasting`, of a kept neighbour: whether the kernel keeps its entry even while it doesn't answer.
    """

    address: str
    interface: str
    is_lasting: bool = field(default=True, compare=False)


class Client(NamedTuple):
    """The client's end of a connection of TCP, and the VIP's. `expects` is about the number of the next byte that it
    waits for; it is no less than that."""

    address: IPv4Address | IPv6Address
    port: int
    vip: IPv4Address | IPv6Address
    vip_port: int
    expects: int


PROBER_DEVICE = "lbctl-checks"
"""The interface of the node behind which the prober is."""


@dataclass(frozen=True, slots=True)
class Prober:
    """Where checks through VIPs come from: its own addresses, the number of the node's interface and the MAC that it
    is reached by. `wrong` says what of it is damaged."""

    addresses: tuple[str, ...]
    index: int = 0
    mac: bytes = bytes(6)
    wrong: str = ""


MAIN_TABLE = 254
LAST_METRIC = 0x7FFF_FFFF
"""Every other route to the same network goes first."""


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """The way to a network: a next hop on an interface, the interface alone, or a group of next hops. Without any,
    packets to the network end here."""

    to: str
    via: str = ""
    interface: str = ""
    table: int = MAIN_TABLE
    metric: int = LAST_METRIC
    group: int = 0


@dataclass(frozen=True, slots=True, order=True)
class HopGroup:
    """Next hops that routes share, by the number of the group. Without `buckets` it is no resilient group."""

    number: int
    hops: tuple[Neighbour, ...]
    buckets: int = 0
    idle_s: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """A network interface. A VLAN has its tag and the index of its trunk. `mac` is empty if the interface has none.

    `master` is the index of the bridge, bond or VRF that the interface is a port of. `is_promiscuous`: whether it
    takes frames for any MAC, as somebody wanted.
    """

    name: str
    index: int
    trunk: int | None = None
    tag: int | None = None
    is_up: bool = True
    master: int | None = None
    is_promiscuous: bool = field(default=False, compare=False)
    mac: bytes = field(default=b"", compare=False)
    mtu_bytes: int = field(default=65_536, compare=False)


GRO, LRO, GRO_HW = "generic-receive-offload", "large-receive-offload", "rx-gro-hw"
"""Offloads that put packets of a connection together: by the kernel, or, the other two, by the network card."""
RX_VLAN = "rx-vlan-offload"
"""The offload that takes VLAN tags out of frames before XDP sees the frames."""


class OffloadState(NamedTuple):
    """`is_on`: whether an interface does it. `is_free`: whether anybody may change that. `is_asked_for`: whether
    somebody wants it on; a driver may do it unasked."""

    is_on: bool
    is_free: bool = True
    is_asked_for: bool = True

    @property
    def can_end(self) -> bool:
        """Whether asking for it no more may end it."""
        return self.is_free and self.is_asked_for


@dataclass(frozen=True, slots=True)
class VlanLink:
    """An interface for the packets with one tag that come in by another one, its trunk. Addresses have the lengths of
    their prefixes."""

    name: str
    trunk: str
    tag: int
    mtu_bytes: int
    addresses: tuple[str, ...] = ()
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class TunnelDevice:
    """A link that unpacks packets sent to `local` in tunnels of a form: "ipip" or "ip6tnl".

    `settings` are sysctls that are written before the device is taken up; they are not read back with it.
    """

    name: str
    form: str
    local: str
    mtu_bytes: int
    settings: tuple[tuple[str, str], ...] = ()
    is_up: bool = True
    is_ours: bool = True


@dataclass(frozen=True, slots=True)
class Firewall:
    """A firewall that drops forwarded packets of these versions of IP, unless a rule says otherwise.

    `unnamed` are the interfaces, of those that were asked about, that none of its rules names; `remedy` is the command
    that lets through packets from an interface, with {} in the place of its name.
    """

    name: str
    versions: tuple[int, ...]
    unnamed: tuple[str, ...]
    remedy: str
