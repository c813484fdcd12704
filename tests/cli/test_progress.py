# SPDX-License-Identifier: Apache-2.0
"""The line that says what is being done: who sees it, and that nothing of it stays."""

import argparse
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest

from reconciler import progress
from reconciler.cli import doctor, get, status
from tests import big_fleet

CHECKOUT = Path(__file__).resolve().parents[2]
PLAIN = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")} | {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
ERASE = b"\r\x1b[K"

AT_WORK = """
import sys
from reconciler import progress
from reconciler.cli import doctor, get, status
from reconciler.cli import progress as line, streams
streams.prepare()
line.DELAY_S, line.PAINT_S = 0.0, 0.05
with line.shown():
    with progress.step("counting", 3000, "sheep") as advance:
        advance(1000)
        sys.stdin.readline()
        print("one line that stays")
        print("and one of errors", file=sys.stderr)
        sys.stdin.readline()
    sys.stdin.readline()
    print("the end")
"""


def screen(shown: bytes) -> list[str]:
    """The lines that a terminal has after these bytes, which know no other movement than ours."""
    return [line.rsplit(ERASE, 1)[-1].decode() for line in shown.replace(b"\r\n", b"\n").split(b"\n")]


class Terminal:
    def __init__(self, code, columns=80, environment=PLAIN, **streams):
        self.ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        quiet = termios.tcgetattr(theirs)
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, quiet)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=CHECKOUT, env=environment,
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs} | streams,
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""

    def read(self, timeout_s=30.0):
        """What else is shown; False at the end."""
        if not select.select([self.ours], [], [], timeout_s)[0]:
            raise TimeoutError(self.shown)
        try:
            chunk = os.read(self.ours, 65536)
        except OSError:  # how a terminal says that nobody writes any more
            return False
        self.shown += chunk
        return bool(chunk)

    def until(self, is_so):
        latest = time.monotonic() + 60
        while not is_so(screen(self.shown)):
            assert time.monotonic() < latest and self.read(), self.shown[-300:]

    def enter(self):
        os.write(self.ours, b"\n")

    def rest(self):
        while self.read():
            pass
        os.close(self.ours)
        assert self.process.wait(timeout=60) == 0, self.shown
        return screen(self.shown)


def test_steps_say_how_much_is_done():
    assert progress.now() == ""
    with progress.step("making changes", 12_000) as changed:
        changed(10_000)
        assert progress.now() == "making changes, 10,000 of 12,000"
        for name in progress.each("reading", ["a", "b", "c"], "files"):
            if name == "b":
                assert progress.now() == "making changes, 10,000 of 12,000: reading, 1 of 3 files"
                break
        changed(5_000)
        assert progress.now() == "making changes, 12,000 of 12,000"
    with pytest.raises(ZeroDivisionError), progress.step("failing"):
        1 / 0  # noqa: B018
    assert progress.now() == ""


def test_a_step_that_threads_take_at_once_is_told_once():
    with progress.step("loading"), progress.step("compiling"), progress.step("compiling"):
        assert progress.now() == "loading: compiling"


def test_a_terminal_shows_the_step_and_keeps_only_what_is_printed():
    terminal = Terminal(AT_WORK)
    terminal.until(lambda lines: lines[-1].startswith("counting, 1,000 of 3,000 sheep · "))
    terminal.enter()
    terminal.until(lambda lines: lines[-1].startswith("counting") and "and one of errors" in lines)
    assert screen(terminal.shown)[:2] == ["one line that stays", "and one of errors"]
    terminal.enter()
    terminal.until(lambda lines: lines[-1] == "")  # no step, so no line
    terminal.enter()
    assert terminal.rest() == ["one line that stays", "and one of errors", "the end", ""]


@pytest.mark.parametrize("columns", (20, 31))
@pytest.mark.parametrize("environment, more", [({}, "…"), ({"PYTHONIOENCODING": "ascii"}, "...")])
def test_the_line_fits_narrow_windows(columns, environment, more):
    terminal = Terminal(AT_WORK, columns, PLAIN | environment)
    terminal.until(lambda lines: lines[-1].endswith(more))
    assert len(screen(terminal.shown)[-1]) == columns - 1
    for _ in range(3):
        terminal.enter()
    assert terminal.rest() == ["one line that stays", "and one of errors", "the end", ""]


@pytest.mark.parametrize(
    "columns, environment",
    [(19, {}), (80, {"TERM": "dumb"}), (80, {"TERM": ""}), (80, {"CI": "true"})],
    ids=["no room", "dumb", "no TERM", "CI"],
)
def test_terminals_without_the_line(columns, environment):
    terminal = Terminal(AT_WORK, columns, PLAIN | environment)
    for _ in range(3):
        terminal.enter()
    assert terminal.rest() == ["one line that stays", "and one of errors", "the end", ""]
    assert b"counting" not in terminal.shown and b"\x1b" not in terminal.shown


def test_colours_are_another_matter():
    terminal = Terminal(AT_WORK, environment=PLAIN | {"NO_COLOR": "1"})
    terminal.until(lambda lines: lines[-1].startswith("counting"))
    for _ in range(3):
        terminal.enter()
    terminal.rest()
    assert b"m" not in terminal.shown.replace(ERASE, b"").split(b"\x1b")[-1].split(b"the end")[0]


@pytest.mark.parametrize("stream", ("stdout", "stderr"))
def test_no_line_where_another_program_reads(stream):
    reader, writer = os.pipe()
    terminal = Terminal(AT_WORK, **{stream: writer})
    os.close(writer)
    for _ in range(3):
        terminal.enter()
    shown = terminal.rest()
    with os.fdopen(reader, "rb") as piped:
        both = piped.read() + terminal.shown
    assert b"counting" not in both and b"\x1b" not in both
    assert ("the end" in shown) is (stream == "stderr")


def test_a_file_may_take_the_output_while_the_terminal_shows_the_line(tmp_path):
    with (tmp_path / "out").open("wb") as out:
        terminal = Terminal(AT_WORK, stdout=out)
    terminal.until(lambda lines: lines[-1].startswith("counting"))
    for _ in range(3):
        terminal.enter()
    assert terminal.rest() == ["and one of errors", ""]
    assert (tmp_path / "out").read_text() == "one line that stays\nthe end\n"


def test_a_command_on_a_terminal_leaves_no_trace_of_it(tmp_path):
    big_fleet.write(tmp_path, 300)
    code = (
        "import sys; from reconciler.cli import main, progress; progress.DELAY_S, progress.PAINT_S = 0.0, 0.001;"
        f"sys.exit(main.main(['plan', {str(tmp_path)!r}, '--live', 'empty', '--no-color']))"
    )
    terminal = Terminal(code, columns=200)
    shown = terminal.rest()
    assert b"checking manifests, " in terminal.shown
    assert shown[-2].startswith("Plan: ") and shown[-1] == ""
    assert not any("checking manifests" in line for line in shown)


def test_what_a_step_says_controls_no_terminal():
    code = AT_WORK.replace('"counting"', '"counting\\x1b[2J\\n"')
    terminal = Terminal(code)
    started = time.monotonic()
    while b"counting" not in terminal.shown and time.monotonic() - started < 30:
        terminal.read()
    for _ in range(3):
        terminal.enter()
    terminal.rest()
    assert rb"counting\x1b[2J\n" in terminal.shown
    assert b"\x1b[2J" not in terminal.shown


@pytest.mark.kernel
def test_an_apply_on_a_terminal_shows_some_changes_that_are_alike_and_how_many_more(tmp_path):
    name = f"lbpr-{os.getpid()}"
    big_fleet.write(tmp_path / "manifests", 30)
    at = ["--netns", name, "--run-dir", str(tmp_path / "run")]

    def on_terminal(*words):
        code = f"import sys; from reconciler.cli import main; sys.exit(main.main({[*at, *words, '--no-color']!r}))"
        return Terminal(code, columns=200).rest()

    with big_fleet.namespace(name):
        try:
            shown = on_terminal("apply", str(tmp_path / "manifests"), "--auto-approve")
            assert sum(line.startswith("  + endpoint 10.") for line in shown) == 20
            assert "  + endpoint … and 280 more" in shown and "  + service … and 10 more" in shown
            assert any(line.startswith("Applied: ") for line in shown)
        finally:
            gone = on_terminal("delete", "--auto-approve")
        assert gone.count("  - endpoint … and 280 more") == 2, "in the plan, and while it is carried out"


def test_who_waits_is_shown_for_what(monkeypatch, capsys):
    seen = []

    def answer(*_):
        seen.append(progress.now())
        return {"now_s": 0, "read_s": 1, "sync": "Synced", "health": "Healthy"}

    monkeypatch.setattr(status, "from_agent", answer)
    assert status.run(argparse.Namespace(wait="synced", timeout=60.0, format="json")) == 0
    assert seen == ["waiting until the node is synced"] * 2

    def look(*_):
        seen.append(progress.now())
        return []

    monkeypatch.setattr(doctor, "may_only_ask", lambda _: False)
    monkeypatch.setattr(doctor, "load_fleet", lambda *_: None)
    monkeypatch.setattr(doctor, "_findings", look)
    assert doctor.run(argparse.Namespace(directory=".", client=None, format="json")) == 0
    monkeypatch.setattr(get, "_asked", lambda *_: {"items": look()})
    asked = {"what": "services", "history": False, "watch": None, "output": "json"} | dict.fromkeys(get._FILTERS, "")
    assert get.run(argparse.Namespace(**asked)) == 0
    assert seen[2:] == ["looking for what is wrong", "reading services"]
