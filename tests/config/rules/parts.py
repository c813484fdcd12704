# SPDX-License-Identifier: Apache-2.0
"""Parts of manifests that many cases are made of."""

from tests.config.manifests import node, pool, service

TWO_BALANCERS = node("lb1") + node(
    "lb2", interfaces="{name: front, addresses: [10.1.0.2/24]}, {name: back, addresses: [10.2.0.2/24]}"
)


def labelled(text, labels):
    """One document with labels."""
    return text.replace("metadata: {", f"metadata: {{labels: {{{labels}}}, ", 1)


def endpoint(name, address, *, mtu=1500, more=""):
    """A Node of role endpoint with one interface."""
    interface = f"{{name: eth0, addresses: [{address}/24], mtu: {mtu}{more and ', ' + more}}}"
    return node(name, interfaces=interface, more="role: endpoint")


def web(mode="nat", *, vip="20.20.20.1", ports="[80]", more="", endpoints="{address: 10.2.0.11}", check=""):
    """A service and its pool."""
    parts = ", ".join(part for part in (f"mode: {mode}" if mode != "nat" else "", more) if part)
    check = check and f"healthCheck: {check}"
    return service(vip=vip, ports=ports, more=parts) + pool(endpoints=endpoints, more=check)
