# SPDX-License-Identifier: Apache-2.0
"""A run directory in which nothing more can be written."""

import signal
import subprocess
import sys

import pytest

from reconciler.kernel import local_vips, xdp
from tests.cli.conftest import CHECKOUT
from tests.kernel.conftest import entered

pytestmark = pytest.mark.kernel


@pytest.fixture
def small(tmp_path):
    """The run directory, on a file system of its own; a call fills that."""
    path = tmp_path / "run"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", path], check=True)

    def fill():
        with (path / ".filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))

    yield fill
    subprocess.run(["umount", "--recursive", path], check=True)


def assert_nothing_is_held(netns):
    with entered(netns):
        assert list(xdp.running()) == []
        assert local_vips.read() == []


def edit(manifests):
    path = manifests / "pools.yaml"
    path.write_text(path.read_text().replace("weight: 2", "weight: 7"))


def test_an_edit_is_applied_and_everything_can_be_deleted(small, lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    small()
    edit(manifests)
    assert "Applied" in lbctl("apply", manifests, "--auto-approve")
    assert lbctl("plan", manifests).startswith("No changes.")
    lbctl("delete", "--auto-approve")
    assert_nothing_is_held(netns)
    assert not (lbctl.run_dir / netns).exists()


def test_a_first_apply_says_what_is_full_and_changes_nothing(small, lbctl, manifests, netns):
    small()
    assert "No space left on device" in lbctl("apply", manifests, "--auto-approve", code=1)
    assert_nothing_is_held(netns)


def test_the_agent_starts(small, lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    small()
    edit(manifests)
    agent = subprocess.Popen(
        [sys.executable, "-m", "reconciler.cli.main", "--netns", netns, "--run-dir", lbctl.run_dir, "run", manifests],
        cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with agent:
        said = []
        for line in agent.stdout:
            said.append(line)
            if "Applied: 0 added, 1 changed" in line:
                agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == 0, said
    assert lbctl("plan", manifests).startswith("No changes.")
