# SPDX-License-Identifier: Apache-2.0
"""`lbctl import` as a user calls it."""

import argparse
import io
import json
import os
import sys
from types import SimpleNamespace

import pytest

from reconciler.cli import import_
from reconciler.config.load import load
from reconciler.errors import LbctlError
from reconciler.kernel.fake import FakeKernel
from reconciler.live import read_live
from reconciler.snapshot import live_to_json
from tests.importers.test_golden import HERE
from tests.strategies import fake_source

TABLE = HERE / "ipvsadm" / "nat.txt"


def call(*words):
    parser = argparse.ArgumentParser()
    import_.arguments(parser)
    return import_.run(parser.parse_args(list(map(str, words))))


def test_long_warnings_are_broken_at_words_where_the_terminal_ends(monkeypatch, capsys):
    monkeypatch.setattr(import_.Style, "for_stream", lambda *_: import_.Style(columns=60))
    assert call("ipvsadm", TABLE) == 0
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60
    assert "warning: the input names no interfaces: add a Node with those by which" in " ".join(map(str.strip, lines))


def test_files_are_written_that_load(tmp_path, capsys):
    assert call("ipvsadm", TABLE, "--out", tmp_path / "new") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["pools.yaml", "services.yaml"]
    fleet = load(tmp_path / "new").fleet
    assert len(fleet.services) == 3
    out, err = capsys.readouterr()
    assert "services.yaml written" in out
    assert "add a Node" in err


def test_what_is_there_is_never_replaced(tmp_path):
    (tmp_path / "services.yaml").write_text("mine")
    with pytest.raises(LbctlError, match="is there already"):
        call("ipvsadm", TABLE, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["services.yaml"]
    assert (tmp_path / "services.yaml").read_text() == "mine"


@pytest.mark.parametrize("words", [(), ("-",)])
def test_standard_input_and_output(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TABLE.read_bytes())))
    assert call("ipvsadm", *words) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    assert len(load(tmp_path).fleet.services) == 3


def test_warnings_name_file_and_line(capsys):
    call("ipvsadm", HERE / "ipvsadm" / "everything.txt")
    assert f"{HERE / 'ipvsadm' / 'everything.txt'}:11: warning: firewall mark 7" in capsys.readouterr().err


def test_nothing_left_is_an_error_behind_the_warnings(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"-A -f 7 -s wlc\n")))
    with pytest.raises(LbctlError, match="nothing is left"):
        call("ipvsadm")
    assert "firewall mark 7" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe-\x00A\x00", b"\x00\x01\x02\xfe"])
def test_binary_input_is_refused(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LbctlError, match=r"file:1: the input is no text"):
        call("ipvsadm", tmp_path / "file")


def test_bytes_in_comments_that_are_no_utf_8_do_not_matter(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"# Gr\xfc\xdfe\n" + TABLE.read_bytes())
    assert call("ipvsadm", tmp_path / "file") == 0
    assert "198.51.100.10" in capsys.readouterr().out


def test_errors_name_the_file_and_the_line(tmp_path):
    (tmp_path / "web.conf").write_text("virtual_server 10.0.0.1 80 {\n")
    with pytest.raises(LbctlError) as error:
        call("keepalived", tmp_path / "web.conf")
    assert error.value.message == f"{tmp_path / 'web.conf'}:1: the block that begins here is not closed"


def test_the_same_warning_for_many_servers_is_said_once(tmp_path, capsys):
    lines = "".join(f"-A -t 10.{i >> 8}.{i & 255}.1:80 -s sed -M 255.0.0.0 -p 60\n" for i in range(1000))
    (tmp_path / "many").write_text(lines)
    assert call("ipvsadm", tmp_path / "many") == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert warnings[1].endswith(
        "persistence by network has no counterpart: it is left out (and 999 more like it, the last in line 1,000)"
    )


def test_files_that_are_included_are_read_and_named(tmp_path, capsys):
    (tmp_path / "conf.d").mkdir()
    server = "real_server {} 80 {{\n weight 2\n notify_up /bin/true\n}}\n"
    (tmp_path / "conf.d" / "b.conf").write_text(server.format("10.0.1.2"))
    (tmp_path / "conf.d" / "a.conf").write_text(server.format("10.0.1.1"))
    (tmp_path / "conf.d" / ".hidden.conf").write_text(server.format("10.0.1.9"))
    main = "virtual_server 10.0.0.1 80 {\n protocol TCP\n lb_algo wrr\n lb_kind NAT\n include conf.d/*.conf\n}\n"
    (tmp_path / "keepalived.conf").write_text(main)
    assert call("keepalived", tmp_path / "keepalived.conf") == 0
    out, err = capsys.readouterr()
    assert out.index("{address: 10.0.1.1, weight: 2}") < out.index("{address: 10.0.1.2, weight: 2}")
    assert "10.0.1.9" not in out
    assert f"{tmp_path}/conf.d/b.conf:3: warning: " in err


@pytest.mark.parametrize("pattern", ["/etc/shadow", "../secret", "link", "pipe", "gone/*", "conf.d"])
def test_only_regular_files_beside_and_below_the_input_are_included(pattern, tmp_path, capsys):
    (tmp_path / "secret").write_text("password")
    here = tmp_path / "here"
    (here / "conf.d").mkdir(parents=True)
    (here / "link").symlink_to("../secret")
    os.mkfifo(here / "pipe")
    main = f"virtual_server 10.0.0.1 80 {{\n include {pattern}\n real_server 10.0.1.1 80 {{ }}\n}}\n"
    (here / "keepalived.conf").write_text(main)
    assert call("keepalived", here / "keepalived.conf") == 0
    err = capsys.readouterr().err
    assert f"{here}/keepalived.conf:2: warning: include {pattern} is not read, " in err
    assert "password" not in err


def test_a_file_that_includes_itself_ends(tmp_path, capsys):
    (tmp_path / "a.conf").write_text("include a.conf\nvirtual_server 10.0.0.1 80 { }\n")
    assert call("keepalived", tmp_path / "a.conf") == 0
    assert "files include each other more than 16 times" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LbctlError, match=r"absent.* can't be read"):
        call("ipvsadm", tmp_path / "absent")


def test_a_snapshot_is_imported(tmp_path, capsys, web_fleet, monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)
    from tests.importers.test_live import node_with

    kernel = node_with(web_fleet)
    (tmp_path / "node.json").write_text(json.dumps(live_to_json(read_live(kernel))))
    assert call("live", tmp_path / "node.json") == 0
    out = capsys.readouterr().out
    assert out.startswith("# Imported from the live state in node.json.\n")
    assert "{address: 10.2.0.1, port: 8080, weight: 2}" in out


def test_this_node_is_imported_without_a_file(monkeypatch, capsys):
    monkeypatch.setattr("reconciler.cli.common.open_kernel", lambda args: FakeKernel())
    with pytest.raises(LbctlError, match="nothing is left"):
        call("live")
    told = capsys.readouterr().err
    assert "add a Node" in told and told.startswith("this node: ")


def test_a_file_that_is_no_snapshot_is_refused(tmp_path):
    (tmp_path / "file").write_text("[" * 100_000)
    with pytest.raises(LbctlError, match="is no snapshot"):
        call("live", tmp_path / "file")


def test_help_says_what_the_formats_are():
    assert all(name in import_.DESCRIPTION for name in ("loxilb", "ipvsadm", "keepalived", "katran", "sbulb", "live"))
    assert "exit codes" in import_.EPILOG
