# SPDX-License-Identifier: Apache-2.0
"""Rollback, and changes that go back by themselves, on a real kernel."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from reconciler import notes
from tests.agent.conftest import edit
from tests.cli.conftest import CHECKOUT

pytestmark = pytest.mark.kernel

PATIENCE_S = 60


def endpoints(lbctl):
    found = json.loads(lbctl("get", "endpoints", "-o", "json"))["items"]
    return sorted(row["endpoint"] for row in found if row["state"] == "usable")


@pytest.fixture
def edited(lbctl, manifests):
    """Two revisions: the second has no endpoint 10.2.0.13."""
    lbctl("apply", manifests, "--auto-approve")
    before = endpoints(lbctl)
    text = (manifests / "pools.yaml").read_text()
    lines = text.splitlines(keepends=True)
    (manifests / "pools.yaml").write_text("".join(line for line in lines if "10.2.0.13" not in line))
    return before


def test_rollback_needs_no_directory_and_holds_the_agent(lbctl, manifests, edited, netns):
    lbctl("apply", manifests, "--auto-approve")
    after = endpoints(lbctl)
    assert after != edited and set(after) < set(edited)
    for file in manifests.iterdir():
        file.unlink()
    assert "until `lbctl resume`" in lbctl("rollback", "--auto-approve")
    assert endpoints(lbctl) == edited
    history = json.loads(lbctl("history", "--json"))["entries"]
    assert history[0]["revision"] == history[2]["revision"] != history[1]["revision"]
    assert "rolled back" in notes.read(lbctl.run_dir / netns, notes.Pause).reason
    lbctl("resume")
    assert notes.read(lbctl.run_dir / netns, notes.Pause) is None
    lbctl("rollback", "1", "--auto-approve")
    assert endpoints(lbctl) == after


def test_status_says_what_a_rollback_made_of_the_node(lbctl, manifests, edited, netns):
    command = [sys.executable, "-m", "reconciler.cli.main", "--netns", netns, "--run-dir", lbctl.run_dir, "run",
               manifests, "--resync", "1h"]  # fmt: skip
    agent = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        before = json.loads(lbctl("status", "--wait", "synced", "--timeout", "1m", "--json"))["revision"]["applied"]
        lbctl("rollback", "--auto-approve")
        deadline = time.monotonic() + PATIENCE_S
        while (told := json.loads(lbctl("status", "--json")))["sync"] != "OutOfSync":
            assert time.monotonic() < deadline
        assert told["revision"]["attempted"] == before != told["revision"]["applied"]
        assert told["open"] > 0
        refused = lbctl("drain", "10.2.0.11", code=1)
        assert "has to leave the node as it is: paused until `lbctl resume`" in refused
        lbctl("undrain", "10.2.0.11")
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(timeout=PATIENCE_S)


def test_a_confirmed_change_stays(lbctl, manifests, edited, netns):
    told = lbctl("apply", manifests, "--auto-approve", "--confirm-within", "10m")
    assert "The node goes back at" in told and f"--netns {netns} confirm" in told
    after = endpoints(lbctl)
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    for more in ((), ("--confirm-within", "1m")):
        assert "is not confirmed yet" in lbctl("apply", manifests, "--auto-approve", *more, code=1)
    lbctl("confirm")
    assert endpoints(lbctl) == after != edited
    assert "there is no change to confirm" in lbctl("confirm", code=1)
    assert watchers(netns, until=0) == []


def test_an_unconfirmed_change_goes_back_without_an_agent_or_a_session(lbctl, manifests, edited, netns):
    lbctl("apply", manifests, "--auto-approve", "--confirm-within", "3s")
    assert wait(lambda: notes.read(lbctl.run_dir / netns, notes.Unconfirmed) is None)
    assert endpoints(lbctl) == edited
    history = json.loads(lbctl("history", "--json"))["entries"]
    assert history[0]["who"] == "nobody confirmed" and history[0]["revision"] == history[2]["revision"]
    assert "went back" in notes.read(lbctl.run_dir / netns, notes.Pause).reason
    assert watchers(netns, until=0) == []


@pytest.mark.parametrize("when", ["while the change is made", "afterwards"])
def test_a_change_that_cuts_its_operators_terminal_off_goes_back(lbctl, manifests, edited, netns, when):
    """As the end of an SSH session does: the terminal is gone, and the kernel hangs up on all that it controls."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "reconciler.cli.main", "--netns", netns, "--run-dir", lbctl.run_dir, "apply",
               manifests, "--auto-approve", "--confirm-within", "5s"]  # fmt: skip
    apply = subprocess.Popen(
        command, cwd=CHECKOUT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    if when == "afterwards":
        while b"The node goes back at" not in shown:
            shown += os.read(ours, 65_536)
    else:
        assert wait(lambda: notes.read(lbctl.run_dir / netns, notes.Unconfirmed) is not None)
    os.close(ours)
    apply.wait(PATIENCE_S)
    assert wait(lambda: notes.read(lbctl.run_dir / netns, notes.Unconfirmed) is None)
    assert endpoints(lbctl) == edited
    assert watchers(netns, until=0) == []


def test_a_change_that_removes_more_than_allowed_is_refused_as_a_whole(lbctl, manifests, edited):
    pools = manifests / "pools.yaml"
    edit(pools, "weight: 2", "weight: 3")
    refused = lbctl("apply", manifests, "--auto-approve", "--max-prune", "0", code=1)
    assert "--max-prune allows 0" in refused, refused
    assert endpoints(lbctl) == edited
    assert len(json.loads(lbctl("history", "--json"))["entries"]) == 1
    lbctl("apply", manifests, "--auto-approve", "--max-prune", "2")
    assert endpoints(lbctl) != edited


def test_a_first_change_goes_back_to_nothing(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve", "--confirm-within", "3s")
    assert wait(lambda: notes.read(lbctl.run_dir / netns, notes.Unconfirmed) is None)
    assert json.loads(lbctl("get", "services", "-o", "json"))["items"] == []


def wait(condition):
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() >= give_up:
            return False
        time.sleep(0.05)
    return True


def watchers(netns, until):
    """The processes that wait for the end of an instance's time."""

    def found():
        commands = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                commands[int(path.parent.name)] = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
        return [pid for pid, words in commands.items() if "--or-back" in words and netns in words]

    wait(lambda: len(found()) == until)
    return found()
