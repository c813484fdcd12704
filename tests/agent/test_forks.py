# SPDX-License-Identifier: Apache-2.0
"""Verbs that are run for others: each in a process of its own, started by one that has imported lbctl already."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler import children
from reconciler.agent.control import Command, listening
from reconciler.agent.forks import Forks
from reconciler.errors import LbctlError, UsageError
from reconciler.version import VERSION

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


@pytest.fixture
def forks():
    made = Forks()
    yield made
    made.stop()


def ran(forks, *words, timeout_s=PATIENCE_S):
    """Exit code, output and complaints of a verb."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = forks.run(words, out.fileno(), err.fileno(), timeout_s)
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(), err.read().decode()


def test_each_verb_has_its_own_output_and_exit_code_and_one_process_starts_them_all(forks):
    assert ran(forks, "--version") == (0, f"lbctl {VERSION}\n", "")
    pid = forks.pid
    code, out, err = ran(forks, "get", "servces")
    assert (code, out) == (UsageError.exit_code, "") and "services" in err
    assert ran(forks, "--version") == (0, f"lbctl {VERSION}\n", "")
    assert forks.pid == pid
    assert forks.spent_s > 0


def test_what_starts_them_takes_nothing_from_its_surroundings_and_has_one_thread(forks, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "json.py").write_text("raise SystemExit(9)\n")
    assert ran(forks, "--version")[0] == 0
    process = Path(f"/proc/{forks.pid}")
    names = {each.partition(b"=")[0] for each in (process / "environ").read_bytes().split(b"\0") if each}
    assert names <= {b"PATH", b"LC_ALL", b"OPENBLAS_NUM_THREADS", b"OMP_NUM_THREADS"}
    assert (process / "cwd").readlink() == Path("/")
    assert len(list((process / "task").iterdir())) == 1


def test_a_verb_that_takes_too_long_is_ended_and_the_next_one_runs(forks, tmp_path):
    with endless(tmp_path / "run" / "lba"):
        with pytest.raises(TimeoutError):
            ran(forks, "--run-dir", str(tmp_path / "run"), "--instance", "lba", "status", timeout_s=0.5)
        pid = forks.pid
        children_of = Path(f"/proc/{pid}/task/{pid}/children")
        assert children_of.read_text() == ""
        assert ran(forks, "--version")[0] == 0
        assert forks.pid == pid


@contextmanager
def endless(instance_dir):
    """An agent that takes every question and answers none."""
    over = threading.Event()
    with listening(instance_dir, {"status": Command(lambda *_: iter([{}] if over.wait(PATIENCE_S) else []))}, None):
        try:
            yield
        finally:
            over.set()


def test_it_is_started_again_where_it_was_killed_or_nobody_asked_for_a_while(forks):
    ran(forks, "--version")
    first = forks.pid
    os.kill(first, signal.SIGKILL)
    assert ran(forks, "--version")[0] == 0
    assert forks.pid != first and not is_there(first)
    forks.stop()
    forks = Forks(idle_s=0.01)
    ran(forks, "--version")
    deadline = time.monotonic() + PATIENCE_S
    while forks.pid is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ran(forks, "--version")[0] == 0
    forks.stop()


def test_one_that_can_not_start_is_an_error_with_a_way_out(forks, monkeypatch):
    monkeypatch.setattr(children, "module", lambda *_: ["/bin/false"])
    for _ in range(2):
        with pytest.raises(LbctlError, match="has ended"):
            ran(forks, "--version")
    monkeypatch.undo()
    assert ran(forks, "--version")[0] == 0


@pytest.mark.parametrize("is_busy", [False, True])
def test_it_ends_with_the_agent_however_that_ends(tmp_path, is_busy):
    code = """
import os, signal, sys, threading
from reconciler.agent.forks import Forks
forks = Forks()
forks.run(["--version"], 1, 1, 60.0)
print(forks.pid, flush=True)
if sys.argv[1:]:
    threading.Thread(target=forks.run, args=(sys.argv[1:], 1, 1, 60.0), daemon=True).start()
    while not open(f"/proc/{forks.pid}/task/{forks.pid}/children").read():
        pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    words = ["--run-dir", str(tmp_path / "run"), "--instance", "lba", "status"] if is_busy else []
    with endless(tmp_path / "run" / "lba"):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=PATIENCE_S,
                              cwd=ROOT)  # fmt: skip
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    deadline = time.monotonic() + PATIENCE_S
    while is_there(int(done.stdout.split()[-1])):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_there(pid):
    """Whether a process runs; one that waits for a parent to hear of its end doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
