# SPDX-License-Identifier: Apache-2.0
"""Manifests as text, one line each: what a test is not about stays out of its sight."""

import dataclasses
import json
import re

from reconciler import model


def service(name="web", *, vip="20.20.20.1", ports="[80]", pool="web", more=""):
    spec = f"vip: {vip}, ports: {ports}, pool: {pool}{more and ', ' + more}"
    return f"---\napiVersion: lbctl/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def pool(name="web", *, endpoints="{address: 10.2.0.11}", more=""):
    spec = f"endpoints: [{endpoints}]{more and ', ' + more}"
    return f"---\napiVersion: lbctl/v1\nkind: Pool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


INTERFACES = "{name: front, addresses: [10.1.0.1/24]}, {name: back, addresses: [10.2.0.1/24]}"


def node(name="lb1", *, interfaces=INTERFACES, more=""):
    spec = f"interfaces: [{interfaces}]{more and ', ' + more}"
    return f"---\napiVersion: lbctl/v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def as_document(item):
    """Any service, pool or node of the model as a document, with nothing left out but what has no value."""
    spec = {key: value for key, value in _SPECS[type(item)](item).items() if value is not None}
    metadata = {"name": item.name, "labels": dict(item.labels)}
    return {"apiVersion": "lbctl/v1", "kind": type(item).__name__, "metadata": metadata, "spec": spec}


def as_text(fleet):
    """A fleet as documents of JSON, which are YAML."""
    return "\n---\n".join(json.dumps(as_document(item)) for item in (*fleet.services, *fleet.pools, *fleet.nodes))


def _service(s):
    affinity = s.affinity and {"by": s.affinity.by, "timeout": _duration(s.affinity.timeout_s)}
    return {
        "vips": _texts(s.vips), "protocol": s.protocol, "ports": s.ports or None, "targetPort": s.target_port,
        "mode": s.mode, "algorithm": s.algorithm, "pool": s.pool, "affinity": affinity,
        "idleTimeout": _duration(s.idle_timeout_s), "allowedSources": _texts(s.allowed_sources) or None,
        "nodeSelector": dict(s.node_selector), "echo": s.echo,
    }  # fmt: skip


def _pool(p):
    check = dataclasses.asdict(p.health_check)
    check |= {key: _duration(check.pop(f"{key}_s")) for key in ("interval", "timeout")}
    check = {_camel(key): value for key, value in check.items()}
    check["headers"] = dict(check["headers"])
    for key, types in OF_TYPES.items():
        if p.health_check.type not in (*types, "none"):
            del check[key]
    if p.health_check.type == "agent" and p.health_check.format == "words":
        del check["path"]
    endpoints = [
        {"address": str(e.address), "weight": e.weight, "state": e.state} | ({"port": e.port} if e.port else {})
        for e in p.endpoints
    ]
    check = {key: value for key, value in check.items() if value is not None}
    return {
        "endpoints": endpoints, "ringSize": p.ring_size, "healthCheck": check, "minHealthy": p.min_healthy,
        "whenNoneHealthy": p.when_none_healthy, "fallbackPool": p.fallback_pool, "onUnhealthy": p.on_unhealthy,
        "slowStart": _duration(p.slow_start_s), "announceMin": p.announce_min,
    }  # fmt: skip


_WEB = ("http", "https")
OF_TYPES = {
    "size": (*_WEB, "ping"), "path": (*_WEB, "agent"), "host": _WEB, "status": _WEB, "headers": _WEB, "text": _WEB,
    "serverName": ("https",), "verify": ("https",), "ca": ("https",), "send": ("udp",), "expect": ("udp",),
    "query": ("dns",), "record": ("dns",), "rcode": ("dns",), "format": ("agent",), "value": ("agent",),
}  # fmt: skip
"""Key of a health check → the types that may have it."""


def _camel(name):
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def _node(n):
    interfaces = [
        {"name": i.name, "addresses": _texts(i.addresses), "mtu": i.mtu_bytes}
        | ({"gateway": str(i.gateway)} if i.gateway else {})
        | ({"trunk": i.trunk, **({"tag": i.tag} if i.tag else {})} if i.trunk else {"xdp": i.xdp})
        for i in n.interfaces
    ]
    spec = {
        "role": n.role, "address": n.address and str(n.address), "interfaces": interfaces,
        "vipBinding": n.vip_binding, "icmpRedirects": n.icmp_redirects, "multipath": n.multipath,
    }  # fmt: skip
    if n.vip_routes:
        spec["vipRoutes"] = {"buckets": n.vip_routes.buckets, "idle": f"{n.vip_routes.idle_s}s"}
    if n.bgp:
        bgp = {"asn": n.bgp.asn, "bfd": n.bgp.bfd, "holdTime": f"{n.bgp.hold_time_s:.0f}s"}
        bgp |= {"multiprotocol": n.bgp.multiprotocol}
        bgp |= {"routerId": str(n.bgp.router_id)} if n.bgp.router_id else {}
        spec["bgp"] = bgp | {"neighbors": [{"address": str(p.address), "asn": p.asn} for p in n.bgp.neighbors]}
    if n.role == "balancer":
        capacity = {key: value for key, value in dataclasses.asdict(n.capacity).items() if value is not None}
        spec |= {
            "undefinedTraffic": n.undefined_traffic, "capacity": capacity,
            "snatAddresses": _texts(n.snat_addresses), "snatPorts": f"{n.snat_ports[0]}-{n.snat_ports[-1]}",
            "expectedFlows": n.expected_flows, "packetTooBig": n.packet_too_big,
            "healthAddress": {f"ipv{a.version}": str(a) for a in n.health_addresses} or None,
            "announce": n.announce and _announce(n.announce),
            "tunnelSource": {
                key: str(source)
                for key, source in dataclasses.asdict(n.tunnel_source).items() if source is not None
            },
        }  # fmt: skip
    return spec


def _announce(told):
    found = {"table": told.table, "metric": told.metric, "grace": _duration(told.grace_s)}
    if told.vrrp:
        found["vrrp"] = {"id": told.vrrp.id, "addresses": _texts(told.vrrp.addresses), "priority": told.vrrp.priority}
    return found | ({"degradedMetric": told.degraded_metric} if told.degraded_metric else {})


def _texts(items):
    return [str(item) for item in items]


def _duration(seconds):
    return None if seconds is None else f"{round(seconds * 1000)}ms"


_SPECS = {model.Service: _service, model.Pool: _pool, model.Node: _node}
