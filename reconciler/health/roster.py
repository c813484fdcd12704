# SPDX-License-Identifier: Apache-2.0
"""Who is checked for whom: the pools with checks, in a file of the instance, one line of JSON each.

By it people learn which endpoint a state belongs to, and a new process which target an endpoint had before its check
was edited. The last line of a pool counts; null stands for a pool that has no check any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from reconciler import private
from reconciler.health.target import Asked, Use
from reconciler.model import Pool, text_of

FILE = "checks.jsonl"
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """An endpoint of a pool and the digests of its targets. `port` None: it keeps the port of the service."""

    address: str
    port: int | None
    weight: int
    state: str
    targets: tuple[tuple[Use, bytes], ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """A pool that is checked. `services` are their names; `check` says how, in words."""

    pool: str
    services: tuple[str, ...]
    check: str
    interval_s: float
    rise_s: float
    min_healthy: int
    when_none_healthy: str
    fallback: str | None
    endpoints: tuple[Checked, ...]


Line = tuple[Pool, tuple[str, ...], Asked]
"""A pool, the names of its services, and what is checked of it."""


def read(path: Path) -> dict[str, Listed]:
    """The pools that are checked. Lines that are cut off, or of another version, are left out. Raises FilesError."""
    found: dict[str, Listed] = {}
    for line in (private.read(path) or b"").splitlines():
        try:
            data = json.loads(line)
            name = str(data["pool"])
            if data.get("check") is None:
                found.pop(name, None)
            else:
                found[name] = _listed(name, data)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


class Roster:
    """The file, for the one who writes it: what has changed is added at its end, until it has grown too large."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = 0

    def write(self, changed: Mapping[str, Line | None], all_: Mapping[str, Line]) -> None:
        """Write down the pools that changed, None for one that is not checked any more. Raises FilesError."""
        if not self._whole or 2 * len(changed) > len(all_):
            self._rewrite(all_)
            return
        lines = b"".join(_packed(name, line) for name, line in changed.items())
        if lines and private.append(self._path, lines) > 2 * self._whole + _SPARE_BYTES:
            self._rewrite(all_)

    def _rewrite(self, all_: Mapping[str, Line]) -> None:
        content = b"".join(_packed(name, line) for name, line in all_.items())
        private.write(self._path, content)
        self._whole = max(1, len(content))


def _packed(name: str, line: Line | None) -> bytes:
    if line is None:
        return json.dumps({"pool": name, "check": None}).encode() + b"\n"
    pool, services, asked = line
    data = {
        "pool": name, "services": services, "check": pool.health_check.type.value,
        "interval": pool.health_check.interval_s, "rise": pool.health_check.rise, "min": pool.min_healthy,
        "none": pool.when_none_healthy.value, "fallback": pool.fallback_pool,
        "endpoints": [
            [text_of(endpoint.address), endpoint.port, endpoint.weight, endpoint.state.value,
             [[use.port, use.vip and str(use.vip), target.digest.hex()] for use, target in of_endpoint]]
            for endpoint, of_endpoint in zip(pool.endpoints, asked, strict=True)
        ],
    }  # fmt: skip
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _listed(name: str, data: Mapping[str, Any]) -> Listed:
    endpoints = tuple(
        Checked(
            str(address), port, int(weight), str(state),
            tuple(
                (Use(name, ip_address(address), to, ip_address(vip) if vip else None), bytes.fromhex(digest))
                for to, vip, digest in targets
            ),
        )
        for address, port, weight, state, targets in data["endpoints"]
    )  # fmt: skip
    return Listed(
        name, tuple(map(str, data["services"])), str(data["check"]), float(data["interval"]),
        int(data.get("rise", 1)) * float(data["interval"]), int(data["min"]), str(data["none"]), data["fallback"],
        endpoints,
    )  # fmt: skip
