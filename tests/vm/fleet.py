# SPDX-License-Identifier: Apache-2.0
"""The manifests of the site, and what is asked for there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.vm.site import BALANCER, ENDPOINTS, address

VIP, VIP6 = "20.20.20.1", "2001:db8:20::1"
NEAR, FAR = ("ep1", "ep2"), ("ep2", "ep3")


class Case(NamedTuple):
    """A service. `way` is how packets go on to `hosts`: "mac", "nat", or the versions of inner and outer header. By
    nat they go to `server_port`."""

    protocol: str
    vip: str
    port: int
    hosts: Sequence[str]
    way: str
    server_port: int = 0


CASES = {
    "dsr-l2 tcp": Case("tcp", VIP, 80, NEAR, "mac"),
    "dsr-l2 sctp": Case("sctp", VIP, 80, NEAR, "mac"),
    "dsr-l2 udp": Case("udp", VIP, 80, NEAR, "mac"),
    "dsr-l2 tcp6": Case("tcp", VIP6, 80, NEAR, "mac"),
    "dsr-l3 tcp": Case("tcp", VIP, 443, FAR, "4-in-4"),
    "dsr-l3 sctp": Case("sctp", VIP, 443, FAR, "4-in-4"),
    "dsr-l3 udp": Case("udp", VIP, 443, FAR, "4-in-4"),
    "dsr-l3 tcp6": Case("tcp", VIP6, 443, FAR, "6-in-6"),
    "dsr-l3 sctp6": Case("sctp", VIP6, 443, FAR, "6-in-6"),
    "dsr-l3 tcp over IPv6": Case("tcp", VIP, 8443, FAR, "4-in-6"),
}
NAT_CASES = {
    "nat sctp": Case("sctp", VIP, 5060, NEAR, "nat", 5060),
    "nat sctp to another port": Case("sctp", VIP, 36412, NEAR, "nat", 9000),
    "nat tcp": Case("tcp", VIP, 80, NEAR, "nat", 8080),
    "nat udp": Case("udp", VIP, 53, NEAR, "nat", 5353),
    "nat tcp6": Case("tcp", VIP6, 80, NEAR, "nat", 8080),
}
SILENT = Case("sctp", VIP, 2905, NEAR, "nat", 9001)
"""A service whose servers are the test's own."""
_MODES = {"mac": "dsr-l2", "nat": "nat"}


def manifests(cases: Iterable[Case] = tuple(CASES.values())) -> str:
    """A service for each case, the balancer, the endpoints."""
    documents = []
    for number, case in enumerate(cases):
        mode = _MODES.get(case.way, "dsr-l3")
        version = 6 if case.way.endswith("6") or (":" in case.vip) else 4
        spec = f"vip: '{case.vip}', protocol: {case.protocol}, ports: [{case.port}], mode: {mode}, pool: p{number}"
        if case.server_port:
            spec += f", targetPort: {case.server_port}, algorithm: round-robin"
        documents.append(("Service", f"s{number}", f"{{{spec}}}"))
        endpoints = ", ".join(f"{{address: '{address(host, version)}'}}" for host in case.hosts)
        documents.append(("Pool", f"p{number}", f"{{endpoints: [{endpoints}]}}"))
    for host in (BALANCER, *ENDPOINTS):
        role = "balancer" if host == BALANCER else "endpoint"
        addresses = f"{address(host)}/24, '{address(host, 6)}/64'"
        documents.append(("Node", host, f"{{role: {role}, interfaces: [{{name: eth0, addresses: [{addresses}]}}]}}"))
    return "---\n".join(
        f"apiVersion: lbctl/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        for kind, name, spec in documents
    )
