# SPDX-License-Identifier: Apache-2.0
"""The file of keepalived: somebody else's stays, or is put aside where that is asked for, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.errors import ForeignError
from reconciler.kernel import keepalived

THEIRS = "vrrp_instance theirs {\n}\n"
OURS = f'track_file lbctl {{\nfile "{keepalived.PLACE}"\n}}\n'
NETNS = "lbk"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keepalived, "DIRECTORY", tmp_path / "etc")
    monkeypatch.setattr(keepalived, "PROCESS", tmp_path / "run" / "keepalived.pid")
    monkeypatch.setattr(keepalived, "_check", lambda text: None)  # that is the daemon's own affair
    found = keepalived.path(NETNS)
    found.parent.mkdir(parents=True)
    found.write_text(THEIRS)
    return found


def held(tmp_path: Path) -> tuple[str | None, str]:
    return keepalived.running(NETNS, tmp_path / "own")


def test_somebody_elses_file_is_left_alone(file: Path, tmp_path: Path) -> None:
    for text in (OURS, None):
        with pytest.raises(ForeignError, match="not lbctl's"):
            keepalived.load(NETNS, tmp_path / "own", text)
    assert file.read_text() == THEIRS
    assert held(tmp_path) == (None, f"the file {file}")


def test_a_file_that_was_taken_over_comes_back_when_ours_goes(file: Path, tmp_path: Path) -> None:
    file.chmod(0o600)
    keepalived.load(NETNS, tmp_path / "own", OURS, adopts=True)
    assert held(tmp_path) == (OURS, "")
    keepalived.load(NETNS, tmp_path / "own", f"{OURS}# more\n")
    assert held(tmp_path) == (f"{OURS}# more\n", "")
    keepalived.load(NETNS, tmp_path / "own", None)
    assert file.read_text() == THEIRS
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_where_there_was_no_file_none_is_left(file: Path, tmp_path: Path) -> None:
    file.unlink()
    keepalived.load(NETNS, tmp_path / "own", OURS, adopts=True)
    keepalived.load(NETNS, tmp_path / "own", None)
    assert list(file.parent.iterdir()) == []
