# SPDX-License-Identifier: Apache-2.0
"""The words of the kernel's IPVS, which ipvsadm and keepalived share, translated into those of the manifests.

Sources: ipvsadm(8), keepalived.conf(5), net/netfilter/ipvs/ip_vs_*.c of the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from reconciler.importers.draft import Endpoint, Notices, bare

DEFAULT_SCHEDULER = "wlc"
DEFAULT_PERSISTENCE_S = 360
MAX_WEIGHT = 2**31 - 1

# These hash the address of the client alone; with its port they hash connections, as maglev does.
_HASHING = {"sh": "sh-port", "mh": "mh-port"}
_EXACT = {"rr": "round-robin", "wrr": "round-robin", "lc": "least-connections", "wlc": "least-connections",
          "twos": "least-connections"}  # fmt: skip
_NEAREST = {
    "sed": "least-connections", "nq": "least-connections", "lblc": "least-connections", "ovf": "least-connections",
    "lblcr": "least-connections", "dh": "round-robin", "fo": "round-robin",
    "conhash": "source-hash",
}  # fmt: skip
SCHEDULERS = {*_HASHING, *_EXACT, *_NEAREST}
_UNWEIGHTED = ("rr", "lc")
_FLAG_NAMES = {"sh": ("sh-fallback", "sh-port"), "mh": ("mh-fallback", "mh-port")}


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The algorithm; the scheduler's name as messages show it; whether it ignores weights."""

    algorithm: str
    name: str
    unweighted: bool


def scheduling(said_scheduler: str, flags: Collection[str], line: int, notices: Notices) -> Scheduling:
    """The algorithm for a scheduler of IPVS and its flags; an empty scheduler stands for the default."""
    scheduler = said_scheduler or DEFAULT_SCHEDULER
    shown = bare(scheduler) if said_scheduler else f"{scheduler} (the default)"
    names = _FLAG_NAMES.get(scheduler, ())
    said = {names[int(flag[-1]) - 1] if flag in ("flag-1", "flag-2") and names else flag for flag in flags}
    for flag in sorted(said.difference(names)):
        notices.missing(line, f"scheduler flag {bare(flag)}")
    if scheduler in _HASHING:
        return Scheduling("maglev" if _HASHING[scheduler] in said else "source-hash", shown, False)
    if scheduler in _EXACT:
        return Scheduling(_EXACT[scheduler], shown, scheduler in _UNWEIGHTED)
    algorithm = _NEAREST.get(scheduler, "round-robin")
    message = f"scheduler {shown} has no counterpart: {algorithm} is written"
    if scheduler == "fo":
        message += ", with the servers of the highest weight active and the others draining"
    notices.add(line, message)
    return Scheduling(algorithm, shown, False)


def standby(scheduler: str, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """The endpoints; under `fo` (failover) only those that would be in use take connections."""
    found = tuple(endpoints)
    if scheduler != "fo" or not found:
        return found
    highest = max(endpoint.weight for endpoint in found)
    return tuple(e if e.weight == highest else replace(e, state="draining") for e in found)
