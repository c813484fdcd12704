# SPDX-License-Identifier: Apache-2.0
"""Times as people write them in arguments."""

from __future__ import annotations

import argparse
import re

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> int:
    """A time as `30s`, `5m` or `1h`, in seconds."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 10s, 5m or 1h")
    return int(match[1]) * _UNITS_S[match[2]]
