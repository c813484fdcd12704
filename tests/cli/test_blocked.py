# SPDX-License-Identifier: Apache-2.0
"""What the node can't hold, as a user meets it: said by `plan`, with an exit code, and nothing that works is lost."""

import os
import subprocess
import sys

import pytest

from reconciler.kernel import bpf, xdp
from reconciler.kernel.mark import protocol_of
from reconciler.lab.netns import inside
from tests.cli.conftest import CHECKOUT, ip

pytestmark = pytest.mark.kernel
BLOCKED, PARTLY = 6, 7
RETURN_PASS = bytes.fromhex("b7000000020000009500000000000000")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def setting(netns, name):
    command = ["ip", "netns", "exec", netns, "cat", f"/proc/sys/{name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def test_a_mistyped_interface_is_said_and_takes_the_program_off_none(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    edit(manifests / "nodes.yaml", "name: back", "name: bakc")
    text = lbctl("plan", manifests, code=BLOCKED)
    assert "! interface bakc  blocked" in text
    assert "there is no interface bakc; there are: back, back-far, front, front-far" in text
    assert "- xdp back  kept until there is interface bakc" in text
    lbctl("plan", manifests, "--detailed-exitcode", code=BLOCKED)
    lbctl("apply", manifests, "--auto-approve", code=BLOCKED)
    assert "xdp" in ip("-n", netns, "link", "show", "back")
    edit(manifests / "nodes.yaml", "name: bakc", "name: back")
    assert lbctl("plan", manifests, "--detailed-exitcode").startswith("No changes.")


def test_a_first_apply_that_is_blocked_changes_nothing(lbctl, manifests, netns):
    before = setting(netns, "net/ipv4/conf/front/forwarding")
    edit(manifests / "nodes.yaml", "name: back", "name: bakc")
    lbctl("apply", manifests, "--auto-approve", code=BLOCKED)
    assert setting(netns, "net/ipv4/conf/front/forwarding") == before
    assert "xdp" not in ip("-n", netns, "link", "show", "front")
    assert "Nothing of lbctl's" in lbctl("delete", "--auto-approve")


def test_a_vip_that_is_in_the_way_keeps_the_old_one(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    ip("-n", netns, "address", "add", "20.20.20.77/32", "dev", "lo")
    edit(manifests / "services.yaml", "vip: 20.20.20.1", "vip: 20.20.20.77")
    assert "in the way: address on lo" in lbctl("plan", manifests, code=BLOCKED)
    lbctl("apply", manifests, "--auto-approve", code=BLOCKED)
    assert "20.20.20.1:80/tcp" in lbctl("get", "services")
    assert "20.20.20.77" not in lbctl("get", "services")
    assert "20.20.20.1" in ip("-n", netns, "route", "show", "table", "local", "proto", str(protocol_of(netns)))


def test_a_program_of_somebody_else_blocks_until_it_is_taken_over(lbctl, manifests, netns):
    inside(netns, run_pass)
    assert "in the way: program 'stranger'" in lbctl("plan", manifests, code=BLOCKED)
    lbctl("apply", manifests, "--auto-approve", code=BLOCKED)
    assert inside(netns, programs) == {"front": "stranger"}
    assert "+ xdp front" in lbctl("plan", manifests, "--adopt")
    assert inside(netns, programs) == {"front": "stranger"}
    lbctl("apply", manifests, "--auto-approve", "--adopt")
    assert inside(netns, programs).keys() == {"front", "back"}
    assert "stranger" not in inside(netns, programs).values()
    assert lbctl("plan", manifests, "--detailed-exitcode").startswith("No changes.")


def run_pass():
    with bpf.closing(bpf.load_program("stranger", RETURN_PASS)) as program:
        xdp.swap("front", "native", program, None)


def programs():
    return {running.interface: running.program.name for running in xdp.running() if "far" not in running.interface}


def test_an_interface_that_is_renamed_keeps_its_program_under_either_name(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    ip("-n", netns, "link", "set", "back", "down")
    ip("-n", netns, "link", "set", "back", "name", "lan0")
    ip("-n", netns, "link", "set", "lan0", "up")
    ip("-n", netns, "address", "replace", "10.2.0.1/24", "dev", "lan0")
    lbctl("apply", manifests, "--auto-approve", code=BLOCKED)
    assert "xdp" in ip("-n", netns, "link", "show", "lan0")
    edit(manifests / "nodes.yaml", "name: back", "name: lan0")
    lbctl("apply", manifests, "--auto-approve")
    assert "xdp" in ip("-n", netns, "link", "show", "lan0")
    assert lbctl("plan", manifests, "--detailed-exitcode").startswith("No changes.")
    ip("-n", netns, "link", "set", "lan0", "name", "back")


def test_a_delete_shows_which_settings_get_which_value_back(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    assert "to add, 0 to change" not in lbctl("plan", manifests)
    (manifests / "services.yaml").unlink()
    text = lbctl("plan", manifests)
    assert "~ sysctl net/ipv4/conf/front/forwarding  value 1 -> 0" in text
    assert "- sysctl" not in text


@pytest.mark.parametrize("words", [("--nonsense",), ("--node", "nobody"), ("--format", "tabloid")])
def test_wrong_usage_does_not_look_like_changes(lbctl, manifests, words):
    lbctl("plan", manifests, *words, code=2)
    lbctl("plan", manifests, "--detailed-exitcode", *words, code=1)


def test_apply_goes_on_when_its_reader_goes_away(lbctl, manifests, netns, tmp_path):
    """The pipe breaks at the first change that is told, long before the last one is made."""
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable, "-m", "reconciler.cli.main", "--netns", netns, "--run-dir", tmp_path / "run",
        "apply", manifests, "--auto-approve",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=CHECKOUT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert lbctl("plan", manifests, "--detailed-exitcode").startswith("No changes.")
