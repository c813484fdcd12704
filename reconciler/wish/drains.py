# SPDX-License-Identifier: Apache-2.0
"""Drains: endpoints that people took out of service for a while, in a file of the instance.

A drain is about an endpoint of one pool, or of all pools that have it. From then on it gets no new connection; at its
deadline the open ones end; and it ends by itself. One that has ended is kept for a while, for it explains why an
endpoint came back. Times are in seconds since 1970.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Any

from reconciler import private, safe
from reconciler.errors import FilesError
from reconciler.model import Address, Endpoint, Pool, place_of

FILE = "drains.json"
COPY = "drains.copy.json"
"""The same once more, for the day that the file is damaged."""
LOCK = "drains.lock"
PATIENCE_S = 30.0
KEPT_S = 3600.0
"""How long a drain that has ended is remembered."""


@dataclass(frozen=True, slots=True)
class Drain:
    """`pool` None: in all pools. `port` None: whichever port the endpoint has. `until_s` None: until it is undone.
    `deadline_s`: when open connections end; None: never. `by` and `reason` are texts of people."""

    address: Address
    port: int | None = None
    pool: str | None = None
    began_s: float = 0.0
    until_s: float | None = None
    deadline_s: float | None = None
    by: str = ""
    reason: str = ""

    def is_on(self, now_s: float) -> bool:
        return self.until_s is None or now_s < self.until_s

    def ends(self, now_s: float) -> bool:
        """Whether open connections have to end by now."""
        return self.deadline_s is not None and now_s >= self.deadline_s

    def is_about(self, pool: str, endpoint: Endpoint) -> bool:
        return (
            endpoint.address == self.address
            and self.pool in (None, pool)
            and (self.port is None or self.port == endpoint.port)
        )

    def __str__(self) -> str:
        place = place_of(self.address, self.port or 0)
        where = f" of pool {self.pool}" if self.pool else ""
        said = f" by {self.by}" if self.by else ""
        return safe.line(f"{place}{where}{said}" + (f": {self.reason}" if self.reason else ""))

    @property
    def target(self) -> tuple[Address, int | None, str | None]:
        return self.address, self.port, self.pool


def by_pool(drains: Iterable[Drain]) -> Callable[[str], Sequence[Drain]]:
    """A function from the name of a pool to the drains that may be about it."""
    named: dict[str | None, list[Drain]] = {}
    for drain in drains:
        named.setdefault(drain.pool, []).append(drain)
    return lambda pool: (*named.get(None, ()), *named.get(pool, ()))


def of_pool(drains: Sequence[Drain], pool: Pool) -> tuple[Drain | None, ...]:
    """The drain of each endpoint of a pool, the latest of several; also one that is over."""
    about = [drain for drain in drains if drain.pool in (None, pool.name)]
    if not about:
        return (None,) * len(pool.endpoints)
    by_address: dict[Address, list[Drain]] = {}
    for drain in about:
        by_address.setdefault(drain.address, []).append(drain)
    return tuple(
        max(
            (drain for drain in by_address.get(endpoint.address, ()) if drain.is_about(pool.name, endpoint)),
            key=lambda drain: (drain.until_s is None, drain.until_s, drain.began_s), default=None,
        )
        for endpoint in pool.endpoints
    )  # fmt: skip


def changes_s(drains: Iterable[Drain], now_s: float) -> float:
    """When the next drain ends, or reaches its deadline; infinite if none does."""
    times = [
        time_s for drain in drains if drain.is_on(now_s) for time_s in (drain.until_s, drain.deadline_s)
        if time_s is not None and time_s > now_s
    ]  # fmt: skip
    return min(times, default=inf)


def added(drains: Iterable[Drain], new: Iterable[Drain], now_s: float) -> tuple[Drain, ...]:
    """With new drains, which take the place of those of the same endpoints."""
    fresh = {drain.target: drain for drain in new}
    return (*(d for d in drains if d.target not in fresh and _is_kept(d, now_s)), *fresh.values())


def ended(drains: Iterable[Drain], pool: str | None, address: Address, port: int | None, now_s: float
          ) -> tuple[Drain, ...]:  # fmt: skip
    """Without the drains of an endpoint: they end now. A drain of all pools is not ended for one of them."""
    return tuple(
        replace(drain, until_s=now_s)
        if drain.is_on(now_s) and drain.address == address and pool in (None, drain.pool)
        and (port is None or drain.port in (None, port)) else drain
        for drain in drains if _is_kept(drain, now_s)
    )  # fmt: skip


def read(path: Path) -> tuple[Drain, ...]:
    """The drains in a file; none if there is no file. If it is damaged, those of its copy.

    Raises FilesError if others could have written one of them, or if both are damaged: to take that for no drains
    would give broken endpoints traffic again.
    """
    content = private.read(path)
    if content is None:
        return ()
    found = _parsed(content)
    if found is None:
        found = _parsed(private.read(path.with_name(COPY)) or b"")
    if found is None:
        hint = "remove the file, which ends all drains, and drain again who should be"
        raise FilesError(f"{path} is damaged: nobody knows which endpoints are drained", hint=hint)
    return found


def damage(path: Path) -> str:
    """What people should know about a file that is damaged while its copy is not; empty if it is well. Raises
    FilesError as `read` does."""
    content = private.read(path)
    if content is None or _parsed(content) is not None:
        return ""
    count = len(read(path))
    return f"{path} is damaged; its copy counts, with {count} drains, and the next drain or undrain writes it anew"


def _parsed(content: bytes) -> tuple[Drain, ...] | None:
    """None if the content is damaged."""
    try:
        return tuple(map(from_json, json.loads(content)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


Drains = tuple[Drain, ...]


def change(path: Path, edit: Callable[[Drains], Drains]) -> Drains:
    """Edit the drains in a file, one process after the other; what they are then. Raises FilesError."""
    with private.opened(path.with_name(LOCK)) as handle:
        if not private.lock(handle, PATIENCE_S):
            raise FilesError(f"another lbctl has been editing {path} for {PATIENCE_S:g} s", hint="try again")
        found = edit(read(path))
        write(path, found)
        return found


def to_json(drain: Drain) -> dict[str, object]:
    return asdict(drain) | {"address": str(drain.address)}


def from_json(item: Mapping[str, Any]) -> Drain:
    """The reverse. Raises ValueError, KeyError, TypeError for what was none."""
    return Drain(
        ip_address(item["address"]), None if item["port"] is None else int(item["port"]),
        None if item["pool"] is None else str(item["pool"]), float(item["began_s"]), _number(item["until_s"]),
        _number(item["deadline_s"]), safe.line(str(item["by"])), safe.line(str(item["reason"])),
    )  # fmt: skip


def write(path: Path, drains: Iterable[Drain]) -> None:
    """Raises FilesError."""
    content = json.dumps([to_json(drain) for drain in drains], indent=1).encode()
    private.write(path, content)
    private.write(path.with_name(COPY), content)


def _is_kept(drain: Drain, now_s: float) -> bool:
    return drain.until_s is None or now_s < drain.until_s + KEPT_S


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
