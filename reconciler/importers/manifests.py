# SPDX-License-Identifier: Apache-2.0
"""Manifests as plain data, keys in the order in which people write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reconciler.importers.draft import Address, Endpoint, Manifest, port_text


def manifest(kind: str, name: str, spec: Mapping[str, Any]) -> Manifest:
    """A document; keys without a value are left out."""
    kept = {key: value for key, value in spec.items() if value is not None}
    return {"apiVersion": "lbctl/v1", "kind": kind, "metadata": {"name": name}, "spec": kept}


def service(
    name: str,
    vips: Sequence[Address],
    protocol: str,
    ports: Sequence[range],
    mode: str,
    algorithm: str,
    pool: str,
    **more: Any,
) -> Manifest:
    """A Service. `more` are further keys such as targetPort and affinity; None leaves a key out."""
    return manifest("Service", name, {
        "vip": str(vips[0]) if len(vips) == 1 else None,
        "vips": [str(vip) for vip in vips] if len(vips) > 1 else None,
        "protocol": protocol,
        "ports": [ports_value(found) for found in ports] or None,
        "targetPort": more.get("targetPort"),
        "mode": mode,
        "algorithm": algorithm,
        "pool": pool,
        **{key: value for key, value in more.items() if key != "targetPort"},
    })  # fmt: skip


def pool(
    name: str, endpoints: Iterable[Endpoint], check: Mapping[str, Any] | None = None, ring_size: int | None = None
) -> Manifest:
    return manifest("Pool", name, {
        "endpoints": [_endpoint(endpoint) for endpoint in endpoints],
        "ringSize": ring_size,
        "healthCheck": dict(check) if check else None,
    })  # fmt: skip


def node(name: str, interfaces: Sequence[Mapping[str, Any]], **more: Any) -> Manifest:
    """A Node; `more` are further keys such as undefinedTraffic and vipBinding; None leaves a key out."""
    return manifest("Node", name, {"interfaces": [dict(interface) for interface in interfaces], **more})


def ports_value(ports: range) -> int | str:
    return ports[0] if len(ports) == 1 else port_text(ports)


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    fields: dict[str, Any] = {"address": str(endpoint.address)}
    if endpoint.port is not None:
        fields["port"] = endpoint.port
    if endpoint.weight != 1:
        fields["weight"] = endpoint.weight
    if endpoint.state != "active":
        fields["state"] = endpoint.state
    return fields
