# SPDX-License-Identifier: Apache-2.0
"""Pins that are gone, all or some: the program goes on, and what it works with is found again."""

import os
import subprocess
import sys

import numpy as np
import pytest

from reconciler.dataplane.chunks import place_of
from reconciler.dataplane.layout import ConnectionState
from reconciler.kernel import bpf, maps, xdp
from reconciler.kernel.real import RealKernel
from tests.cli.conftest import CHECKOUT
from tests.kernel.conftest import entered
from tests.packets.frames import At
from tests.packets.table import Ends, Entry, Table

pytestmark = pytest.mark.kernel

ENDS, ENTRY = Ends(At("10.9.9.9", 40_000)), Entry(1, ConnectionState.OPEN)


@pytest.fixture
def pins(lbctl, manifests, netns):
    """The pins of a node that balances and has a connection open."""
    lbctl("apply", manifests, "--auto-approve")
    Table(RealKernel(netns, lbctl.run_dir)).put(ENDS, ENTRY)
    return lbctl.run_dir / netns / "bpf"


def edit(manifests):
    path = manifests / "pools.yaml"
    path.write_text(path.read_text().replace("weight: 2", "weight: 7"))


def running(netns):
    with entered(netns):
        return {held.interface: held.program for held in xdp.running()}


def slots_that_packets_see(program, ring=1):
    """The ring in the maps of the program that runs, whatever is pinned."""
    for map_id in program.map_ids:
        with bpf.closing(bpf.open_map(map_id)) as fd:
            opened = maps.describe(fd)
            if opened.name == "rings":
                place = place_of(int(maps.words(opened)[ring]))
            if opened.name == "ring_chunks":
                chunks = opened.id
    with bpf.closing(bpf.open_map(chunks)) as fd:
        number = int.from_bytes(maps.lookup(maps.describe(fd), place.chunk.to_bytes(4, "little")), "little")
    with bpf.closing(bpf.open_map(number)) as inner:
        words = maps.words(maps.describe(inner))[place.first_word :]
        return place.form.read(words.view(np.uint8)[: place.slot_bytes]).tobytes()


EACH_ITS_OWN = ("stages", "other", "watchers", "known_services", "lbctl_layout")


def lasting(program):
    """The maps of a program that the next one takes over as they are."""
    found = set()
    for map_id in program.map_ids:
        with bpf.closing(bpf.open_map(map_id)) as fd:
            opened = maps.describe(fd)
            if opened.name not in EACH_ITS_OWN:
                found.add((opened.name, opened.id))
    return found


def unmount(pins):
    subprocess.run(["umount", pins], check=True)


def test_an_edit_after_all_pins_are_lost_reaches_packets_and_connections_stay(lbctl, manifests, netns, pins):
    before = slots_that_packets_see(running(netns)["front"])
    unmount(pins)
    edit(manifests)
    plan = lbctl("plan", manifests)
    assert "xdp front" in plan
    assert "loaded earlier" in plan
    assert "ring web/round-robin" in plan
    assert "service 20" not in plan, "what packets see is read from the program that they pass"
    lbctl("apply", manifests, "--auto-approve")
    assert lbctl("plan", manifests).startswith("No changes.")
    after = running(netns)
    assert slots_that_packets_see(after["front"]) != before
    assert after["front"].map_ids == after["back"].map_ids
    assert Table(RealKernel(netns, lbctl.run_dir)).entries() == {ENDS: ENTRY}


def test_without_an_edit_the_plan_is_the_swap_and_nothing_else(lbctl, manifests, pins):
    unmount(pins)
    assert "Plan: 1 to add, 2 to change, 0 to remove" in lbctl("plan", manifests)


def test_delete_after_all_pins_are_lost_leaves_nothing(lbctl, netns, pins):
    unmount(pins)
    lbctl("delete", "--auto-approve")
    assert running(netns) == {}
    assert "20.20.20.1" not in subprocess.run(
        ["ip", "-n", netns, "route", "show", "table", "local"], capture_output=True, text=True, check=True
    ).stdout


def test_a_pin_that_is_removed_comes_back_with_all_that_it_stands_for(lbctl, manifests, netns, pins):
    (pins / "program").unlink()
    plan = lbctl("plan", manifests)
    assert "Plan: 1 to add, 2 to change, 0 to remove" in plan
    assert "program data-plane" in plan
    lbctl("apply", manifests, "--auto-approve")
    assert lbctl("plan", manifests).startswith("No changes.")
    assert Table(RealKernel(netns, lbctl.run_dir)).entries() == {ENDS: ENTRY}


def test_a_program_with_other_maps_than_the_pinned_ones_is_swapped_and_the_plan_says_what_breaks(
    lbctl, manifests, netns, pins
):
    """What versions left behind that made new maps when pins were lost."""
    former = running(netns)["front"]
    with bpf.closing(bpf.open_program(former.id)) as held:
        unmount(pins)
        with entered(netns):
            mode = next(xdp.running()).mode
            for interface in ("front", "back"):
                xdp.swap(interface, mode, None, held)
        lbctl("apply", manifests, "--auto-approve")
        with entered(netns), bpf.closing(bpf.open_program(running_id(netns, "front"))) as current:
            xdp.swap("front", mode, held, current)
    plan = lbctl("plan", manifests)
    assert "Plan: 0 to add, 1 to change, 0 to remove" in plan
    assert "open connections may break" in plan
    lbctl("apply", manifests, "--auto-approve")
    after = running(netns)
    assert after["front"].id == after["back"].id != former.id
    assert lbctl("plan", manifests).startswith("No changes.")


def test_the_pins_of_an_agent_with_mounts_of_its_own_are_seen_and_found_again_after_it(lbctl, manifests, netns):
    """As under systemd with PrivateMounts=, ProtectSystem= and the like."""
    agent = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "reconciler.cli.main",
         "--netns", netns, "--run-dir", lbctl.run_dir, "run", manifests],
        cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with agent:
        for line in agent.stdout:
            if "Applied" in line:
                break
        assert not os.path.ismount(lbctl.run_dir / netns / "bpf")
        assert lbctl("plan", manifests).startswith("No changes.")
        assert "20.20.20.1:80/tcp" in lbctl("get", "services")
        agent.terminate()
        agent.stdout.read()
    before = lasting(running(netns)["front"])
    assert "Plan: 1 to add, 2 to change, 0 to remove" in lbctl("plan", manifests)
    lbctl("apply", manifests, "--auto-approve")
    assert lasting(running(netns)["front"]) == before
    assert lbctl("plan", manifests).startswith("No changes.")


def running_id(netns, interface):
    return next(held.id for held in xdp.running() if held.interface == interface)
