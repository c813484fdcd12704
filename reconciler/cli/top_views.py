# SPDX-License-Identifier: Apache-2.0
"""What `lbctl top` shows, and what keys change about it: a list of services, of the endpoints of one or of all, of
what became of packets; and behind a service or an endpoint, an explanation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from reconciler.dataplane.layout import Verdict
from reconciler.errors import LbctlError
from reconciler.kernel.port import Kernel
from reconciler.kinds.service_row import ServiceRow
from reconciler.readings.rates import (
    EndpointRates,
    Rates,
    Sample,
    ServiceRates,
    endpoint_rates,
    member_rates,
    service_rates,
    verdict_rates,
)
from reconciler.render.style import Style
from reconciler.render.top import (
    Listing,
    endpoints_listing,
    folded,
    listing_lines,
    services_listing,
    summary,
    verdicts_listing,
)

SERVICES, ENDPOINTS, VERDICTS = "services", "endpoints", "verdicts"
LISTS = (SERVICES, ENDPOINTS, VERDICTS)
ORDERS = {"requests": "request_packets", "bits": "request_bits", "replies": "reply_packets",
          "connections": "connections", "name": ""}  # fmt: skip
"""What a list can be ordered by."""
MAX_ENDPOINTS = 200
"""Of the list of all endpoints; those of one service are all there."""
HELP = "↑↓ choose  → in  ← back  tab lists  e explain  s order  p pause  q quit"


@dataclass(frozen=True, slots=True)
class Measured:
    """The node between two samples, under the heads of the lists."""

    kernel: Kernel
    before: Sample
    after: Sample

    def services(self, order: str) -> list[ServiceRates]:
        found = service_rates(self.kernel, self.before, self.after)
        return sorted(found, key=lambda each: _rank(each.rates, order)) if ORDERS[order] else found

    def endpoints(self, order: str) -> list[EndpointRates]:
        by = ORDERS[order] or "request_packets"
        found = endpoint_rates(self.kernel, self.before, self.after, MAX_ENDPOINTS, by)
        return found if ORDERS[order] else sorted(found, key=lambda each: each.endpoint)

    def members(self, ring: str, order: str) -> list[EndpointRates]:
        found = member_rates(self.kernel, self.before, self.after, ring)
        return sorted(found, key=lambda each: _rank(each.rates, order) if ORDERS[order] else 0)


def _rank(rates: Rates, order: str) -> float:
    return -float(getattr(rates, ORDERS[order]))


Explain = Callable[[ServiceRow, str], str]
"""The explanation of a packet to a service, one that goes to this endpoint if such a client is known. Raises
LbctlError."""


@dataclass(slots=True)
class Views:
    """The state of the screen. `service` is the one whose endpoints are listed; None: all are."""

    explain: Explain
    what: str = SERVICES
    order: str = "requests"
    service: ServiceRow | None = None
    text: str | None = None
    """An explanation, over the list; None if there is none."""
    chosen: int = 0
    first: int = 0
    is_paused: bool = False
    ended: bool = False
    _rows: Sequence[ServiceRates | EndpointRates] = field(default_factory=list)
    _count: int = 0
    _room: int = 1

    def press(self, key: str) -> None:
        """Do what a key stands for; unknown ones do nothing."""
        steps = {"up": -1, "down": 1, "page up": -self._room, "page down": self._room,
                 "home": -1_000_000, "end": 1_000_000}  # fmt: skip
        if key in steps:
            self._move(steps[key])
        elif key == "q":
            self.ended = True
        elif key == "p":
            self.is_paused = not self.is_paused
        elif key == "s":
            orders = list(ORDERS)
            self.order = orders[(orders.index(self.order) + 1) % len(orders)]
            self._to_top()
        elif key == "tab" or key in ("1", "2", "3"):
            at = int(key) - 1 if key != "tab" else (LISTS.index(self.what) + 1) % len(LISTS)
            self.what, self.service, self.text = LISTS[at], None, None
            self._to_top()
        elif key == "left":
            self._back()
        elif key in ("right", "e"):
            self._enter(key == "e")

    def _move(self, by: int) -> None:
        if self.text is not None:
            self.first = max(0, min(self.first + by, self._count - self._room))
        else:
            self.chosen = max(0, min(self.chosen + by, self._count - 1))

    def _to_top(self) -> None:
        self.chosen = self.first = 0

    def _back(self) -> None:
        if self.text is not None:
            self.text, self.first = None, 0
        elif self.service is not None:
            self.what, self.service = SERVICES, None
            self._to_top()

    def _enter(self, to_explanation: bool) -> None:
        if self.text is not None or self.chosen >= len(self._rows):
            return
        row = self._rows[self.chosen]
        if isinstance(row, ServiceRates) and not to_explanation:
            self.what, self.service = ENDPOINTS, row.row
            self._to_top()
            return
        service = row.row if isinstance(row, ServiceRates) else self.service
        if service is None:
            self.text = "An explanation is of a packet to a service: choose one in the list of services (tab)."
        else:
            try:
                endpoint = row.endpoint if isinstance(row, EndpointRates) else ""
                self.text = self.explain(service, endpoint)
            except LbctlError as error:
                self.text = f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")
        self.first = 0

    def frame(self, measured: Measured, head: str, width: int, height: int, style: Style) -> list[str]:
        """The lines of the whole screen: a head, the node's sums, the list or the explanation, and a foot."""
        services = measured.services(self.order)
        rates = verdict_rates(measured.before, measured.after)
        total = reduce(Rates.__add__, (each.rates for each in services), Rates())
        top = [style.bold(head[:width]), summary(total, rates)[:width], ""]
        self._room = max(1, height - len(top) - 4)
        if self.text is not None:
            lines = folded(self.text, width)
            self._count = len(lines)
            self.first = max(0, min(self.first, len(lines) - self._room))
            left = max(0, len(lines) - self.first - self._room)
            foot = f"{left} more lines below" if left else ""
            return self._whole(top, lines[self.first : self.first + self._room], foot, width, style)
        listing = self._listing(measured, services, rates)
        self._count = len(listing.rows)
        self.chosen = max(0, min(self.chosen, self._count - 1))
        self.first = max(min(self.first, self.chosen), self.chosen - self._room + 1)
        title = f"{listing.title}, by {self.order}" if self.what != VERDICTS else listing.title
        if self._count > self._room:
            title += f"  {self.first + 1}-{min(self._count, self.first + self._room)} of {self._count}"
        body = listing_lines(listing, width, style, self.chosen, self.first, self._room)
        detail = listing.rows[self.chosen].detail if listing.rows else ""
        top[-1] = title[:width]
        return self._whole(top, body, detail, width, style)

    def _whole(self, top: list[str], body: list[str], foot: str, width: int, style: Style) -> list[str]:
        padding = [""] * (self._room + 2 - len(body))
        return [*top, *body, *padding, foot[:width], style.dim(HELP[:width])]

    def _listing(
        self, measured: Measured, services: list[ServiceRates], rates: Mapping[Verdict, float]
    ) -> Listing:
        if self.what == VERDICTS:
            self._rows = []
            return verdicts_listing(rates, measured.after.verdicts)
        if self.what == SERVICES:
            self._rows = services
            return services_listing(services)
        if self.service is None:
            endpoints = measured.endpoints(self.order)
        else:
            endpoints = measured.members(self.service.ring, self.order)
        self._rows = endpoints
        return endpoints_listing(endpoints, self.service.id if self.service else "")


def page(measured: Measured, head: str, order: str, width: int, style: Style, most: int) -> list[str]:
    """All lists below each other, for output that nobody turns pages of; of each the first `most` rows."""
    services = measured.services(order)
    rates = verdict_rates(measured.before, measured.after)
    total = reduce(Rates.__add__, (each.rates for each in services), Rates())
    lines = [style.bold(head), summary(total, rates)]
    for listing in (
        services_listing(services),
        endpoints_listing(measured.endpoints(order), ""),
        verdicts_listing(rates, measured.after.verdicts),
    ):
        lines += ["", *listing_lines(listing, width, style, room=most)]
        if len(listing.rows) > most:
            lines.append(f"… and {len(listing.rows) - most:,} more")
    return lines
