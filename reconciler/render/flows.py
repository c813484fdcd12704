# SPDX-License-Identifier: Apache-2.0
"""Connections as text, a million of them in a second or two: what many have in common is made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from reconciler.readings.flows import NAMES, STATES, Flows
from reconciler.readings.rows import document
from reconciler.render.table import table

_MANY = 2_000
"""For so many rows a table has columns of fixed widths, and no terminal would show them on a page anyway."""


def as_json(flows: Flows) -> str:
    """The document as `render.table.as_json` has it, but each connection on a line of its own."""
    head, tail = json.dumps(document("flows", []), indent=2).split("[]")
    items = ",\n".join([
        f'    {{"client": "{client}", "service": {service}, "endpoint": {endpoint}, "state": {state}, '
        f'"protocol": {protocol}, "idle_s": {idle_s}}}'
        for client, service, endpoint, state, protocol, idle_s in _columns(flows, json.dumps)
    ])
    return f"{head}[\n{items}\n  ]{tail}" if items else f"{head}[]{tail}"


def as_table(flows: Flows, columns: Sequence[str], empty: str, width: int | None) -> str:
    """A table for people."""
    if len(flows) < _MANY:
        return table([{name: getattr(flow, name) for name in columns} for flow in flows], columns, empty, width)
    wide = max(map(len, ("ENDPOINT_CLOSED", *flows.services, *flows.endpoints))) + 2
    clients = 47 if flows.has_ipv6 else 23
    lines = [
        f"{client:{clients}}{service}{endpoint}{state}{protocol}{idle_s:6}"
        for client, service, endpoint, state, protocol, idle_s in _columns(flows, lambda name: name.ljust(wide))
    ]
    heads = "".join(head.ljust(wide) for head in ("SERVICE", "ENDPOINT", "STATE", "PROTOCOL"))
    return "\n".join((f"{'CLIENT':{clients}}{heads}IDLE S", *lines))


def _columns(flows: Flows, shown: Callable[[str], str]) -> Iterator[tuple[str, str, str, str, str, int]]:
    """The cells of each row; names as they are `shown`."""

    def names(numbers: list[int], of: Sequence[str]) -> Iterator[str]:
        return map(list(map(shown, of)).__getitem__, numbers)

    return zip(
        flows.clients(),
        names(flows.service.tolist(), flows.services), names(flows.endpoint.tolist(), flows.endpoints),
        names(flows.state.tolist(), STATES), names(flows.protocol.tolist(), NAMES), flows.idle_s.tolist(), strict=True,
    )  # fmt: skip
