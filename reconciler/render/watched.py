# SPDX-License-Identifier: Apache-2.0
"""A packet that was watched, on one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from reconciler import safe
from reconciler.explain.watched import UNTOUCHED, Told
from reconciler.render.explain import packet_line
from reconciler.render.style import Style


def line(told: Told, at_s: float, style: Style) -> str:
    """The time, the packet, and what became of it."""
    at = datetime.fromtimestamp(at_s).astimezone().strftime("%H:%M:%S.%f")
    text = f"{told.interface} {packet_line(told.packet)}: {comment(told)}"
    paint = style.bad if told.is_dropped else style.good if told.verdict != UNTOUCHED else style.dim
    whole = style.fitted(f"{at} {safe.line(text)}", "  ")
    return whole.replace(f" {told.verdict}", f" {paint(told.verdict)}", 1) if style.colour else whole


def comment(told: Told) -> str:
    """What became of a packet, e.g. `request, web/maglev slot 3, to 10.2.0.11:8080`."""
    parts = [told.verdict + (" (dropped)" if told.is_dropped else "")]
    if told.ring:
        parts.append(told.ring + (f" slot {told.slot}" if told.slot is not None else ""))
    elif told.service:
        parts.append(told.service)
    if told.endpoint:
        parts.append(f"endpoint {told.endpoint}")
    return safe.line(", ".join(parts))


def as_json(told: Told, at_s: float) -> str:
    """An object on one line."""
    return json.dumps({
        "time": datetime.fromtimestamp(at_s, UTC).isoformat(), "interface": told.interface, "verdict": told.verdict,
        "dropped": told.is_dropped, "service": told.service or None, "ring": told.ring or None, "slot": told.slot,
        "endpoint": told.endpoint or None, "packet": told.packet, "left": told.left,
    })  # fmt: skip
