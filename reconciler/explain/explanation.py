# SPDX-License-Identifier: Apache-2.0
"""Why the program treats a frame as it does: the values that a trial saw, in the words of manifests and maps."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from reconciler.dataplane.layout import (
    ENDPOINTS,
    ENDPOINTS6,
    MARK_TUNNEL,
    RING_NAMES,
    SERVICE_MAPS,
    VIP_MAPS,
    AlgorithmCode,
    ConnectionState,
    EchoCode,
    EndpointRowState,
    Memory,
    ModeCode,
    UndefinedCode,
    word,
)
from reconciler.dataplane.rows import Number
from reconciler.explain.capture import Captured
from reconciler.explain.headers import Header, headers
from reconciler.explain.packet import ICMP6, PROTOCOLS
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.objects import PROBER_DEVICE, Link
from reconciler.kernel.trial import Outcome, Trial

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()} | {ICMP6: "icmp"}
_ICMP = ("icmp", "icmp6")

Fields = Mapping[str, str | int]

FIB = {
    0: "found", 1: "a blackhole route", 2: "an unreachable route", 3: "a prohibit route",
    4: "no route that forwards: none at all, or to the node itself",
    5: "forwarding is off on the ingress interface", 6: "a route with an encapsulation of its own",
    7: "the MAC of the next hop is unknown", 8: "longer than the MTU of the way", 9: "no source address for the way",
}  # fmt: skip
"""The results of bpf_fib_lookup(): BPF_FIB_LKUP_RET_* of include/uapi/linux/bpf.h."""

MEMORY = {
    Memory.BEGINS: "the connection begins: it goes to the new endpoint and is remembered",
    Memory.REMEMBERED: "the connection is remembered",
    Memory.PREVIOUS: "the connection is unknown, so it is an old one: it stays with the former endpoint",
    Memory.CURRENT: "the connection is unknown, and new or its former endpoint dead: it goes to the new endpoint",
}
NOBODYS_MEMORY = {
    Memory.BEGINS: "the connection begins, and the pool has no endpoint for new ones",
    Memory.CURRENT: "the connection is unknown: it is new, or its former endpoint takes no packets any more",
}
"""The same for a slot without an endpoint, since the pool has no active one."""


CHECK = "a check through a VIP: it goes to this endpoint on the way of the traffic, whatever the ring says"
NO_CHECK = "dropped: from here come checks alone, whose source MAC says which endpoint they are for"
_MAC_BYTES, _MARKED = 6, b"\x02\x00"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One packet. A value that the program never looked up is None.

    `reason` is a sentence; `verdict` the counter that moved, empty if none did. `way` says how the packet leaves:
    `interface`, `same-interface`, `kernel`, or empty if it doesn't. `egress` is the interface by which it leaves,
    `out` are its headers then. `missing` bytes of the packet are not in the capture that it was taken from.
    """

    verdict: str
    reason: str
    ingress: str
    packet: Sequence[Header]
    missing: int
    vip: Fields | None
    service: Fields | None
    connection: Fields | None
    slot: Fields | None
    transition: Fields | None
    endpoint: Fields | None
    fib: str | None
    way: str
    egress: str
    out: Sequence[Header]

    @property
    def is_dropped(self) -> bool:
        return self.reason.startswith("dropped")


def explain(trial: Trial, series: Sequence[Captured], ingress: Link) -> list[Explanation]:
    """Explain frames that come in on an interface one after the other. Raises KernelError."""
    outcomes = trial.run([captured.frame for captured in series], ingress.index)
    names = _Names(_services(trial), _rings(trial))
    return [
        _explain(trial, names, captured, outcome, ingress.name)
        for captured, outcome in zip(series, outcomes, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Names:
    """Services by the index of their counters, the names of rings by their index."""

    services: Mapping[int, Fields]
    rings: Mapping[int, str]


def _explain(trial: Trial, names: _Names, captured: Captured, outcome: Outcome, ingress: str) -> Explanation:
    seen, packet = outcome.seen, headers(captured.frame)
    if seen["bytes"] < len(captured.frame):
        seen, outcome = {}, replace(outcome, action=XdpVerdict.ABORTED, verdict=None)
        reason = f"not explained: a trial takes frames of at most {outcome.seen['bytes']:,} bytes"
    elif ingress == PROBER_DEVICE and outcome.verdict is None and outcome.action == XdpVerdict.DROP:
        number = checked(captured.frame)
        seen, reason = ({"endpoint": number}, CHECK) if number else ({}, NO_CHECK)
    else:
        reason = _reason(outcome, packet)
    way, egress = _way(outcome, ingress)
    return Explanation(
        verdict=outcome.verdict.name.lower().replace("_", "-") if outcome.verdict is not None else "",
        reason=reason,
        ingress=ingress,
        packet=packet,
        missing=captured.length - len(captured.frame),
        vip=_vip(trial, packet) if "vip" in seen else None,
        service=names.services.get(seen["service"], {"service": "removed"}) if "service" in seen else None,
        connection={"state": word(ConnectionState, seen["flow"])} if "flow" in seen else None,
        slot=_slot(names, seen) if "slots" in seen else None,
        transition=_transition(trial, seen) if "holder" in seen and "memory" in seen else None,
        endpoint=_chosen(trial, seen) if seen.get("endpoint") else None,
        fib=FIB.get(seen["fib"], "refused the question") if "fib" in seen else None,
        way=way,
        egress=egress,
        out=headers(outcome.frame) if way else (),
    )


def checked(frame: bytes) -> int:
    """The number of the endpoint that a check is for, from the source MAC of its frame (bpf/mark.c); 0: it is none."""
    source = frame[_MAC_BYTES : 2 * _MAC_BYTES]
    mark = int.from_bytes(source[2:], "big")
    return mark % MARK_TUNNEL if source[:2] == _MARKED and mark < 2 * MARK_TUNNEL else 0


def _reason(outcome: Outcome, packet: Sequence[Header]) -> str:
    if outcome.verdict is not None:
        return outcome.verdict.meaning
    if outcome.action != XdpVerdict.PASS:
        return "dropped: the program gave up"
    if "vip" not in outcome.seen and any(header["header"] == "vlan" for header in packet):
        return "not for a VIP, or in a VLAN that is not the balancer's: left to the kernel as it came"
    if "vip" not in outcome.seen:
        return "not for a VIP: left to the kernel as it came"
    if any(header["header"] in _ICMP for header in packet):
        return "ICMP for a VIP, which is an address of the node: left to the kernel"
    return "to a VIP, but to none of its services: left to the kernel"


def _way(outcome: Outcome, ingress: str) -> tuple[str, str]:
    match outcome.action:
        case XdpVerdict.TX:
            return "same-interface", ingress
        case XdpVerdict.REDIRECT:
            return "interface", _interface(outcome.seen.get("egress"))
        case XdpVerdict.PASS:
            return "kernel", ""
    return "", ""


def _interface(index: int | None) -> str:
    try:
        return socket.if_indextoname(index or 0)
    except OSError:
        return f"interface {index}"


def _vip(trial: Trial, packet: Sequence[Header]) -> Fields:
    vip = ip_address(next(header["destination"] for header in packet if "ttl" in header))
    spec = VIP_MAPS[vip.version]
    row = spec.value.unpack(trial.row(spec.name, vip.packed) or bytes(spec.value_size))
    return {"vip": str(vip), "undefined_traffic": word(UndefinedCode, row.undefined), "echo": word(EchoCode, row.echo)}


def _services(trial: Trial) -> dict[int, Fields]:
    found: dict[int, Fields] = {}
    for spec in SERVICE_MAPS.values():
        for key, row in spec.unpack(trial.rows(spec.name)):
            service: dict[str, str | int] = {
                "service": f"{_place(key.vip, key.port)}/{_PROTOCOL_NAMES.get(key.protocol, str(key.protocol))}",
                "mode": word(ModeCode, row.mode), "algorithm": word(AlgorithmCode, row.algorithm),
                "map": spec.name, "index": row.index,
            }  # fmt: skip
            found[row.index] = service | ({"target_port": row.target_port} if row.target_port else {})
    return found


def _rings(trial: Trial) -> dict[int, str]:
    rows = RING_NAMES.unpack(trial.rows(RING_NAMES.name))
    return {ring.number: key.name.rstrip(b"\0").decode("utf-8", "replace") for key, ring in rows}


def _slot(names: _Names, seen: Mapping[str, int]) -> Fields:
    index = seen["rings"]
    found: dict[str, str | int] = {
        "ring": names.rings.get(index, f"ring {index}"), "index": index, "slots": seen["slots"],
    }  # fmt: skip
    return found | ({"slot": seen["slot"]} if "slot" in seen else {})


def _transition(trial: Trial, seen: Mapping[str, int]) -> Fields:
    memory, holder = Memory(seen["memory"]), seen["holder"]
    return {
        "memory": word(Memory, memory),
        "means": MEMORY[memory] if holder else NOBODYS_MEMORY.get(memory, MEMORY[memory]),
        "current": _endpoint(trial, holder)["endpoint"] if holder else "nobody",
    }


def _chosen(trial: Trial, seen: Mapping[str, int]) -> Fields:
    """The endpoint, and whether it is the one that the client had before."""
    is_kept = seen.get("memory") == Memory.AFFINITY and "slots" not in seen
    return {**_endpoint(trial, seen["endpoint"]), **({"affinity": "the client had it before"} if is_kept else {})}


def _endpoint(trial: Trial, number: int) -> Fields:
    key = ENDPOINTS.key.pack(Number(number))
    row = ENDPOINTS.value.unpack(trial.row(ENDPOINTS.name, key) or bytes(ENDPOINTS.value_size))
    address = row.address
    if not any(address):
        address = trial.row(ENDPOINTS6.name, key) or address
    return {"endpoint": _place(address, row.port), "state": word(EndpointRowState, row.state), "number": number}


def _place(packed: bytes, port: int) -> str:
    address = ip_address(packed)
    if not port:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
