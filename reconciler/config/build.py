# SPDX-License-Identifier: Apache-2.0
"""Documents that their schema accepts become values of the model. Nothing here can fail."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface

from reconciler.config.document import Document, Seq
from reconciler.config.formats import port_range
from reconciler.model import (
    Algorithm,
    Endpoint,
    EndpointState,
    Interface,
    Mode,
    Node,
    Pool,
    Protocol,
    Service,
    Undefined,
    VipBinding,
    XdpMode,
)

Object = Service | Pool | Node


def build(document: Document) -> Object:
    """What a document describes, with the place of each part."""
    return _BUILDERS[document.root["kind"]](document)


def count_ports(document: Document) -> int:
    """How many ports a service has, a port for each time that it is listed: what building it costs."""
    if document.root["kind"] != "Service":
        return 0
    return sum(len(port_range(item)) for item in document.root["spec"]["ports"])


def _service(document: Document) -> Service:
    spec = document.root["spec"]
    return Service(
        name=document.root["metadata"]["name"],
        vip=IPv4Address(spec["vip"]),
        protocol=Protocol(spec.get("protocol", "tcp")),
        ports=tuple(sorted(port for item in spec["ports"] for port in port_range(item))),
        pool=spec["pool"],
        mode=Mode(spec.get("mode", "nat")),
        algorithm=Algorithm(spec.get("algorithm", "round-robin")),
        target_port=spec.get("targetPort"),
        span=document.span,
    )


def _pool(document: Document) -> Pool:
    endpoints: Seq = document.root["spec"]["endpoints"]
    return Pool(
        name=document.root["metadata"]["name"],
        endpoints=tuple(
            Endpoint(
                address=IPv4Address(item["address"]),
                port=item.get("port"),
                weight=item.get("weight", 1),
                state=EndpointState(item.get("state", "active")),
                span=document.span_of(event),
            )
            for item, event in zip(endpoints, endpoints.events, strict=True)
        ),
        span=document.span,
    )


def _node(document: Document) -> Node:
    spec = document.root["spec"]
    interfaces: Seq = spec.get("interfaces", Seq())
    return Node(
        name=document.root["metadata"]["name"],
        interfaces=tuple(
            Interface(
                name=item["name"],
                xdp=XdpMode(item.get("xdp", "native")),
                addresses=tuple(map(IPv4Interface, item.get("addresses", ()))),
                span=document.span_of(event),
            )
            for item, event in zip(interfaces, interfaces.events, strict=True)
        ),
        undefined_traffic=Undefined(spec.get("undefinedTraffic", "drop")),
        vip_binding=VipBinding(spec.get("vipBinding", "route")),
        span=document.span,
    )


_BUILDERS: dict[str, Callable[[Document], Object]] = {"Service": _service, "Pool": _pool, "Node": _node}
