# SPDX-License-Identifier: Apache-2.0
"""Explanations for people, the reason first, and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from reconciler.explain.explanation import Explanation
from reconciler.explain.headers import Header
from reconciler.render.style import Style

FORMAT_VERSION = 1
"""Of explanations in JSON; it changes only if readers must change."""

_ASKS = "neighbour-unknown"
_WHY_SLOT = {
    "round-robin": ", whose turn is next",
    "least-connections": ", or of two slots the one whose endpoint has fewer connections for its weight",
}
"""By algorithm: why it is this slot, where no hash tells."""
_LABEL_WIDTH = 12
_LAYER_WIDTH = 10
_TRANSPORTS = ("tcp", "udp", "sctp", "icmp", "icmp6")
_UNINTERESTING = ("header", "source", "destination", "source_port", "destination_port", "identification",
                  "dont_fragment", "flags", "type", "chunk")  # fmt: skip


def explanation_json(explanations: Sequence[Explanation]) -> str:
    document = {"format_version": FORMAT_VERSION, "explanations": [asdict(each) for each in explanations]}
    return json.dumps(document, indent=2)


def headline(explanation: Explanation, style: Style, before: str = "") -> str:
    """The reason, and the receiver of the packet, on one line of text if that fits."""
    verdict = explanation.verdict.replace("-", " ")
    text = f"{verdict}: {explanation.reason}" if verdict else explanation.reason
    if explanation.endpoint and not explanation.is_dropped:
        text += f" ({explanation.endpoint['endpoint']})"
    shown = style.fitted(before + text, "  ")
    paint = style.bad if explanation.is_dropped else style.good
    return shown.replace(f"{verdict}:", f"{paint(verdict)}:", 1) if verdict else shown


def explanation_text(explanation: Explanation, style: Style) -> str:
    """The headline, and below it the steps that led there."""
    rows = list(_rows(explanation))
    lines = [headline(explanation, style)]
    for label, text in rows:
        label = f"  {label.ljust(_LABEL_WIDTH)}"
        shown = style.fitted(f"{label}{text}", " " * _LABEL_WIDTH)
        lines.append(style.dim(label) + shown.removeprefix(label))
    return "\n".join(lines)


def _rows(e: Explanation) -> Iterator[tuple[str, str]]:
    missing = f", {e.missing:,} bytes of it were not captured" if e.missing else ""
    yield "packet", f"{packet_line(e.packet)}, in by {e.ingress}{missing}"
    if e.vip:
        yield "vip", f"{e.vip['vip']}, undefined traffic: {e.vip['undefined_traffic']}, echo: {e.vip['echo']}"
    if e.service:
        row = f" (row of {e.service['map']}, counters {e.service['index']})" if "map" in e.service else ""
        facts = [str(e.service[name]) for name in ("mode", "algorithm") if name in e.service]
        facts += [f"target port {e.service['target_port']}"] if "target_port" in e.service else []
        yield "service", ", ".join([str(e.service["service"]), *facts]) + row
    if e.connection:
        yield "connection", f"known, {e.connection['state']} (row of connections)"
    if e.slot:
        where = "without slots"
        if "slot" in e.slot:
            where = f"slot {e.slot['slot']:,} of {e.slot['slots']:,}"
            where += _WHY_SLOT.get(str(e.service.get("algorithm")) if e.service else "", "")
        yield "ring", f"{e.slot['ring']}, {where} (row {e.slot['index']} of rings)"
    if e.transition:
        yield "transition", f"{e.transition['means']}; the slot belongs to {e.transition['current']} now"
    if e.endpoint:
        facts = [str(e.endpoint[name]) for name in ("endpoint", "state") if name in e.endpoint]
        facts += [f"by affinity: {e.endpoint['affinity']}"] if "affinity" in e.endpoint else []
        yield "endpoint", f"{', '.join(facts)} (row {e.endpoint['number']} of endpoints)"
    if e.fib == "found" and e.verdict == "no-route":
        yield "route", "found, but there is no source for the tunnel"
    elif e.fib and e.fib != "found":
        yield "route", e.fib
    if e.way:
        asks = f", so that it asks for the way to {_destination(e.out)}" if e.verdict == _ASKS else ""
        ways = {"interface": e.egress, "same-interface": f"{e.egress}, back out of the same interface",
                "kernel": f"given to the kernel{asks}"}  # fmt: skip
        unchanged = e.way == "kernel" and e.out == e.packet
        yield "out", ways[e.way] + (", as it came" if unchanged else "")
        for layer in () if unchanged else e.out:
            yield "", _layer(layer)


def packet_line(found: Sequence[Header]) -> str:
    """The innermost addresses and ports of a packet, but not of one that ICMP quotes, e.g. `tcp syn 192.0.2.1:4000 →
    192.0.2.2:80`."""
    names = [header["header"] for header in found]
    own = found[: names.index("quoted")] if "quoted" in names else found
    network = next((header for header in reversed(own) if "ttl" in header), None)
    if network is None:
        return " ".join(str(name) for name in names)
    last = own[-1] if own[-1]["header"] != "cut off" else own[-2]
    words = [str(last["header"])]
    words += [str(last[field]) for field in ("flags", "type", "chunk") if field in last]
    source, destination = (_place(network[side], last.get(f"{side}_port")) for side in ("source", "destination"))
    vlans = "".join(f", vlan {header['id']}" for header in own if header["header"] == "vlan")
    return f"{' '.join(words)} {source} → {destination}, {network['length']} bytes{vlans}"


def _destination(found: Sequence[Header]) -> str:
    """The destination of the packet that is sent instead of one whose next hop is unknown: the endpoint, or the
    gateway of the interface."""
    return next((str(header["destination"]) for header in found if "ttl" in header), "it")


def _place(address: str | int, port: str | int | None) -> str:
    if port is None:
        return str(address)
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def _layer(header: Header) -> str:
    """One header, e.g. `ipv4      192.0.2.1 → 192.0.2.2, ttl 63, length 40`."""
    facts = []
    for source, destination in (("source", "destination"), ("source_port", "destination_port")):
        facts += [f"{header[source]} → {header[destination]}"] if source in header else []
    facts += [str(header[field]) for field in ("type", "flags", "chunk") if field in header]
    facts += [
        f"{name.replace('_', ' ')} {value}" for name, value in header.items() if name not in _UNINTERESTING and value
    ]
    return f"{str(header['header']).ljust(_LAYER_WIDTH)}{', '.join(facts)}".rstrip()
