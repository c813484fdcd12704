# SPDX-License-Identifier: Apache-2.0
"""What became of packets that were watched, in the names of services, rings and endpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from reconciler.dataplane.layout import Verdict
from reconciler.explain.headers import Header, headers
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.port import Kernel
from reconciler.kernel.watching import Match, Report
from reconciler.kinds.endpoint import ids_of, numbered_rows
from reconciler.kinds.service import indexed_rows
from reconciler.ring_names import RingNames

_REFRESH_S = 1.0
_DROPPED = (XdpVerdict.DROP, XdpVerdict.ABORTED)
UNTOUCHED = "untouched"


@dataclass(frozen=True, slots=True)
class Told:
    """A packet; names are empty where nothing was looked up. `slot` is None then."""

    packet: list[Header]
    interface: str
    verdict: str
    service: str
    ring: str
    slot: int | None
    endpoint: str
    left: list[Header]
    """The headers of the frame that left; empty if none did."""

    @property
    def is_dropped(self) -> bool:
        return not self.left


class Names:
    """Names of what reports have numbers of; read anew when there is an unknown one, once a second at most."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._read_s = float("-inf")
        self._services: Mapping[int, str] = {}
        self._endpoints: Mapping[int, str] = {}
        self._rings: RingNames | None = None
        self._links: Mapping[int, str] = {}

    def told(self, report: Report) -> Told:
        if self._lacks(report) and time.monotonic() - self._read_s > _REFRESH_S:
            self._refresh()
        verdict = UNTOUCHED
        if report.verdict is not None:
            verdict = _word(report.verdict)
        ring = self._rings.name(report.ring) if self._rings and report.ring is not None else None
        return Told(
            headers(report.before), self.link(report.ingress), verdict,
            "" if report.service is None else self._services.get(report.service, f"removed service {report.service}"),
            "" if report.ring is None else ring or f"lost ring {report.ring}", report.slot,
            self._endpoints.get(report.endpoint, f"removed endpoint {report.endpoint}") if report.endpoint else "",
            [] if report.action in _DROPPED else headers(report.after),
        )  # fmt: skip

    def link(self, index: int) -> str:
        return self._links.get(index, f"interface {index}")

    def _lacks(self, report: Report) -> bool:
        return (
            (report.service is not None and report.service not in self._services)
            or bool(report.endpoint and report.endpoint not in self._endpoints)
            or report.ingress not in self._links
        )

    def _refresh(self) -> None:
        self._read_s = time.monotonic()
        self._services = {each.index: each.row.id for each in indexed_rows(self._kernel)}
        self._endpoints = ids_of(self._kernel, [each.number for each in numbered_rows(self._kernel)])
        self._rings = RingNames(self._kernel)
        self._links = {link.index: link.name for link in self._kernel.links()}


def is_about(report: Report, match: Match) -> bool:
    """Whether a report is about the flow. The program reports all packets to the client; those that don't come from
    the VIP, as far as can be seen at the end, are others'."""
    if match.vip is None:
        return True
    ends = _ends(report.before)
    if ends is None or ends[0] == match.client:
        return True
    left = _ends(report.after)
    return report.verdict is not None and (report.action in _DROPPED or left is None or left[0] == match.vip)


def _ends(frame: bytes) -> tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address] | None:
    """Source and destination of the outermost packet in a frame."""
    from ipaddress import ip_address

    network = next((header for header in headers(frame) if "ttl" in header), None)
    return (ip_address(network["source"]), ip_address(network["destination"])) if network else None


def _word(number: int) -> str:
    try:
        return Verdict(number).name.lower().replace("_", " ")
    except ValueError:
        return f"verdict {number}"
