# SPDX-License-Identifier: Apache-2.0
"""What `lbctl fmt` writes, what it leaves alone, and how it exits."""

import os
import stat

import pytest

from reconciler.cli.main import main

UGLY = "kind: Pool\napiVersion:   'lbctl/v1'\nspec: {endpoints: []}   # why\nmetadata:\n    name: web\n"
FORM = "apiVersion: lbctl/v1\nkind: Pool\nmetadata:\n  name: web\nspec: {endpoints: []}   # why\n"
BROKEN = "kind:   Pool\nspec: [\n"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_are_rewritten_and_named(directory, capsys):
    (directory / "sub").mkdir()
    (directory / "sub" / "ugly.yaml").write_text(UGLY)
    (directory / "fine.yml").write_text(FORM)
    untouched = (directory / "fine.yml").stat()
    assert main(["fmt"]) == 0
    assert capsys.readouterr().out == "sub/ugly.yaml\n"
    assert (directory / "sub" / "ugly.yaml").read_text() == FORM
    assert (directory / "fine.yml").stat() == untouched
    assert main(["fmt"]) == 0
    assert capsys.readouterr().out == ""


def test_check_writes_nothing(directory, capsys):
    (directory / "ugly.yaml").write_text(UGLY)
    assert main(["fmt", "--check"]) == 1
    assert capsys.readouterr().out == "ugly.yaml\n"
    assert (directory / "ugly.yaml").read_text() == UGLY
    main(["fmt"])
    assert main(["fmt", "--check"]) == 0


def test_broken_file_is_reported_and_stays_while_others_are_written(directory, capsys):
    (directory / "broken.yaml").write_text(BROKEN)
    (directory / "latin.yaml").write_bytes(b"name:   caf\xe9\n")
    (directory / "ugly.yaml").write_text(UGLY)
    assert main(["fmt", "."]) == 1
    captured = capsys.readouterr()
    assert captured.out == "ugly.yaml\n"
    assert "broken.yaml:2:" in captured.err
    assert "latin.yaml:1:12: error:" in captured.err
    assert (directory / "broken.yaml").read_text() == BROKEN
    assert (directory / "latin.yaml").read_bytes() == b"name:   caf\xe9\n"
    assert (directory / "ugly.yaml").read_text() == FORM


def test_manifest_with_wrong_content_still_has_a_form(directory):
    (directory / "wrong.yaml").write_text("kind: Pol\napiVersion:   lbctl/v1\nspecc: 1\n")
    assert main(["fmt"]) == 0
    assert (directory / "wrong.yaml").read_text() == "apiVersion: lbctl/v1\nkind: Pol\nspecc: 1\n"


def test_mode_and_links_stay(directory):
    (directory / "real").mkdir()
    target = directory / "real" / "ugly.yaml"
    target.write_text(UGLY)
    target.chmod(0o640)
    link = directory / "link.yaml"
    link.symlink_to("real/ugly.yaml")
    assert main(["fmt", "link.yaml"]) == 0
    assert link.is_symlink()
    assert target.read_text() == FORM
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(path.name for path in directory.rglob("*")) == ["link.yaml", "real", "ugly.yaml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_stays(directory):
    (directory / "ugly.yaml").write_text(UGLY)
    os.chown(directory / "ugly.yaml", 1234, 4321)
    assert main(["fmt"]) == 0
    status = (directory / "ugly.yaml").stat()
    assert (status.st_uid, status.st_gid) == (1234, 4321)


def test_templates_and_environments_are_left_alone(directory, capsys):
    (directory / "environments").mkdir()
    names, text = ("environments/prod.yaml", "web.yaml.j2"), "b:   1\na:   2\n"
    for name in names:
        (directory / name).write_text(text)
    assert main(["fmt"]) == 0
    assert capsys.readouterr().out == ""
    assert [(directory / name).read_text() for name in names] == [text, text]
    assert main(["fmt", "web.yaml.j2"]) == 2


def test_file_is_not_confused_with_another_whose_name_is_how_it_is_shown(directory, capsys):
    (directory / "a\n.yaml").write_text(UGLY)
    (directory / "a\\n.yaml").write_text("b: 1\n")
    assert main(["fmt"]) == 1
    assert "rename it" in capsys.readouterr().err
    assert (directory / "a\\n.yaml").read_text() == "b: 1\n"


def test_directory_that_is_not_there_is_a_problem(directory, capsys):
    assert main(["fmt", "gone"]) == 1
    assert "gone: error:" in capsys.readouterr().err
