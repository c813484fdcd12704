# SPDX-License-Identifier: Apache-2.0
"""Configurations of other daemons, line by line: a saved plan must not put in what no manifest can ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable


def strange(lines: Iterable[str], asked: re.Pattern[str]) -> str:
    """What is wrong with lines of which some are none that manifests can ask for; empty if all are."""
    wrong = next((line for line in lines if not asked.fullmatch(line)), None)
    return "" if wrong is None else f"not a line of ours: {wrong}"
