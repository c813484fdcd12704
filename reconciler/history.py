# SPDX-License-Identifier: Apache-2.0
"""What was applied to a node, when, by whom and with which result, and the manifests of each revision: SQLite in the
instance's part of the state directory.

A revision is the digest of its manifests. Their texts are kept once each, however many revisions have them, so that a
rollback needs neither the directory nor a repository. If the history is lost, nothing else is: the node is as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reconciler import private
from reconciler.errors import FilesError, UsageError
from reconciler.safe import line

FILE = "history.db"
MAX_ENTRIES = 5_000
MAX_REVISIONS = 100
MAX_LINES = 50
"""Changes of one entry that are named; the numbers tell of all."""
MIN_PREFIX = 4
PATIENCE_S = 10.0

APPLIED, PARTLY, FAILED, DELETED = "applied", "in part", "failed", "deleted"

FORMAT_VERSION = 1
"""Of the history in JSON; it changes only if readers must change."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (digest BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revisions (
    digest TEXT PRIMARY KEY, env TEXT, node TEXT, files TEXT NOT NULL, number INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, revision TEXT NOT NULL, who TEXT NOT NULL,
    added INTEGER NOT NULL, changed INTEGER NOT NULL, removed INTEGER NOT NULL,
    result TEXT NOT NULL, message TEXT NOT NULL, lines TEXT NOT NULL
);
"""
_COMMITS = "CREATE TABLE IF NOT EXISTS commits (number INTEGER PRIMARY KEY, hash TEXT NOT NULL)"
"""Of entries whose manifests were read from git. A table of its own: older versions of lbctl need not know it."""


class Counts(NamedTuple):
    """How many resources were added, changed and removed."""

    added: int = 0
    changed: int = 0
    removed: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One application of manifests. `time` is in seconds since 1970; `number` is 0 before it is written down."""

    revision: str
    who: str
    counts: Counts
    result: str
    message: str = ""
    lines: Sequence[str] = ()
    time: float = 0.0
    number: int = 0
    commit: str = ""
    """Which the manifests were read from; empty if they were files."""


@dataclass(frozen=True, slots=True)
class Manifests:
    """The manifests of a revision as files relative to their directory, and what they were applied with."""

    texts: Mapping[str, str]
    env: str | None
    node: str | None


class History:
    """The history of one instance. Each call may raise FilesError."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE

    def add(self, entry: Entry, manifests: Manifests | None = None) -> None:
        """Write down an entry, and the manifests of its revision, if they are given."""
        with self._opened() as database, database:
            if manifests is not None and entry.revision:
                _keep(database, entry.revision, manifests)
            row = (
                entry.time or time.time(), entry.revision, entry.who, *entry.counts, entry.result, entry.message,
                json.dumps(list(entry.lines[:MAX_LINES])),
            )  # fmt: skip
            done = database.execute(
                "INSERT INTO entries (time, revision, who, added, changed, removed, result, message, lines)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            if entry.commit:
                database.execute("INSERT OR REPLACE INTO commits VALUES (?, ?)", (done.lastrowid, entry.commit))
            _prune(database)

    def entries(self, most: int = MAX_ENTRIES) -> list[Entry]:
        """The last entries, the newest first."""
        return self._entries("ORDER BY number DESC LIMIT ?", most)

    def entry(self, number: int) -> Entry | None:
        return next(iter(self._entries("WHERE number = ?", number)), None)

    def current(self) -> str | None:
        """The revision that was put in force last; "" if everything was removed since; None if nobody knows."""
        words = ", ".join(f"'{word}'" for word in (APPLIED, PARTLY, DELETED))
        found = self._entries(f"WHERE result IN ({words}) ORDER BY number DESC LIMIT ?", 1)
        return next(("" if e.result == DELETED else e.revision or None for e in found), None)

    def find(self, word: str) -> str:
        """The revision that `word` means: one by the beginning of its digest or its commit, or so many back from the
        present one.

        Raises UsageError.
        """
        revisions = self._in_force()
        if word.isdecimal() and len(word) < MIN_PREFIX:
            if not 0 < int(word) < len(revisions):
                count = max(0, len(revisions) - 1)
                raise UsageError(
                    f"the history doesn't go {int(word):,} back from the present revision", hint=_how_many(count)
                )
            return revisions[int(word)]
        found = sorted({
            entry.revision for entry in self._applied()
            if entry.revision.startswith(word) or (entry.revision and entry.commit.startswith(word))
        })  # fmt: skip
        if len(word) >= MIN_PREFIX and len(found) == 1:
            return found[0]
        what = "more than one revision begins" if len(found) > 1 else "no revision in the history begins"
        raise UsageError(f"{what} with {line(word)!r}", hint="`lbctl history` lists them")

    def manifests(self, revision: str) -> Manifests:
        """The manifests of a revision. Raises UsageError if they are not kept any more."""
        with self._opened() as database:
            row = database.execute("SELECT env, node, files FROM revisions WHERE digest = ?", (revision,)).fetchone()
            if row is None:
                raise UsageError(
                    f"the manifests of revision {line(revision)[:12]} are not in the history",
                    hint=f"the last {MAX_REVISIONS} revisions that were applied from a directory are kept",
                )
            env, node, files = row
            texts = {}
            for name, digest in json.loads(files):
                (content,) = database.execute(
                    "SELECT content FROM texts WHERE digest = ?", (bytes.fromhex(digest),)
                ).fetchone()
                texts[name] = zlib.decompress(content).decode()
            return Manifests(texts, env, node)

    def _in_force(self) -> list[str]:
        """The revisions in the order in which they were in force, the newest first; of those in a row that are the
        same, one."""
        found: list[str] = []
        for entry in self._applied():
            if entry.revision and entry.revision not in found[-1:]:
                found.append(entry.revision)
        return found

    def _applied(self) -> list[Entry]:
        return self._entries(f"WHERE result IN ('{APPLIED}', '{PARTLY}') ORDER BY number DESC LIMIT ?", MAX_ENTRIES)

    def _entries(self, which: str, argument: int) -> list[Entry]:
        if not self._path.exists():
            return []  # reading makes nothing
        with self._opened() as database:
            rows = database.execute(
                "SELECT revision, who, added, changed, removed, result, message, lines, time, number,"
                f" coalesce(hash, '') FROM entries LEFT JOIN commits USING (number) {which}",
                (argument,),
            )
            return [
                Entry(revision, who, Counts(*counts), result, message, json.loads(lines), time_, number, commit)
                for revision, who, *counts, result, message, lines, time_, number, commit in rows
            ]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with private.opened(self._path):  # which makes it if it is missing, and checks who could have
            pass
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=PATIENCE_S)) as database:
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version > _SCHEMA_VERSION:
                    raise FilesError(
                        f"{self._path} was written by a newer version of lbctl",
                        hint="use that version, or move the file away: only the history is in it",
                    )
                if version < _SCHEMA_VERSION:
                    database.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {_SCHEMA_VERSION};COMMIT;")
                database.execute(_COMMITS)
                yield database
        except (sqlite3.Error, ValueError, TypeError, zlib.error) as error:
            hint = "if it is damaged, move it away: only the history is in it"
            raise FilesError(f"{self._path} can't be used: {error}", hint=hint) from error


def document(history: History, number: int | None = None, last: int = 20) -> dict[str, Any]:
    """The newest entries, or the one of this number, as JSON takes them. Raises FilesError, UsageError."""
    if number is None:
        found = history.entries(max(1, last))
    else:
        entry = history.entry(number)
        if entry is None:
            raise UsageError(f"the history has no entry {number}", hint="`lbctl history` lists them")
        found = [entry]
    entries = [asdict(each) | {"counts": each.counts._asdict(), "lines": list(each.lines)} for each in found]
    return {"format_version": FORMAT_VERSION, "current": history.current(), "entries": entries}


def _how_many(count: int) -> str:
    if not count:
        return "nothing else was applied before; `lbctl history` lists what was"
    return f"there are {count:,}; `lbctl history` lists them"


def _keep(database: sqlite3.Connection, revision: str, manifests: Manifests) -> None:
    """Keep the manifests of a revision, which counts as new then."""
    (number,) = database.execute("SELECT coalesce(max(number), 0) + 1 FROM revisions").fetchone()
    done = database.execute("UPDATE revisions SET number = ? WHERE digest = ?", (number, revision))
    if done.rowcount:
        return
    files = []
    for name, text in sorted(manifests.texts.items()):
        content = text.encode()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        files.append((name, digest.hex()))
        if not database.execute("SELECT 1 FROM texts WHERE digest = ?", (digest,)).fetchone():
            database.execute("INSERT INTO texts VALUES (?, ?)", (digest, zlib.compress(content, 1)))
    database.execute(
        "INSERT INTO revisions VALUES (?, ?, ?, ?, ?)",
        (revision, manifests.env, manifests.node, json.dumps(files), number),
    )


def _prune(database: sqlite3.Connection) -> None:
    """Forget what is too old, and the texts that no revision has any more."""
    for table in ("entries", "commits"):
        old_ones = f"DELETE FROM {table} WHERE number <= (SELECT max(number) FROM entries) - ?"
        database.execute(old_ones, (MAX_ENTRIES,))
    old = database.execute(
        "DELETE FROM revisions WHERE digest IN"
        " (SELECT digest FROM revisions ORDER BY number DESC LIMIT -1 OFFSET ?)", (MAX_REVISIONS,)
    )  # fmt: skip
    if old.rowcount:
        kept = {
            bytes.fromhex(digest)
            for (files,) in database.execute("SELECT files FROM revisions") for _, digest in json.loads(files)
        }  # fmt: skip
        known = [digest for (digest,) in database.execute("SELECT digest FROM texts")]
        database.executemany("DELETE FROM texts WHERE digest = ?", [(d,) for d in known if d not in kept])
