# SPDX-License-Identifier: Apache-2.0
"""Rates on a screen: lines that fit its width, busiest first; pure text, whoever draws it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from reconciler import safe
from reconciler.dataplane.layout import Verdict
from reconciler.readings.rates import EndpointRates, Rates, ServiceRates
from reconciler.render.style import Style

_UNITS = "kMGTPE"
_NUMBER = 8
"""Columns of a number with the blanks before it."""
_HEADS = ("CONN/S", "REQ/S", "BIT/S", "REPLY/S", "BIT/S")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list: the name on its left, numbers or text behind it."""

    name: str
    cells: Sequence[str]
    detail: str = ""
    """What is said of the row while it is chosen."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A list with its heads."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Row]
    empty: str


def short(number: float) -> str:
    """A number in at most five characters: 0, 0.3, 42, 1.2k, 35M."""
    if number < 9.95:
        return f"{number:.1f}".removesuffix(".0")
    if number < 999.5:
        return f"{number:.0f}"
    for unit in _UNITS:
        number /= 1000
        if number < 9.95:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return "lots"


def services_listing(rates: Sequence[ServiceRates]) -> Listing:
    rows = []
    for each in rates:
        detail = f"{each.row.id}  {each.row.mode}, {each.row.algorithm}, ring {safe.line(each.row.ring)}"
        rows.append(Row(each.row.id, _cells(each.rates), detail))
    return Listing("services", ("SERVICE", *_HEADS), rows, "There are no services on this node.")


def endpoints_listing(rates: Sequence[EndpointRates], of: str) -> Listing:
    """`of`: the service; empty for all."""
    rows = []
    for each in rates:
        share = [] if each.share is None else [f"{each.share:.1%}"]
        rows.append(Row(each.endpoint, [*share, *_cells(each.rates)], each.endpoint))
    heads = ("ENDPOINT", *(["SHARE"] if of else []), *_HEADS)
    title = f"endpoints of {of}" if of else "endpoints"
    return Listing(title, heads, rows, "Its ring has no endpoints." if of else "There are no endpoints on this node.")


def verdicts_listing(rates: Mapping[Verdict, float], packets: Mapping[Verdict, int]) -> Listing:
    ordered = sorted(rates, key=lambda verdict: (not verdict.meaning.startswith("dropped"), -rates[verdict], verdict))
    rows = []
    for verdict in ordered:
        cells = [short(rates[verdict]), f"{packets.get(verdict, 0):,}"]
        rows.append(Row(verdict.name.lower().replace("_", " "), cells, verdict.meaning))
    return Listing("what became of packets", ("VERDICT", "PACKET/S", "PACKETS"), rows, "No packet to a VIP yet.")


def summary(total: Rates, verdicts: Mapping[Verdict, float]) -> str:
    """The whole node on one line."""
    dropped = sum(rate for verdict, rate in verdicts.items() if verdict.meaning.startswith("dropped"))
    return (
        f"{short(total.connections)} conn/s  requests {short(total.request_packets)}/s "
        f"{short(total.request_bits)}b/s  replies {short(total.reply_packets)}/s {short(total.reply_bits)}b/s  "
        f"drops {short(dropped)}/s"
    )


def listing_lines(
    listing: Listing, width: int, style: Style, chosen: int | None = None, first: int = 0, room: int | None = None
) -> list[str]:
    """The heads, and `room` rows from the `first` one on; the `chosen` one is marked."""
    if not listing.rows:
        return [listing.empty]
    # The last column of verdicts holds totals of any length.
    columns = range(len(listing.heads) - 1)
    widths = [max(_NUMBER, 2 + max(len(row.cells[at]) for row in listing.rows)) for at in columns]
    name = max(10, width - sum(widths))
    longest = max(len(listing.heads[0]), *(len(safe.line(row.name)) for row in listing.rows))
    name = min(name, max(24, longest + 2))
    lines = [style.dim(_joined(listing.heads[0], listing.heads[1:], name, widths)[:width])]
    shown = listing.rows[first:] if room is None else listing.rows[first : first + max(0, room)]
    for at, row in enumerate(shown, start=first):
        text = _joined(cut(safe.line(row.name), name - 1), row.cells, name, widths)[:width]
        lines.append(style.chosen(text.ljust(width)) if at == chosen else text)
    return lines


def folded(text: str, width: int) -> list[str]:
    """Text in lines that fit, made safe for a terminal."""
    lines: list[str] = []
    for line in safe.block(text).expandtabs(4).split("\n"):
        own = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(line, width, subsequent_indent=f"{own}  "[: width // 2]) or [""]
    return lines


def cut(text: str, width: int) -> str:
    """Text of at most `width` characters; what is left out is in the middle, as both ends of an address matter."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left):]}"


def _cells(rates: Rates) -> list[str]:
    return [short(number) for number in astuple(rates)]


def _joined(name: str, cells: Sequence[str], name_width: int, widths: Sequence[int]) -> str:
    return name.ljust(name_width) + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
