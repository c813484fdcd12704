# SPDX-License-Identifier: Apache-2.0
"""IPv4 and IPv6: which modes can bring packets of one family to endpoints of the other."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import quote
from reconciler.config.rules.parts import Use
from reconciler.config.rules.rule import Finding, more, rule, vip_path
from reconciler.config.rules.segments import IPV6
from reconciler.model import Endpoint, Mode, Service


@rule("vip-families", Service)
def _vip_families(service: Service) -> Iterator[Finding]:
    """A service has VIPs of both IPv4 and IPv6, in a mode that can't turn one into the other.

    In the modes nat, fullnat and dsr-l2 packets keep their family, so an endpoint could serve only some of the
    VIPs.

    The way out: a service for each family, each with a pool of its own family; or mode dsr-l3, whose tunnel takes
    packets of either family to IPv6 endpoints.
    """
    if len(service.vips) > 1 and service.mode is not Mode.DSR_L3:
        first = service.vips[0]
        other = next((vip for vip in service.vips if vip.version != first.version), None)
        if other is not None:
            i = service.vips.index(other)
            message = f"the VIPs {first} and {other} can't share a service in mode {service.mode}"
            hint = "write a service, and a pool, for each of IPv4 and IPv6, or use mode dsr-l3 and IPv6 endpoints"
            yield Finding(service.span, vip_path(service, i), message, hint)


@rule("family-mismatch", Use)
def _family_mismatch(use: Use) -> Iterator[Finding]:
    """An endpoint is of another family than a VIP, IPv4 or IPv6, in a mode that can't bring packets of the one to
    the other.

    In the modes nat, fullnat and dsr-l2 packets keep their family. The tunnel of dsr-l3 takes packets of either
    family to IPv6 endpoints, but only IPv4 to IPv4 endpoints. The endpoint would never get any, while its share of
    the connections would be dropped.

    The way out: endpoints of the family of the VIP, one pool for each family, or mode dsr-l3 and IPv6 endpoints.
    """
    others: dict[int, list[Endpoint]] = {}
    members = use.pool
    for service in use.services if members else ():
        assert members is not None
        vip = service.vips[0]
        if service.mode is Mode.DSR_L3:  # only its IPv6 VIPs need endpoints of a certain family
            vip = next((vip for vip in service.vips if vip.version == 6), vip)
        elif len({vip.version for vip in service.vips}) > 1:
            continue
        if service.mode is Mode.DSR_L3 and vip.version == 4:
            continue
        first, last = members.least, members.greatest
        if first > last or (last < IPV6 if vip.version == 4 else first >= IPV6):
            continue
        if vip.version not in others:
            others[vip.version] = [e for e in members.pool.endpoints if e.address.version != vip.version]
        endpoint = others[vip.version][0]
        message = (
            f"{service.mode} can't bring packets for {vip} to the IPv{endpoint.address.version} endpoint "
            f"{endpoint.address} ({endpoint.span})" + more(len(others[vip.version]), "endpoint")
        )
        what = "pool"
        if service.pool != use.name:
            message, what = f"{message} of the fallback {quote(use.name)}", "fallback"
        hint = f"name a {what} of IPv{vip.version} endpoints"
        if service.mode is not Mode.DSR_L3 and vip.version == 4:
            hint += ", or use mode dsr-l3"
        yield Finding(service.span, ("spec", "pool"), message, hint)
