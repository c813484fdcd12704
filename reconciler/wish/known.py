# SPDX-License-Identifier: Apache-2.0
"""What is known of a node's endpoints that is not in git: the states of targets, and drains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reconciler import notes
from reconciler.health import roster, store
from reconciler.health.state import State
from reconciler.health.target import Use
from reconciler.wish import announcing, drains
from reconciler.wish.announcing import Conditions, Leaving
from reconciler.wish.drains import Drain


@dataclass(frozen=True, slots=True)
class Known:
    """`states` are by the digest of the target. `former` are the digests of the targets that uses had last: an edited
    check takes over what was known. `changed_s`: when the node was last changed, by the monotonic clock; `conditions`
    of announcing, `leaving` and `suspect_until_s`: see `announcing`."""

    states: Mapping[bytes, State] = field(default_factory=dict)
    former: Mapping[Use, bytes] = field(default_factory=dict)
    drains: tuple[Drain, ...] = ()
    changed_s: float = float("inf")
    conditions: Conditions = field(default_factory=dict)
    leaving: Leaving | None = None
    suspect_until_s: float = 0.0


NOTHING = Known()


def known(instance_dir: Path, record: str) -> Known:
    """What the files of an instance say. `record` is the name of the one that is written with each change of the node.
    Raises FilesError if others could have written one of them."""
    stored = store.read(instance_dir / store.FILE)
    listed = roster.read(instance_dir / roster.FILE) if stored.entries else {}
    former = {
        use: digest for pool in listed.values() for endpoint in pool.endpoints for use, digest in endpoint.targets
    }  # fmt: skip
    states = {key: entry.state for key, entry in stored.entries.items()}
    return Known(
        states, former, drains.read(instance_dir / drains.FILE), changed_s(instance_dir / record),
        announcing.read(instance_dir / announcing.FILE).conditions, leaving(instance_dir),
        stored.progress.suspect_until_s,
    )  # fmt: skip


def leaving(instance_dir: Path) -> Leaving | None:
    """Who drains the whole balancer, if anybody does. Raises FilesError."""
    note = notes.read(instance_dir, notes.Leaving)
    if note is None or note.is_over:
        return None
    offset_s = time.monotonic() - notes.now_s()
    until_s = float("inf") if note.until_s is None else note.until_s + offset_s
    return Leaving(str(note), note.since_s + offset_s, until_s)


def changed_s(path: Path) -> float:
    """When a file was last written, by the monotonic clock; minus infinity if it is not there."""
    try:
        return path.stat().st_mtime - time.time() + time.monotonic()
    except OSError:
        return float("-inf")
