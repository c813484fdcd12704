# SPDX-License-Identifier: Apache-2.0
"""What a node's owner makes has the same modes whatever the umask is, and others can neither write nor read it."""

import stat
import subprocess
import sys

import pytest

from tests.cli.conftest import CHECKOUT, NETNS

pytestmark = pytest.mark.kernel

PATIENCE_S = 240
OTHERS = stat.S_IRWXG | stat.S_IRWXO
PASSABLE = stat.S_IXGRP | stat.S_IXOTH
"""Who may ask the agent must come to its socket, and may not list what is beside it."""


def modes(*places):
    """The modes of all that there is, by path; pins are the kernel's."""
    found = {}
    for place in places:
        for path in (place, *place.rglob("*")):
            if "bpf" not in path.relative_to(place).parts[1:-1]:
                found[str(path)] = stat.S_IMODE(path.lstat().st_mode)
    return found


@pytest.fixture
def made(lbctl, manifests, tmp_path):
    """The modes after a change that waits to be confirmed, a drain and an agent, made under a umask."""

    def make(mask):
        def call(*words):
            return subprocess.run(
                [sys.executable, "-m", "reconciler.cli.main", "--netns", NETNS, "--run-dir", lbctl.run_dir, *words],
                cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE_S, umask=mask, check=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

        call("apply", manifests, "--auto-approve", "--confirm-within", "10m")
        call("confirm")
        agent = subprocess.Popen(
            [sys.executable, "-m", "reconciler.cli.main", "--netns", NETNS, "--run-dir", lbctl.run_dir, "run",
             manifests],
            cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, umask=mask,
        )  # fmt: skip
        try:
            call("status", "--wait", "synced", "--timeout", f"{PATIENCE_S}s")
            call("drain", "10.2.0.11", "--for", "1h")
            call("pause", "--for", "1h", "--reason", "a test")
            return modes(lbctl.run_dir)
        finally:
            agent.terminate()
            agent.wait(PATIENCE_S)

    return make


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_nothing_that_lbctl_makes_is_open_to_others_whatever_the_umask(made, lbctl, mask):
    found = made(mask)
    assert len(found) > 10
    instance = str(lbctl.run_dir / NETNS)
    for path, mode in found.items():
        if path in (str(lbctl.run_dir), str(lbctl.run_dir / ".state")):  # where instances are, by their names
            assert mode == 0o755, path
        elif path == instance:
            assert mode & OTHERS == PASSABLE, oct(mode)
        else:
            assert not mode & (OTHERS ^ PASSABLE), (path, oct(mode))
