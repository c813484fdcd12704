# SPDX-License-Identifier: Apache-2.0
"""Health checks within the limits that the manifests set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reconciler.importers.draft import Notices
from reconciler.importers.values import clip, duration, is_text

INTERVAL_S = (0.02, 3600.0)
TIMEOUT_S = (0.01, 3600.0)
DEFAULT_TIMEOUT_S = 1.0
COUNT = (1, 100)
_MAX_TEXT = 1024
_MAX_STATUS_CODES = 64
_PATH = re.compile("/[!-~]*")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


def health_check(
    kind: str,
    interval_s: float,
    fall: int,
    content: Mapping[str, Any],
    place: tuple[int, str],
    notices: Notices,
    *,
    port: int = 0,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """A health check after which one success is enough, as with LoxiLB and keepalived.

    `content` are path, host, status, send and expect, as far as they are known; values that manifests can't hold are
    left out. `place` is the line and the words that notices begin with. `port` 0: the endpoint's port.
    """
    found: dict[str, Any] = {"type": kind}
    if port and kind != "ping":
        found["port"] = port
    interval = clip(interval_s, INTERVAL_S, "interval", place, notices)
    found["interval"] = duration(interval)
    shorter = max(interval - 1, interval / 2)  # a timeout must be shorter than the interval
    if timeout_s is not None and timeout_s >= interval:
        message = f"checks may take as long as the time between them: timeout {duration(shorter)} is written"
        notices.add(place[0], f"{place[1]}: {message}")
    if timeout_s is not None or interval <= DEFAULT_TIMEOUT_S:
        kept = clip(timeout_s or shorter, TIMEOUT_S, "timeout", place, notices)
        found["timeout"] = duration(kept if kept < interval else shorter)
    found["rise"] = 1
    found["fall"] = int(clip(fall, COUNT, "fall", place, notices))
    for key, value in content.items():
        if _is_writable(key, value):
            found[key] = value
        elif value:
            notices.missing(place[0], f"{place[1]}: the check's {key}")
    return found


def _is_writable(key: str, value: Any) -> bool:
    if key == "status":
        return 1 <= len(value) <= _MAX_STATUS_CODES
    if key == "host":
        return bool(_HOST.fullmatch(value))
    if key == "path":
        return bool(_PATH.fullmatch(value)) and len(value) <= _MAX_TEXT
    return is_text(value) and 1 <= len(value) <= _MAX_TEXT
