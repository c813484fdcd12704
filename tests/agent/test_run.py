# SPDX-License-Identifier: Apache-2.0
"""`lbctl run` as a process of its own: signals, files, exit codes. Its kernel is one in memory."""

import argparse
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reconciler.agent.control import ask
from reconciler.agent.systemd import watchdog
from reconciler.cli.duration import seconds
from tests.agent.conftest import edit

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
LBCTL = """
import sys
import reconciler.cli.run, reconciler.dataplane.program
from reconciler.cli.main import main
from reconciler.kernel.fake import FakeKernel
from tests.strategies import fake_source
reconciler.dataplane.program.source = fake_source
reconciler.cli.run.open_kernel = lambda args: FakeKernel()
sys.exit(main())
"""


class Process:
    """An agent, and what it says line by line."""

    def __init__(self, *arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LBCTL, *map(str, arguments)],
            cwd=ROOT, env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._lines = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.said = []

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def hears(self, text):
        """The first line from here on that holds `text`."""
        while line := self._lines.get(timeout=PATIENCE_S):
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(f"ended without saying {text!r}: {''.join(self.said)}")

    def end(self):
        """The exit code. What it still says is kept in `said`."""
        code = self.process.wait(timeout=PATIENCE_S)
        while line := self._lines.get(timeout=PATIENCE_S):
            self.said.append(line)
        return code

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=PATIENCE_S)
        self._reader.join(timeout=PATIENCE_S)
        self.process.stdout.close()


@pytest.fixture
def lbctl_run(tmp_path):
    processes = []

    def start(directory, *arguments, **environment):
        where = ("--run-dir", tmp_path / "run", "--instance", "lba")
        processes.append(Process(*where, "run", directory, *arguments, **environment))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def test_it_applies_follows_an_edit_measures_it_and_stops_cleanly(manifests, lbctl_run, tmp_path):
    agent = lbctl_run(manifests, "--resync", "1h")
    first = agent.hears("Watching")
    assert str(manifests) in first
    assert "instance lba" in first
    agent.hears("Applied:")
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    agent.hears("~ ring web/round-robin")
    agent.hears("Applied: 0 added, 1 changed, 0 removed")
    edits = {"count": 0}
    while not edits["count"] and agent.process.poll() is None:  # told once the round is over
        [edits] = [answer["edits"] for answer in ask(tmp_path / "run" / "lba", {"ask": "status"})]
    assert edits["count"] == 1 and 0 < edits["last_s"] == edits["seconds"] < PATIENCE_S
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == 0
    assert "traffic goes on" in agent.said[-1]


def test_it_follows_a_link_that_is_swapped_again_and_again(manifests, tmp_path, lbctl_run):
    link = tmp_path / "current"
    link.symlink_to(manifests)
    agent = lbctl_run(link, "--resync", "1h")
    agent.hears("Applied:")
    for weight in (3, 4):
        tree = tmp_path / f"weight-{weight}"
        tree.mkdir()
        for file in manifests.iterdir():
            (tree / file.name).write_text(file.read_text().replace("weight: 2", f"weight: {weight}"))
        (tmp_path / "new").symlink_to(tree)
        (tmp_path / "new").rename(link)
        agent.hears("~ ring web/round-robin")
    agent.process.send_signal(signal.SIGINT)
    assert agent.end() == 0


def test_a_reload_signal_looks_again(manifests, lbctl_run):
    agent = lbctl_run(manifests, "--resync", "1h")
    agent.hears("Applied:")
    agent.process.send_signal(signal.SIGHUP)
    agent.hears("No changes.")


def test_a_second_agent_is_refused_with_the_pid_of_the_first(manifests, lbctl_run):
    first = lbctl_run(manifests)
    first.hears("Watching")
    second = lbctl_run(manifests)
    assert f"pid {first.process.pid}\n" in second.hears("error")
    assert second.end() == 1


def test_systemd_hears_when_it_is_ready_and_when_it_stops(manifests, tmp_path, lbctl_run):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        agent = lbctl_run(manifests, NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(200).startswith(b"STATUS=Synced, Healthy: ")
        agent.process.send_signal(signal.SIGTERM)
        while (told := systemd.recv(200)) != b"STOPPING=1":
            assert told.startswith(b"STATUS=")
    assert agent.end() == 0


def test_the_watchdog_hears_of_an_agent_that_has_nothing_to_do(manifests, tmp_path, lbctl_run):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        lbctl_run(manifests, "--resync", "1h", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
        heard = [systemd.recv(200) for _ in range(8)]
    assert heard.count(b"WATCHDOG=1") >= 5
    watchdog(lambda state: pytest.fail("nobody watches this process"))()


def asked(tmp_path, *words, code=0):
    command = [sys.executable, "-m", "reconciler.cli.main", "--run-dir", tmp_path / "run", "--instance", "lba", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_status_waits_until_an_edit_is_in_force_and_events_tell_it(manifests, tmp_path, lbctl_run):
    agent = lbctl_run(manifests, "--resync", "1h")
    agent.hears("Applied:")
    before = json.loads(asked(tmp_path, "status", "--wait", "synced", "--json"))
    assert before["agent"]["pid"] == agent.process.pid
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    after = json.loads(asked(tmp_path, "status", "--wait", "synced", "--json"))
    assert after["revision"]["applied"] != before["revision"]["applied"]
    events = asked(tmp_path, "events", "--last", "5")
    assert "~ ring web/round-robin" in events and "10.2.0.1:8080 66.7% -> 75.0%" in events
    edit(manifests / "pools.yaml", "weight: 3", "wight: 3")
    refused = asked(tmp_path, "status", "--wait", "synced", "--timeout", "3s", code=1)
    assert "the node is Unknown and Degraded" in refused and "pools.yaml:6:39: error" in refused
    history = json.loads(asked(tmp_path, "history", "--json"))
    assert history["current"] == after["revision"]["applied"]
    assert [entry["counts"]["changed"] for entry in history["entries"]][:1] == [1]
    agent.process.kill()
    agent.end()
    assert "no agent runs on instance lba" in asked(tmp_path, "status", code=1)


def test_a_paused_agent_changes_nothing_until_it_is_resumed(manifests, tmp_path, lbctl_run):
    agent = lbctl_run(manifests, "--resync", "1h")
    agent.hears("Applied:")
    assert "until `lbctl resume`" in asked(tmp_path, "pause", "--reason", "a freeze")
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    waited = asked(tmp_path, "status", "--wait", "synced", "--timeout", "2s", code=1)
    assert "the node is OutOfSync" in waited
    status = json.loads(asked(tmp_path, "status", "--json"))
    assert "a freeze" in status["paused"] and status["revision"]["attempted"] != status["revision"]["applied"]
    asked(tmp_path, "resume")
    agent.hears("~ ring web/round-robin")
    assert json.loads(asked(tmp_path, "status", "--wait", "synced", "--json"))["paused"] == ""
    assert "was not paused" in asked(tmp_path, "resume")


def test_a_paused_agent_that_starts_is_ready_and_waits(manifests, tmp_path, lbctl_run):
    assert "No agent runs" in asked(tmp_path, "pause", "--for", "1h", "--reason", "a freeze")
    agent = lbctl_run(manifests, "--resync", "1h")
    agent.hears("The node is left as it is: paused until")
    status = json.loads(asked(tmp_path, "status", "--json"))
    assert (status["sync"], status["revision"]["applied"]) == ("OutOfSync", "")
    assert 0 < status["open"] <= status["resources"]
    asked(tmp_path, "resume")
    agent.hears("Applied:")


def test_more_removals_than_allowed_are_refused_and_the_node_is_kept(manifests, tmp_path, lbctl_run):
    agent = lbctl_run(manifests, "--resync", "1h", "--max-prune", "3")
    agent.hears("Applied:")
    text = (manifests / "services.yaml").read_text()
    (manifests / "services.yaml").write_text(text[: text.index("---")])
    agent.hears("--max-prune allows 3")
    assert json.loads(asked(tmp_path, "status", "--json"))["sync"] == "Unknown"


def test_followers_hear_what_happens(manifests, tmp_path, lbctl_run):
    agent = lbctl_run(manifests, "--resync", "1h", "--log-format", "json")
    agent.hears('"event": "applied"')
    where = ["--run-dir", tmp_path / "run", "--instance", "lba"]
    command = [sys.executable, "-m", "reconciler.cli.main", *where, "events", "--follow", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as follower:
        lines = iter(follower.stdout.readline, "")
        assert any('"event": "applied"' in line for line in lines)
        edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
        change = json.loads(next(line for line in lines if "web/round-robin" in line))
        assert change["action"] == "update"
        agent.process.send_signal(signal.SIGTERM)
        assert follower.wait(timeout=PATIENCE_S) == 0  # the agent has ended, and so has the list
    assert agent.end() == 0


@pytest.mark.parametrize("log", ["/dev/full", "a pipe that nobody reads"])
def test_a_log_that_can_not_be_written_ends_nothing(manifests, tmp_path, log):
    if log == "/dev/full":
        out = os.open(log, os.O_WRONLY)
    else:
        read, out = os.pipe()
        os.close(read)
    arguments = ["--run-dir", str(tmp_path / "run"), "--instance", "lba", "run", str(manifests)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        agent = subprocess.Popen(
            [sys.executable, "-c", LBCTL, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.PIPE
        )
        os.close(out)
        try:
            assert systemd.recv(100) == b"READY=1"
            agent.send_signal(signal.SIGTERM)
            assert agent.communicate(timeout=PATIENCE_S) == (None, b"")
        finally:
            agent.kill()
            agent.wait(timeout=PATIENCE_S)
    assert agent.returncode == 0


@pytest.mark.parametrize(("text", "expected"), [("1s", 1), ("30s", 30), ("5m", 300), ("2h", 7200)])
def test_a_time_is_a_number_and_a_unit(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["0s", "30", "soon", "1.5s", "-1s", "", "99999999h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="write 10s, 5m or 1h"):
        seconds(text)
