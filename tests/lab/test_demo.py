# SPDX-License-Identifier: Apache-2.0
"""The demo is a test of itself: it plays through, it fails where something fails, it leaves nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli import common
from reconciler.lab import netns
from reconciler.lab.demo import DEFAULT_CONFIG, run_demo
from reconciler.lab.lab import Lab

from .conftest import PREFIX

pytestmark = pytest.mark.kernel


def test_the_demo_plays_through(capfd):
    code = run_demo(DEFAULT_CONFIG, PREFIX)
    shown = capfd.readouterr().out
    assert code == 0, shown
    assert "All of it held" in shown
    assert "\033" not in shown  # colours are for terminals
    assert "✗" not in shown
    assert netns.leftovers(PREFIX) == []
    assert not list(Path(common.STATE_DIR).glob(f"{PREFIX}-*"))


def test_the_demo_fails_where_a_server_does_not_answer(capfd, monkeypatch):
    serve = Lab.serve_http

    def serve_with_one_dead(lab: Lab) -> None:
        serve(lab)
        next(iter(lab.servers.values())).kill()

    monkeypatch.setattr(Lab, "serve_http", serve_with_one_dead)
    assert run_demo(DEFAULT_CONFIG, PREFIX) == 1
    shown = capfd.readouterr().out
    assert "✗ 300 requests" in shown
    assert "The demo failed" in shown
    assert netns.leftovers(PREFIX) == []


@pytest.mark.parametrize(("line", "number"), [("1  Build", signal.SIGINT), ("4  Edit", signal.SIGTERM)])
def test_an_interrupted_demo_leaves_nothing(tmp_path, line, number):
    script = "import sys; from pathlib import Path; from reconciler.lab.demo import run_demo as run; " \
             "sys.exit(run(Path(sys.argv[1]), sys.argv[2]))"  # fmt: skip
    argv = [sys.executable, "-c", script, str(DEFAULT_CONFIG), PREFIX]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as demo:
        for shown in demo.stdout:
            if shown.startswith(line):
                demo.send_signal(number)
                break
        rest = demo.stdout.read()
    assert (demo.returncode, rest.splitlines()[-1]) == (128 + number, "Interrupted.")
    assert netns.leftovers(PREFIX) == []
    assert list(tmp_path.iterdir()) == []
