# SPDX-License-Identifier: Apache-2.0
"""Who may connect: `allowedSources`."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.rule import Finding, rule
from reconciler.config.rules.segments import IPV6, number
from reconciler.model import Prefix, Service


@rule("sources-exclude-everybody", Service)
def _sources_exclude_everybody(service: Service) -> Iterator[Finding]:
    """`allowedSources` lets nobody through to a VIP: no network in it is of the family of the VIP, or none can
    hold a client.

    The VIP would answer no client, with healthy endpoints and without an error anywhere.

    The way out: add a network of the family of the VIP, for everybody `0.0.0.0/0` or `::/0`.
    """
    if not service.allowed_sources:
        return
    families = {prefix.version for prefix in service.allowed_sources if not _impossible(prefix)}
    for vip in service.vips:
        if vip.version not in families:
            message = f"no client can reach {vip}: none of these networks holds IPv{vip.version} clients"
            everybody = "0.0.0.0/0" if vip.version == 4 else "::/0"
            hint = f"add the networks of its clients; {everybody} stands for all"
            yield Finding(service.span, ("spec", "allowedSources"), message, hint)
            break


@rule("source-without-effect", Service, Severity.WARNING)
def _source_without_effect(service: Service) -> Iterator[Finding]:
    """An entry of `allowedSources` changes nothing: an earlier or a larger one covers it, or no client can have
    an address in it.

    If somebody removes the entry later to keep these clients out, they still come in. Or the entry is not what its
    author meant.

    The way out: remove the entry, or the larger one.
    """
    if service.allowed_sources:
        yield from _without_effect(service)


def _without_effect(service: Service) -> Iterator[Finding]:
    if len(service.allowed_sources) == 1:
        return  # either it has an effect, or it excludes everybody
    families = {vip.version for vip in service.vips}
    if not families & {prefix.version for prefix in service.allowed_sources if not _impossible(prefix)}:
        return  # sources-exclude-everybody
    outer: Prefix | None = None
    places = range(len(service.allowed_sources))
    for i in sorted(places, key=lambda i: _order(service.allowed_sources[i])):
        prefix = service.allowed_sources[i]
        reason = _impossible(prefix)
        if not reason and prefix.version not in families:
            reason = f"the service has no IPv{prefix.version} VIP"
        if not reason and outer and number(prefix[0]) <= number(outer[-1]):
            reason = f"{outer} covers it"
        if reason:
            message = f"{prefix} has no effect: {reason}"
            yield Finding(service.span, ("spec", "allowedSources", i), message, "remove it")
        else:
            outer = prefix


def _order(prefix: Prefix) -> tuple[int, int]:
    """By the first address, the larger network in front."""
    return number(prefix[0]), prefix.prefixlen


def _impossible(prefix: Prefix) -> str:
    """Why no packet has a source in a network, or nothing (RFC 6890, RFC 4291)."""
    first = number(prefix.network_address)
    if first >> 24 == 127 or (first == IPV6 + 1 and prefix.prefixlen == 128):
        return "loopback addresses never leave a machine"
    if 224 << 24 <= first < IPV6 or first >= IPV6 + (0xFF << 120):
        return "it holds no address of a single machine"
    return ""
