# SPDX-License-Identifier: Apache-2.0
"""Turn documents that fit their schema into values of the model. Nothing here can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from reconciler.config.document import Document, Map, Seq
from reconciler.config.formats import address, port_range, seconds
from reconciler.model import (
    Affinity,
    AffinityBy,
    AgentFormat,
    Algorithm,
    Announce,
    Bgp,
    Capacity,
    CheckSize,
    CheckType,
    Echo,
    Endpoint,
    EndpointState,
    HealthCheck,
    IcmpRedirects,
    Interface,
    Labels,
    Mode,
    Neighbor,
    Node,
    OnUnhealthy,
    PacketTooBig,
    Places,
    Pool,
    Protocol,
    Rcode,
    Record,
    Role,
    Service,
    Through,
    TunnelSource,
    Undefined,
    Verify,
    VipBinding,
    VipRoutes,
    Vrrp,
    WhenNoneHealthy,
    XdpMode,
)

Object = Service | Pool | Node


def build(document: Document) -> Object:
    """The object that a document describes, with the place of each part."""
    return _BUILDERS[document.root["kind"]](document)


def count_ports(document: Document) -> int:
    """How many ports a service lists, repeated ones included: building it costs that many steps."""
    if document.root["kind"] != "Service":
        return 0
    spec = document.root["spec"]
    return len(spec.get("vips", (0,))) * sum(len(port_range(item)) for item in spec.get("ports", ()))


def _service(document: Document) -> Service:
    spec = document.root["spec"]
    mode = Mode(spec.get("mode", Mode.NAT))
    usual = Algorithm.MAGLEV if mode.is_dsr else Algorithm.ROUND_ROBIN
    return Service(
        vips=tuple(map(address, spec["vips"] if "vips" in spec else [spec["vip"]])),
        protocol=Protocol(spec.get("protocol", Protocol.TCP)),
        ports=tuple(sorted(port for item in spec.get("ports", ()) for port in port_range(item))),
        pool=spec["pool"],
        mode=mode,
        algorithm=Algorithm(spec.get("algorithm", usual)),
        target_port=spec.get("targetPort"),
        affinity=Affinity(**_given(spec["affinity"], _AFFINITY)) if "affinity" in spec else None,
        idle_timeout_s=seconds(spec["idleTimeout"]) if "idleTimeout" in spec else None,
        stateless=spec.get("stateless", False),
        allowed_sources=tuple(map(ip_network, spec.get("allowedSources", ()))),
        echo=Echo(spec["echo"]) if "echo" in spec else None,
        node_selector=_labels(spec.get("nodeSelector", {})),
        **_common(document),
    )


def _pool(document: Document) -> Pool:
    spec = document.root["spec"]
    endpoints: Seq = spec["endpoints"]
    return Pool(
        endpoints=tuple(
            [
                Endpoint(
                    address(item["address"]), item.get("port"), item.get("weight", 1), _STATES[item.get("state")], span
                )
                for item, span in zip(endpoints, document.spans_of(endpoints.events), strict=True)
            ]
        ),
        health_check=HealthCheck(**_given(spec.get("healthCheck", {}), _HEALTH_CHECK)),
        **_given(spec, _POOL),
        **_common(document),
    )


def _node(document: Document) -> Node:
    spec = document.root["spec"]
    interfaces: Seq = spec.get("interfaces", Seq())
    return Node(
        interfaces=tuple(
            Interface(**_given(item, _INTERFACE), span=document.span_of(event))
            for item, event in zip(interfaces, interfaces.events, strict=True)
        ),
        **_given(spec, _NODE),
        **_common(document),
    )


def _common(document: Document) -> dict[str, Any]:
    """The arguments that all kinds have: metadata and places in the file."""
    metadata = document.root["metadata"]
    return {
        "name": metadata["name"],
        "labels": _labels(metadata.get("labels", {})),
        "span": document.span,
        "places": _places(document),
    }


def _labels(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _places(document: Document) -> Places:
    spec: Map = document.root["spec"]
    return {name: document.span_of(key) for name, (key, _) in spec.events.items()}


def _given(spec: Map, fields: dict[str, tuple[str, Callable[[Any], Any]]]) -> dict[str, Any]:
    """The arguments for the keys that a manifest has, by the model's names for them."""
    return {name: value(spec[key]) for key, (name, value) in fields.items() if key in spec}


def _as_is(value: Any) -> Any:
    return value


def _addresses(items: Seq) -> tuple[Any, ...]:
    return tuple(map(address, items))


_STATES: dict[str | None, EndpointState] = {None: EndpointState.ACTIVE, **{s.value: s for s in EndpointState}}
_AFFINITY: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "by": ("by", AffinityBy),
    "timeout": ("timeout_s", seconds),
}
_HEALTH_CHECK: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "type": ("type", CheckType),
    "port": ("port", _as_is),
    "interval": ("interval_s", seconds),
    "timeout": ("timeout_s", seconds),
    "rise": ("rise", _as_is),
    "fall": ("fall", _as_is),
    "through": ("through", Through),
    "size": ("size", CheckSize),
    "path": ("path", _as_is),
    "host": ("host", _as_is),
    "status": ("status", tuple),
    "headers": ("headers", _labels),
    "text": ("text", _as_is),
    "serverName": ("server_name", _as_is),
    "verify": ("verify", Verify),
    "ca": ("ca", _as_is),
    "send": ("send", _as_is),
    "expect": ("expect", _as_is),
    "query": ("query", _as_is),
    "record": ("record", Record),
    "rcode": ("rcode", Rcode),
    "format": ("format", AgentFormat),
    "value": ("value", _as_is),
}
_POOL: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "ringSize": ("ring_size", _as_is),
    "minHealthy": ("min_healthy", _as_is),
    "whenNoneHealthy": ("when_none_healthy", WhenNoneHealthy),
    "fallbackPool": ("fallback_pool", _as_is),
    "slowStart": ("slow_start_s", seconds),
    "onUnhealthy": ("on_unhealthy", OnUnhealthy),
    "announceMin": ("announce_min", _as_is),
}
_INTERFACE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("name", _as_is),
    "xdp": ("xdp", XdpMode),
    "addresses": ("addresses", lambda items: tuple(map(ip_interface, items))),
    "mtu": ("mtu_bytes", _as_is),
    "gateway": ("gateway", address),
    "trunk": ("trunk", _as_is),
    "tag": ("tag", _as_is),
}
_TUNNEL_SOURCE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "ipv4": ("ipv4", ip_network),
    "ipv6": ("ipv6", ip_network),
}
_VRRP: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "id": ("id", _as_is),
    "addresses": ("addresses", lambda items: tuple(map(ip_interface, items))),
    "priority": ("priority", _as_is),
}
_ANNOUNCE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "table": ("table", _as_is),
    "metric": ("metric", _as_is),
    "degradedMetric": ("degraded_metric", _as_is),
    "grace": ("grace_s", seconds),
    "vrrp": ("vrrp", lambda given: Vrrp(**_given(given, _VRRP))),
}
_NEIGHBOR: dict[str, tuple[str, Callable[[Any], Any]]] = {"address": ("address", address), "asn": ("asn", _as_is)}
_BGP: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "asn": ("asn", _as_is),
    "routerId": ("router_id", address),
    "bfd": ("bfd", _as_is),
    "holdTime": ("hold_time_s", seconds),
    "multiprotocol": ("multiprotocol", _as_is),
    "neighbors": ("neighbors", lambda items: tuple(Neighbor(**_given(item, _NEIGHBOR)) for item in items)),
}
_VIP_ROUTES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "buckets": ("buckets", _as_is),
    "idle": ("idle_s", lambda text: round(seconds(text))),
}
_NODE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "role": ("role", Role),
    "address": ("address", address),
    "undefinedTraffic": ("undefined_traffic", Undefined),
    "vipBinding": ("vip_binding", VipBinding),
    "capacity": ("capacity", lambda limits: Capacity(**limits)),
    "snatAddresses": ("snat_addresses", _addresses),
    "snatPorts": ("snat_ports", port_range),
    "expectedFlows": ("expected_flows", _as_is),
    "icmpRedirects": ("icmp_redirects", IcmpRedirects),
    "multipath": ("multipath", _as_is),
    "tunnelSource": ("tunnel_source", lambda given: TunnelSource(**_given(given, _TUNNEL_SOURCE))),
    "packetTooBig": ("packet_too_big", PacketTooBig),
    "bgp": ("bgp", lambda given: Bgp(**_given(given, _BGP))),
    "vipRoutes": ("vip_routes", lambda given: VipRoutes(**_given(given, _VIP_ROUTES))),
    "healthAddress": ("health_addresses", lambda given: tuple(address(given[key]) for key in sorted(given))),
    "announce": ("announce", lambda given: Announce(**_given(given, _ANNOUNCE))),
}

_BUILDERS: dict[str, Callable[[Document], Object]] = {"Service": _service, "Pool": _pool, "Node": _node}
