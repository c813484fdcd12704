# SPDX-License-Identifier: Apache-2.0
"""Whenever an `apply` or a `delete` is killed, the next one brings the node to where it should be."""

import errno
import os
import subprocess

import pytest

from reconciler.dataplane.layout import CONNECTIONS, ConnectionState
from reconciler.kernel import local_vips, xdp
from reconciler.kernel.instance import Instance
from reconciler.kernel.real import RealKernel
from tests.cli.killed import KILLED, lbctl
from tests.kernel.conftest import entered
from tests.packets.frames import At
from tests.packets.table import Ends, Entry, Table

pytestmark = pytest.mark.kernel

STEP = int(os.environ.get("LBCTL_KILL_STEP", "11"))
"""Each so-manieth change is one to be killed before; each of them takes minutes."""


@pytest.fixture
def verb(netns, tmp_path):
    """A verb in the namespace, by its words; it must end with a code."""
    where = ("--netns", netns, "--run-dir", tmp_path / "run")

    def call(*words, code=(0,), killed_before=None, fault=None):
        ended, count = lbctl(*where, *words, killed_before=killed_before, fault=fault, log=tmp_path / "log")
        assert ended in code, f"{words}, change {killed_before}: exit code {ended}\n{(tmp_path / 'log').read_text()}"
        return count

    yield call
    for pins in (tmp_path / "run").glob("*/bpf"):  # of a test that failed
        if os.path.ismount(pins):
            subprocess.run(["umount", pins], check=True)


def assert_clean(netns, run_dir):
    with entered(netns):
        assert list(xdp.running()) == []
        assert local_vips.read() == []
    assert [path.name for path in run_dir.iterdir()] == [".state"], "only the history outlives it"


def test_a_killed_first_apply_can_be_deleted(verb, manifests, netns, tmp_path):
    changes = verb("apply", manifests, "--auto-approve")
    verb("delete", "--auto-approve")
    assert changes > 30
    for number in range(0, changes - 1, STEP):
        verb("apply", manifests, "--auto-approve", code=(KILLED,), killed_before=number)
        verb("delete", "--auto-approve")
        assert_clean(netns, tmp_path / "run")


def test_a_killed_first_apply_can_be_applied(verb, manifests):
    changes = verb("apply", manifests, "--auto-approve")
    verb("delete", "--auto-approve")
    for number in range(0, changes - 1, STEP):
        verb("apply", manifests, "--auto-approve", code=(KILLED,), killed_before=number)
        verb("apply", manifests, "--auto-approve")
        verb("plan", manifests, "--detailed-exitcode")
        verb("delete", "--auto-approve")


def test_a_killed_delete_can_be_finished(verb, manifests, netns, tmp_path):
    verb("apply", manifests, "--auto-approve")
    changes = verb("delete", "--auto-approve")
    assert changes > 20
    for number in range(0, changes - 1, STEP):
        verb("apply", manifests, "--auto-approve")
        verb("delete", "--auto-approve", code=(KILLED,), killed_before=number)
        verb("delete", "--auto-approve")
        assert_clean(netns, tmp_path / "run")


def test_a_killed_change_of_sizes_goes_on_and_leaves_no_second_set_of_maps(verb, manifests, netns, tmp_path):
    """The connections of either program are there at the end, whenever the takeover was cut off."""
    kernel = RealKernel(netns, tmp_path / "run")
    nodes = manifests / "nodes.yaml"
    text = nodes.read_text()
    sizes = [text.replace("\nspec:", f"\nspec:\n  capacity: {{flows: {flows}}}") for flows in (9_000, 20_000)]
    nodes.write_text(sizes[0])
    verb("apply", manifests, "--auto-approve")
    nodes.write_text(sizes[1])
    changes = verb("apply", manifests, "--auto-approve")
    assert changes > 20
    for turn, number in enumerate(range(0, changes - 1, max(1, STEP // 3))):
        ends = Ends(At("10.9.9.9", turn + 1))
        Table(kernel).put(ends, Entry(1, ConnectionState.OPEN))
        nodes.write_text(sizes[turn % 2])
        ended = (KILLED,) if number < changes - 5 else (KILLED, 0)  # the first one makes some things for good
        verb("apply", manifests, "--auto-approve", code=ended, killed_before=number)
        verb("apply", manifests, "--auto-approve")
        verb("plan", manifests, "--detailed-exitcode")
        assert ends in Table(kernel).entries()
        assert kernel.capacity(CONNECTIONS.name) == (9_000, 20_000)[turn % 2] * 5 // 8
        program = kernel.loaded_program()
        assert program
        pins = [f"other-{program.id}", "program", f"stages-{program.id}"]
        assert Instance(netns, tmp_path / "run").pinned() == pins
        with entered(netns):
            assert len({held.id for held in xdp.running()}) == 1
    verb("delete", "--auto-approve")
    assert_clean(netns, tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM])
def test_a_change_that_fails_is_no_bug_and_the_next_verb_goes_on(verb, manifests, netns, tmp_path, number):
    changes = verb("apply", manifests, "--auto-approve")
    verb("delete", "--auto-approve")
    for place in range(number % STEP, changes - 1, STEP):
        verb("apply", manifests, "--auto-approve", code=(0, 1, 4), killed_before=place, fault=number)
        verb("delete", "--auto-approve", code=(0, 1, 4), killed_before=place, fault=number)
        verb("delete", "--auto-approve")
        assert_clean(netns, tmp_path / "run")
