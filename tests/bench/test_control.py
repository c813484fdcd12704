# SPDX-License-Identifier: Apache-2.0
"""The bench of the control plane, with a tiny fleet: that it measures all it should, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import control, written
from tests.bench.control import Figure
from tests.bench.machinery import NotMeasuredError, command

CHECKOUT = Path(__file__).resolve().parents[2]


def figure(what, endpoints, value, unit="s"):
    return Figure(what, endpoints, value, unit)


def test_growth_is_told_by_its_exponents():
    found = [
        figure("plan", 1_000, 1.0), figure("edit", 1_000, 0.5), figure("memory", 1_000, 50.0, "MB"),
        figure("plan", 10_000, 10.0), figure("edit", 10_000, 0.5), figure("plan", 100_000, 1_000.0),
    ]  # fmt: skip
    assert list(control.growth(found)) == [
        f"{'plan':<46}1.00 (1,000 → 10,000), 2.00 (10,000 → 100,000)",
        f"{'edit':<46}0.00 (1,000 → 10,000)",
    ]
    assert list(control.growth(found[:3])) == []


def test_a_command_that_fails_is_not_measured():
    with pytest.raises(NotMeasuredError, match="exit code 3: so sorry"):
        command(sys.executable, "-c", "import sys; print('so sorry'); sys.exit(3)")


def test_a_command_that_takes_too_long_is_not_measured(monkeypatch):
    monkeypatch.setattr("tests.bench.machinery.LIMIT_S", 0.2)
    with pytest.raises(NotMeasuredError, match=r"not done after 0 s"):
        command(sys.executable, "-c", "import time; time.sleep(60)")


def test_an_edit_writes_the_rows_that_differ_and_no_others():
    rows, differing = written.count(25)
    assert rows == differing > 20


@pytest.mark.kernel
def test_all_figures_are_measured(tmp_path):
    name = f"lbb-test-{os.getpid()}"
    found = list(control.figures([50], name, tmp_path, edits=3))
    assert [text for text in found if isinstance(text, str)] == []
    assert {f.what.strip().split(",")[0].split(" (")[0] for f in found} >= {
        "rows written for 15 edits", "validate", "load", "first apply", "of that writing", "plan", "the reading alone",
        "the agent's full look: longest slice",
        "restart of the agent", "edit: file renamed → ring in the map", "from settled",
        "agent's memory after these edits", "delete",
    }  # fmt: skip
    assert all(f.value > 0 for f in found if f.unit == "MB")
    assert all(f.baseline == "0 rounds that wrote" for f in found if f.what.startswith("restart"))
    assert all(f.is_reached is None for f in found[1:])  # bars are for the largest fleet
    assert not list(Path("/run/netns").glob(f"{name}*"))


@pytest.mark.kernel
def test_nothing_is_left_after_ctrl_c(tmp_path):
    """It is interrupted while there is an instance with maps, and a namespace."""
    words = ("-m", "tests.bench", "control", "--endpoints", "50", "--json", str(tmp_path / "json"))
    bench = subprocess.Popen(
        (sys.executable, *words), cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert bench.stdout
    for line in bench.stdout:
        if "of that writing" in line:
            bench.send_signal(signal.SIGINT)
            break
    rest = bench.stdout.read()
    bench.stdout.close()
    assert bench.wait(60) == 128 + signal.SIGINT, rest
    assert "Traceback" not in rest
    assert list(Path("/run/netns").glob(f"lbb-{bench.pid}*")) == []
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 20
    while f"/lbb-{bench.pid}-" in Path("/proc/self/mountinfo").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
