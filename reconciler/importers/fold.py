# SPDX-License-Identifier: Apache-2.0
"""Shorten notices for people: of those that differ only in numbers and addresses, one is shown, with their number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from reconciler.importers.draft import Notice

SHOWN = 3  # up to so many notices of a kind are shown one by one

# Colons tell an IPv6 address from other words; digits match IPv4 addresses, ports, weights and times.
_VARIABLE = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f.]*|[0-9]+")


def folded(notices: Iterable[Notice]) -> list[Notice]:
    """The notices in their order; of each kind with more than a few only the first, which names the others."""
    kinds: dict[str, list[Notice]] = {}
    for notice in notices:
        kinds.setdefault(_VARIABLE.sub("#", notice.message), []).append(notice)
    shown: list[Notice] = []
    for found in kinds.values():
        if len(found) <= SHOWN:
            shown += found
            continue
        first, last = found[0], found[-1]
        where = f", the last in line {last.line:,}" if last.line else ""
        if last.file != first.file:
            where = f", the last in {last.file or 'the input itself'}"
        shown.append(replace(first, message=f"{first.message} (and {len(found) - 1:,} more like it{where})"))
    return sorted(shown)
