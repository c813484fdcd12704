# SPDX-License-Identifier: Apache-2.0
"""Neighbours that the kernel keeps for us, beside those of other people."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from reconciler.errors import KernelError
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.objects import Link, Neighbour
from reconciler.kernel.real import RealKernel

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("device")]

FOUR, SIX = Neighbour("10.4.0.11", "side"), Neighbour("2001:db8:4::11", "side")
STATIC = Neighbour("10.4.0.66", "side")


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


@pytest.fixture
def device(inside: str) -> None:
    ip("link", "add", "side", "type", "veth", "peer", "name", "far")
    for name in ("side", "far"):
        ip("link", "set", name, "up")
    ip("addr", "add", "10.4.0.1/24", "dev", "side")
    ip("addr", "add", "2001:db8:4::1/64", "dev", "side", "nodad")


def entries() -> dict[str, dict[str, object]]:
    return {entry["dst"]: entry for entry in json.loads(ip("-j", "neigh", "show", "dev", "side"))}


def test_entries_are_managed_and_ours(kernel: RealKernel) -> None:
    assert kernel.keeps_neighbours()
    assert kernel.keep_neighbours([FOUR, SIX, FOUR]) == [None] * 3
    assert kernel.neighbours() == ([FOUR, SIX], [])
    text = ip("neigh", "show", "dev", "side")
    for neighbour in (FOUR, SIX):
        (line,) = [line for line in text.splitlines() if line.startswith(neighbour.address)]
        assert " managed " in line
        assert " extern_learn " in line
        assert f"proto {protocol_of('lbk')}" in line
    assert kernel.forget_neighbours([FOUR, SIX, FOUR]) == [None] * 3
    assert kernel.forget_neighbours([FOUR]) == [None]
    assert kernel.neighbours() == ([], [])
    assert FOUR.address not in entries()


def test_an_entry_that_the_kernel_learnt_becomes_ours(kernel: RealKernel) -> None:
    ip("neigh", "add", FOUR.address, "lladdr", "02:04:00:00:00:11", "dev", "side", "nud", "stale")
    assert kernel.neighbours() == ([], [])
    assert kernel.keep_neighbours([FOUR]) == [None]
    assert kernel.neighbours() == ([FOUR], [])


@pytest.mark.parametrize("how", ["permanent", "managed"])
def test_what_others_take_care_of_stays_theirs(kernel: RealKernel, how: str) -> None:
    if how == "permanent":
        ip("neigh", "add", STATIC.address, "lladdr", "02:04:00:00:00:66", "dev", "side", "nud", "permanent")
    else:
        ip("neigh", "add", STATIC.address, "dev", "side", "managed")
    before = entries()[STATIC.address]
    assert kernel.neighbours() == ([], [STATIC])
    assert kernel.keep_neighbours([STATIC, FOUR]) == [None, None]
    assert kernel.forget_neighbours([STATIC]) == [None]
    assert kernel.neighbours() == ([FOUR], [STATIC])
    after = entries()[STATIC.address]
    assert (after.get("lladdr"), "protocol" in after) == (before.get("lladdr"), "protocol" in before)


def test_more_of_them_than_the_kernel_likes_are_kept_though_nobody_answers(kernel: RealKernel) -> None:
    kept = [Neighbour(f"10.4.{i // 100}.{i % 100 + 100}", "side") for i in range(200)]
    (threshold,) = {int(found) for found in re.findall(r"thresh1 (\d+)", ip("ntable", "show", "name", "arp_cache"))}
    assert len(kept) > threshold
    for setting, value in (("mcast_solicit", 1), ("retrans_time_ms", 100)):
        (Path("/proc/sys/net/ipv4/neigh/side") / setting).write_text(str(value))
    assert kernel.keep_neighbours(kept) == [None] * len(kept)
    # The kernel looks for what it can forget every 15 to 45 s: it has looked when this one is gone.
    ip("neigh", "add", STATIC.address, "lladdr", "02:04:00:00:00:66", "dev", "side", "nud", "failed")
    deadline = time.monotonic() + 100
    while STATIC.address in entries():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert sorted(kernel.neighbours()[0]) == sorted(kept)


def test_an_entry_of_ours_that_would_not_last_is_told_apart(kernel: RealKernel) -> None:
    kernel.keep_neighbours([FOUR])
    ip("neigh", "replace", FOUR.address, "dev", "side", "managed")
    assert [(found, found.is_lasting) for found in kernel.neighbours()[0]] == [(FOUR, False)]
    assert kernel.keep_neighbours([FOUR]) == [None]
    assert [(found, found.is_lasting) for found in kernel.neighbours()[0]] == [(FOUR, True)]
    ip("neigh", "replace", FOUR.address, "dev", "side", "managed")
    assert kernel.forget_neighbours([FOUR]) == [None]
    assert kernel.neighbours() == ([], [])


def test_one_that_fails_does_not_stop_the_others(kernel: RealKernel) -> None:
    outcomes = kernel.keep_neighbours([Neighbour("10.4.0.12", "nowhere"), FOUR])
    assert isinstance(outcomes[0], KernelError)
    assert "no interface nowhere" in str(outcomes[0])
    assert outcomes[1] is None


def test_asking_whether_the_kernel_can_keep_neighbours_writes_nothing(kernel: RealKernel) -> None:
    before = ip("neigh", "show")
    assert kernel.keeps_neighbours()
    assert ip("neigh", "show") == before


def test_links_have_names_and_indexes(kernel: RealKernel) -> None:
    found = {link.name: link for link in kernel.links()}
    assert found["lo"] == Link("lo", 1)
    assert found.keys() == {"lo", "side", "far"}
    assert {link.index for link in found.values()} == {
        int(link["ifindex"]) for link in json.loads(ip("-j", "link", "show"))
    }
