# SPDX-License-Identifier: Apache-2.0
"""The history: what is kept, what is found, what is forgotten, and that a damaged one says so."""

import json
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from reconciler import history, notes
from reconciler.errors import FilesError, UsageError
from reconciler.history import APPLIED, DELETED, FAILED, Counts, Entry, History, Manifests, document

REVISIONS = [f"{number:02x}" * 32 for number in range(16)]


def applied(revision, result=APPLIED, **more):
    return Entry(revision, "root", Counts(1, 2, 3), result, **more)


def texts(word):
    return Manifests({"a.yaml": "same", "b.yaml": word}, None, "lb1")


@pytest.fixture
def kept(tmp_path):
    return History(tmp_path / "state" / "lba")


def test_entries_come_back_as_they_were_the_newest_first(kept):
    assert kept.entries() == [] and kept.current() is None
    kept.add(applied(REVISIONS[0], lines=["+ vip 20.20.20.1"], message="why", time=5.0))
    kept.add(applied(REVISIONS[1], time=6.0))
    newest, oldest = kept.entries()
    assert oldest == applied(REVISIONS[0], lines=["+ vip 20.20.20.1"], message="why", time=5.0, number=1)
    assert (newest.number, newest.revision) == (2, REVISIONS[1])
    assert kept.entry(1) == oldest and kept.entry(3) is None


def test_the_present_revision_is_the_last_one_that_came_into_force(kept):
    kept.add(applied(REVISIONS[0]))
    kept.add(applied(REVISIONS[1], FAILED))
    assert kept.current() == REVISIONS[0]
    kept.add(applied("", DELETED))
    assert kept.current() == ""
    kept.add(applied(""))  # a saved plan: nobody knows its manifests
    assert kept.current() is None


def test_revisions_are_found_by_their_distance_and_by_their_beginning(kept):
    for number in (0, 1, 1, 2):
        kept.add(applied(REVISIONS[number]))
    assert [kept.find(word) for word in ("1", "2", REVISIONS[0][:4], REVISIONS[2])] == [
        REVISIONS[1], REVISIONS[0], REVISIONS[0], REVISIONS[2],
    ]  # fmt: skip
    for word in ("0", "3", "999", "²", "00", "ffff", "", "x" * 64):
        with pytest.raises(UsageError, match=r"doesn't go|begins with"):
            kept.find(word)


def test_manifests_come_back_and_their_texts_are_kept_once(kept, tmp_path):
    for number in range(3):
        kept.add(applied(REVISIONS[number]), texts(f"text {number} \u2192"))
    assert [kept.manifests(REVISIONS[n]) for n in range(3)] == [texts(f"text {n} \u2192") for n in range(3)]
    with sqlite3.connect(tmp_path / "state" / "lba" / history.FILE) as database:
        assert database.execute("SELECT count(*) FROM texts").fetchone() == (4,)
    database.close()
    with pytest.raises(UsageError, match="are not in the history"):
        kept.manifests(REVISIONS[5])


def test_what_is_too_old_is_forgotten_and_the_file_stays_small(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MAX_ENTRIES", 5)
    monkeypatch.setattr(history, "MAX_REVISIONS", 2)
    for number in range(8):
        kept.add(applied(REVISIONS[number]), texts(str(number)))
    kept.add(applied(REVISIONS[6]), texts("6"))  # counts as new again
    kept.add(applied(REVISIONS[8]), texts("8"))
    assert len(kept.entries()) == 5
    assert kept.manifests(REVISIONS[6]) == texts("6") and kept.manifests(REVISIONS[8]) == texts("8")
    with pytest.raises(UsageError):
        kept.manifests(REVISIONS[7])
    with sqlite3.connect(tmp_path / "state" / "lba" / history.FILE) as database:
        assert database.execute("SELECT count(*) FROM texts").fetchone() == (3,)
    database.close()


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_nobody_else_can_read_it_whatever_the_umask(kept, tmp_path, mask):
    before = os.umask(mask)
    try:
        kept.add(applied(REVISIONS[0]))
    finally:
        os.umask(before)
    directory = tmp_path / "state" / "lba"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_damaged_or_newer_file_says_so(kept, tmp_path):
    kept.add(applied(REVISIONS[0]))
    path = tmp_path / "state" / "lba" / history.FILE
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(FilesError, match="newer version"):
        kept.entries()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(FilesError, match="can't be used"):
        kept.entries()


def test_notes_come_back_and_damaged_ones_are_refused(tmp_path):
    pause = notes.Pause("root", "why", 5.0, "then")
    assert notes.read(tmp_path / "lba", notes.Pause) is None
    notes.write(tmp_path / "lba", pause)
    notes.write(tmp_path / "lba", notes.Unconfirmed("root", "t", notes.now_s() + 60, "then", ""))
    assert notes.read(tmp_path / "lba", notes.Pause) == pause and pause.is_over
    assert not notes.read(tmp_path / "lba", notes.Unconfirmed).is_over
    assert notes.remove(tmp_path / "lba", notes.Pause) and not notes.remove(tmp_path / "lba", notes.Pause)
    for content in (b"", b"[]", b'{"who": 1}', b"[" * 10_000):
        (tmp_path / "lba" / "paused.json").write_bytes(content)
        with pytest.raises(FilesError, match="is damaged"):
            notes.read(tmp_path / "lba", notes.Pause)


def test_history_as_json_is_as_its_schema_says(kept):
    import jsonschema

    kept.add(applied(REVISIONS[0], lines=["+ vip 20.20.20.1"]))
    schema = json.loads((Path(__file__).parents[1] / "schema" / "output" / "history.v1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(document(kept))))


def test_a_revision_is_found_by_its_commit_too_and_older_versions_go_on(kept):
    first, second = REVISIONS[:2]
    kept.add(applied(first, commit="ab12" * 10), Manifests({"a.yaml": "a"}, None, None))
    kept.add(applied(second), Manifests({"a.yaml": "b"}, None, None))
    assert [entry.commit for entry in kept.entries()] == ["", "ab12" * 10]
    assert kept.find("ab12ab12") == first
    with pytest.raises(UsageError, match="no revision in the history begins"):
        kept.find("ffff0000")
    with sqlite3.connect(kept._path) as database:  # as a version did that knew no commits
        database.execute("DROP TABLE commits")
    assert [entry.commit for entry in kept.entries()] == ["", ""]
    assert kept.find(first[:8]) == first
