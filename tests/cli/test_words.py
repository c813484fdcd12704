# SPDX-License-Identifier: Apache-2.0
"""What the command line says to those who mistype it, and how its help fits a terminal."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli import get, sources
from reconciler.cli.explain import _ingress
from reconciler.cli.history import _fitted
from reconciler.cli.main import VERBS, main
from reconciler.cli.watching import watched
from reconciler.config.load import check
from reconciler.config.source import read_tree, renamed
from reconciler.doctor.finding import Finding, as_text
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import LoadedProgram
from reconciler.plan import plan
from reconciler.reconcile import desired_of
from reconciler.render.style import Style
from reconciler.render.table import table
from reconciler.render.text import concern_lines, plan_text
from reconciler.resource import Concern, Key, Live
from reconciler.version import VERSION
from tests.config.manifests import pool, service

SCHEMAS = Path(__file__).resolve().parents[2] / "schema" / "output"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "configs" / "nat-tcp"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with manifests, a saved plan, and files that are neither."""
    shutil.copytree(EXAMPLE, tmp_path / "prod")
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    plan = {"format_version": 2, "resource_changes": [], "desired": []}
    Path("change.plan").write_text(json.dumps(plan))
    Path("snapshot.json").write_text(json.dumps({"format_version": 1, "resources": [], "foreign": []}))
    return tmp_path


MISTAKES = {
    "": ("`lbctl` needs more: VERB", "`lbctl --help` lists the verbs"),
    "aply prod": ("there is no verb 'aply'", "did you mean 'apply'?"),
    "--node lb1 plan prod": ("`lbctl` has no option '--node'", "behind it: `lbctl plan … --node`"),
    "--nets x plan prod": ("`lbctl` has no option '--nets'", "did you mean '--netns'?"),
    "--versoin": ("`lbctl` has no option '--versoin'", "did you mean '--version'?"),
    "version": ("there is no verb 'version'", "lbctl --version"),
    "apply": ("`lbctl apply` needs more: source", "`lbctl apply .` takes the current directory"),
    "apply -f prod": ("`lbctl apply` has no option '-f'", "a directory needs no option: `lbctl apply .`"),
    "list": ("there is no verb 'list'", "`lbctl get` does that"),
    "diff": ("`lbctl diff` needs more: REV..REV", "`lbctl diff main...HEAD`"),
    "delete web": ("`lbctl delete` has no use for 'web'", "take one service out of the manifests"),
    "help": ("there is no verb 'help'", "lbctl --help"),
    "validate --formt json": ("`lbctl validate` has no option '--formt'", "did you mean '--format'?"),
    "validate --strickt=yes": ("`lbctl validate` has no option '--strickt'", "did you mean '--strict'?"),
    "validate --format=jsn": ("expected auto, text, json, github, sarif or junit, got 'jsn'", "did you mean 'json'?"),
    "validate --netns": ("--netns: expected one argument", "lbctl validate --help"),
    "plan": ("`lbctl plan` needs more: directory", "`lbctl plan .` takes the current directory"),
    "plan prod extra": ("`lbctl plan` has no use for 'extra'", "lbctl plan --help"),
    "get": ("`lbctl get` needs more: what", "one of services, endpoints"),
    "get service": ("what: expected services", "did you mean 'services'?"),
    "get flows --state opne": ("--state: expected opening, open, client-closed", "did you mean 'open'?"),
    "get flows --proto icmp": ("--proto: expected tcp, udp or sctp, got 'icmp'", "lbctl get --help"),
    "import": ("`lbctl import` needs more: FORMAT", "one of loxilb, ipvsadm"),
    "apply prd": ("there is no prd", "did you mean 'prod'?"),
    "apply prod/pools.yaml": ("is a manifest, neither a directory nor a saved plan", "`lbctl apply prod`"),
    "plan prod/pools.yaml --live empty": ("this is no directory", "give the directory that it lies in: prod"),
    "plan prd --live empty": ("no such file or directory", "did you mean 'prod'?"),
    "plan prod --live nothing.json": ("nothing.json can't be read", "make a new one: `lbctl export . > FILE`"),
    "plan prod --live prod/pools.yaml": ("is no JSON, so neither a snapshot nor a plan", "writes a snapshot"),
    "plan prod --live change.plan": ("this is a plan of lbctl, not a snapshot", "writes a snapshot"),
    "plan prod --live list.json": ("this is no snapshot of lbctl", "writes a snapshot"),
    "diff prod": ("prod is a path, and no revision", "revisions come first: `lbctl diff HEAD~1 prod`"),
    "explain 20.20.20.1:80": ("both are needed", "`lbctl explain --proto tcp 198.51.100.7:40000 20.20.20.1:80`"),
    "explain 1.2.3.4 20.20.20.1:80": ("'1.2.3.4' has no port, and tcp needs one", "write 1.2.3.4:PORT"),
    "explain --proto icmp 1.2.3.4:7 20.20.20.1": ("has a port, and icmp has none", "write 1.2.3.4"),
    "explain 2001:db8::1:80 2001:db8::2:80": ("is no address with a port", "an IPv6 address stands in brackets"),
    "explain 1.2.3.4:5 then 20.20.20.1:80": ("not 3 places", "lbctl explain 198.51.100.7:40000 20.20.20.1:80"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistake_is_told_with_the_way_out(here, capsys, words):
    assert main(words.split()) in (1, 2, 3)
    message, hint = MISTAKES[words]
    lines = capsys.readouterr().err.splitlines()
    assert any(message in line for line in lines), lines
    assert any("hint: " in line and hint in line for line in lines), lines


@pytest.mark.parametrize("option", ["--netns x", "--run-dir x", "--instance run", "--no-color"])
def test_options_of_all_verbs_stand_before_and_behind_the_verb(here, capsys, option):
    assert main([*option.split(), "validate", "prod"]) == 0
    assert main(["validate", *option.split(), "prod"]) == 0
    assert main(["validate", "prod", *option.split()]) == 0


def test_an_option_behind_the_verb_is_the_one_that_counts(here, capsys, monkeypatch):
    found = []
    monkeypatch.setattr("reconciler.cli.validate.run", lambda args: found.append((args.instance, args.run_dir)) or 0)
    main(["--instance", "a", "validate"])
    main(["--instance", "a", "validate", "--instance", "b", "--run-dir", "/d"])
    assert found == [("a", "/run/lbctl"), ("b", "/d")]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_terminal_of_80_columns(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*filter(None, [verb]), "--help"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_paths_are_those_of_the_current_directory_in_every_verb(here, capsys):
    (here / "prod" / "more.yaml").write_text("kind: Nothing\n")
    for words in ("plan --live empty", "validate"):
        for directory in ("prod", f"{here}/prod"):
            main([*words.split(), directory])
            output = capsys.readouterr()
            assert "\nprod/more.yaml:1:7: error: " in f"\n{output.out}{output.err}", words
    (here / "prod" / "more.yaml").write_text("a:   1\n")
    for words in ("fmt --check prod", f"fmt --check {here}/prod", f"fmt --check {here}/prod/more.yaml"):
        main(words.split())
        assert "prod/more.yaml" in capsys.readouterr().out.splitlines(), words


def test_a_plan_names_files_as_the_terminal_would(here, capsys):
    assert main(["plan", "prod", "--live", "empty"]) == 0
    assert "  prod/services.yaml:" in capsys.readouterr().out


def test_colours_are_for_terminals_that_have_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = pty.openpty()
    with os.fdopen(master), os.fdopen(slave, "w") as terminal:
        for name, colour in (("xterm", True), ("dumb", False)):
            monkeypatch.setenv("TERM", name)
            assert Style.for_stream(terminal, False).colour is colour
    assert not Style.for_stream(io.StringIO(), False).colour


def test_explain_on_an_endpoint_says_where_to_ask():
    class Endpoint(FakeKernel):
        def loaded_program(self):
            return LoadedProgram(1, "lbctl_0", ("DECAPSULATE",))

    with pytest.raises(KernelError, match="this node is an endpoint") as refused:
        _ingress(Endpoint(("eth0",)), None)
    assert refused.value.hint.startswith("ask on a balancer")


def test_manifests_without_a_node_are_told_what_one_looks_like(here, capsys):
    for file in (here / "prod").iterdir():
        file.unlink()
    (here / "prod" / "services.yaml").write_text(service() + pool())
    assert main(["plan", "prod", "--live", "empty", "--node", "lb7"]) == 2
    assert "{apiVersion: lbctl/v1, kind: Node, metadata: {name: lb7}, spec: " in capsys.readouterr().err


def test_paragraphs_of_help_do_not_run_into_each_other(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for verb, beginnings in (("run", ("signals: ", "environment: ")), ("plan", ("exit codes: ", "with --detailed"))):
        assert main([verb, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(any(line.startswith(beginning) for line in lines) for beginning in beginnings)


def test_the_table_of_services_fits_a_terminal_of_80_columns():
    counts = dict.fromkeys(("open", "half_open", "connections", "request_packets", "reply_packets"), 1_000_000)
    row = {"service": "20.20.20.100:8080/tcp", "mode": "dsr-l3", "algorithm": "source-hash", "endpoints": 1000}
    lines = table([row | counts], get._TABLES["services"][0], "").splitlines()
    assert max(map(len, lines)) <= 80


def test_the_table_of_endpoints_fits_a_terminal_of_80_columns():
    row = {"endpoint": "10.200.200.101:8080", "state": "draining", "health": "never checked", "share": "100.0%"}
    counts = {"open": 1_000_000, "weight": "65535"}
    lines = table([row | counts], get._TABLES["endpoints"][0], "").splitlines()
    assert max(map(len, lines)) <= 80


IPV6 = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
LONG = {"service": f"{IPV6}/sctp", "endpoint": IPV6, "client": IPV6, "server": IPV6, "ring": f"{'n' * 63}/maglev",
        "pool": "n" * 63, "vip": IPV6[1:-7], "source": IPV6[1:-7]}  # fmt: skip
OBJECTS = {
    "shares": [{"ring": LONG["ring"], "share": 1 / 3}] * 3, "pools": [{"pool": LONG["pool"], "weight": 65_535}] * 3,
}  # fmt: skip


@pytest.mark.parametrize("what", get._TABLES)
@pytest.mark.parametrize("is_wide", [False, True])
def test_every_table_fits_a_terminal_of_80_columns_whatever_the_names_are(what, is_wide):
    """A name alone on its line may be longer: it can be copied as it is."""
    items = json.loads((SCHEMAS / "get.v1.json").read_text())["$defs"][what]["properties"]
    row = {}
    for name, about in items.items():
        kind = about["type"] if isinstance(about["type"], str) else about["type"][0]
        value = {"string": LONG.get(name, "word " * 30), "integer": 10**9, "number": 10**9, "array": [IPV6] * 3}[kind]
        row[name] = OBJECTS.get(name, value)
    columns, wide = get._TABLES[what]
    text = table([get._for_people(row)] * 2, columns + wide * is_wide, "", 80)
    for line in text.splitlines():
        assert len(line) <= 80 or len(line.removeprefix(line.split("  ")[0]).split()) == 1, line


def test_what_is_watched_is_printed_again_when_it_has_changed(capsys):
    texts = iter(("one", "one", "two"))

    def text():
        if (found := next(texts, None)) is None:
            raise KeyboardInterrupt
        return found

    watched(text, 0.001)
    assert capsys.readouterr().out == "one\n\ntwo\n"


@pytest.fixture
def narrow():
    """A terminal of 80 columns on which text is shown in colour."""
    return Style(colour=True, columns=80)


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_version_is_told():
    done = subprocess.run([sys.executable, "-m", "reconciler.cli.main", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"lbctl {VERSION}\n")


def test_long_warnings_are_broken_at_words_where_the_terminal_ends(narrow):
    words = [f"word{number}" for number in range(60)]
    concern = Concern(Key("vip", "20.20.20.1"), " ".join(words), "do this, " * 30)
    lines = plain("\n".join(concern_lines([concern], narrow))).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(word in line.split() for line in lines) for word in words)
    assert len(concern_lines([concern], Style())) == 3  # a log keeps its lines whole


def test_a_plan_fits_a_terminal_of_80_columns(here, capsys):
    deep = renamed(read_tree(here / "prod"), here / "prod", "clusters/production/europe")
    planned = plan(desired_of(check(deep).fleet, "lb1"), Live())
    lines = plain(plan_text(planned, Style(colour=True, columns=80))).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("clusters/production/europe/" in line for line in lines) == len(planned.changes)


def test_a_column_of_words_is_one_whatever_is_unknown_in_its_first_row():
    rows = [{"endpoint": "a", "health": None, "open": None}, {"endpoint": "b", "health": "up", "open": 12}]
    assert table(rows, ["endpoint", "health", "open"], "").splitlines()[1:] == [
        "a         -          -", "b         up        12"
    ]  # fmt: skip


def test_a_table_that_is_too_wide_becomes_blocks_or_folds_its_last_column():
    row = {"client": "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "service": "x" * 40, "idle_s": 1_000}
    blocks = table([row, row], list(row), "", 80)
    assert blocks.splitlines()[:3] == [f"CLIENT   {row['client']}", f"SERVICE  {'x' * 40}", "IDLE S   1,000"]
    assert table([row], list(row), "") == table([row], list(row), "", 200)
    meaning = {"verdict": "dropped", "packets": 7, "meaning": "a reason that takes more words than a line holds " * 3}
    folded = table([meaning], list(meaning), "", 80).splitlines()
    assert max(map(len, folded)) <= 80 and folded[2].startswith(" " * 18)
    assert " ".join(line[18:].strip() for line in folded[1:]) == meaning["meaning"].strip()


def test_an_agent_without_its_directory_says_that_it_waits(tmp_path):
    (tmp_path / "manifests").mkdir()
    assert "did you mean" in sources._not_there(tmp_path / "manifest")
    assert sources._not_there(tmp_path / "else").endswith("is not there: waiting until it is a directory of manifests")


def test_a_finding_and_a_change_of_the_history_fit_a_terminal():
    narrow = Style(columns=80)
    finding = Finding("no-way-back", "no route leads to " + "them " * 20, "so " * 40, "do " * 40, None)
    for style, longest in ((narrow, 80), (Style(), 500)):
        text = as_text(finding, style)
        assert max(map(len, text.splitlines())) <= longest
        assert text.startswith("no-way-back: no route")
        assert "\n  so:      so so" in text and "\n  way out: do do" in text
    change = "+ service 20.20.20.1:80/tcp                                   examples/configs/nat-tcp/services.yaml:9"
    assert _fitted(change, Style()) == change
    assert _fitted(change, narrow) == "+ service 20.20.20.1:80/tcp  examples/configs/nat-tcp/services.yaml:9"
