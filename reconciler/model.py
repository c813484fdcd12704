# SPDX-License-Identifier: Apache-2.0
"""What operators write, as frozen values: services, pools, nodes. No I/O, no kernel, no YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface

from reconciler.resource import Span

NOWHERE = Span("", 0)


class Mode(StrEnum):
    NAT = "nat"


class Protocol(StrEnum):
    TCP = "tcp"


class Algorithm(StrEnum):
    ROUND_ROBIN = "round-robin"
    SOURCE_HASH = "source-hash"


class EndpointState(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"    # no new connections, the old ones go on
    DISABLED = "disabled"    # no traffic at all, open connections end


class XdpMode(StrEnum):
    NATIVE = "native"
    GENERIC = "generic"


class Undefined(StrEnum):
    """What becomes of packets to a VIP that belong to none of its services."""

    DROP = "drop"
    PASS = "pass"


class VipBinding(StrEnum):
    """How a VIP is made the node's own: a `local` route, or an address on the loopback."""

    ROUTE = "route"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server behind a VIP. `port` None means: the port that the client asked for."""

    address: IPv4Address
    port: int | None = None
    weight: int = 1
    state: EndpointState = EndpointState.ACTIVE
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Pool:
    name: str
    endpoints: tuple[Endpoint, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    vip: IPv4Address
    protocol: Protocol
    ports: tuple[int, ...]
    pool: str
    mode: Mode = Mode.NAT
    algorithm: Algorithm = Algorithm.ROUND_ROBIN
    target_port: int | None = None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that takes part in balancing; `addresses` are declared, not configured."""

    name: str
    xdp: XdpMode = XdpMode.NATIVE
    addresses: tuple[IPv4Interface, ...] = ()
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    interfaces: tuple[Interface, ...]
    undefined_traffic: Undefined = Undefined.DROP
    vip_binding: VipBinding = VipBinding.ROUTE
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A whole source directory, checked: every reference resolves, every rule holds."""

    services: tuple[Service, ...] = ()
    pools: tuple[Pool, ...] = ()
    nodes: tuple[Node, ...] = ()
    digest: str = ""
    """Changes if and only if the content that this was made from changed."""
