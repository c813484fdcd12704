# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.vm [ARGUMENTS OF PYTEST]`: run tests on Debian's kernel. `make test-vm` does so with none."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reconciler.config.load import load
from reconciler.errors import LbctlError
from reconciler.kernel.build import build_all
from reconciler.lab.lab import signals_as_exit
from reconciler.model import Fleet, Role
from reconciler.view import view
from tests.lab.test_dsr_l3_ha import with_names
from tests.packets.test_layout import SETS_OF_FEATURES
from tests.vm.fleet import NAT_CASES, SILENT, manifests
from tests.vm.machine import CHECKOUT, STORE, release, run, say
from tests.vm.test_vlan import MANIFESTS

CACHE = STORE / "cache"
_PACKETS = "tests/packets/test_{}.py"
_YOUNG = (
    "a_transition_ends_when_only_the_current_endpoint_was_used_for_long_enough",
    "a_remembered_flow_on_a_third_endpoint_keeps_the_transition_open",
    "a_remnant_of_an_earlier_transition_catches_no_flow",
    "a_ring_that_was_empty_for_long_gives_an_endpoint_its_slots_without_a_transition",
)
"""Tests of transitions that began hours ago, which is before this machine booted: times are below zero, and wrap. That
is the young clock of the data plane; for processes alone, a time namespace makes one (`.ci/run`)."""
DEFAULT = (
    "tests/vm",
    *(f"{_PACKETS.format('transitions')}::test_{name}" for name in _YOUNG),
    "tests/kernel/test_tunnels.py",
    "tests/kernel/test_drift_properties.py",
    *map(_PACKETS.format, (
        "layout", "forward", "neighbours", "icmp_errors", "dsr_l2", "dsr_l3", "fragments", "reject", "nat_sctp",
    )),
    # These send thousands of packets, which takes an emulated processor minutes.
    f"--deselect={_PACKETS.format('dsr_l3')}::test_every_outer_checksum_is_right",
    f"--deselect={_PACKETS.format('dsr_l3')}::test_sources_are_spread_within_each_endpoint",
    f"--deselect={_PACKETS.format('dsr_l3')}::test_sources_are_spread_over_the_prefix_and_stay_the_same_for_a_flow",
    f"--deselect={_PACKETS.format('reject')}::test_a_segment_in_ipv6_is_reset",
)
"""What is run unless asked for something else: what kernels may see differently."""


def main(arguments: list[str]) -> int:
    if os.geteuid():
        raise LbctlError("the tests that run in the virtual machine need root, here too", hint="sudo make test-vm")
    os.environ["LBCTL_CACHE_DIR"] = str(CACHE)
    _compile()
    say(f"Booting Debian's kernel {release()} under software emulation")
    environment = {
        "LBCTL_TEST_VM": release(),
        "LBCTL_CACHE_DIR": str(CACHE),
        "COLUMNS": str(shutil.get_terminal_size().columns),
    }
    colour = "yes" if sys.stdout.isatty() else "no"
    pytest = [sys.executable, "-m", "pytest", f"--color={colour}", *(arguments or DEFAULT)]
    return run(pytest, environment)


def _compile() -> None:
    """Compile here what the guest will load: there it would take half a minute each."""
    texts = manifests(), manifests((*NAT_CASES.values(), SILENT)), MANIFESTS
    sets = {*SETS_OF_FEATURES, *_features_of_ha()}.union(*map(_features_of, texts))
    say(f"Compiling {len(sets)} sets of features of the data plane")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(build_all, sorted(sets)):
            pass


def _features_of_ha() -> set[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as directory:
        return _features(with_names(Path(directory) / "manifests"))


def _features_of(text: str) -> set[tuple[str, ...]]:
    """Those of the balancers of some manifests."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "fleet.yaml").write_text(text)
        fleet = load(Path(directory)).fleet
        assert fleet
        return _features(fleet)


def _features(fleet: Fleet) -> set[tuple[str, ...]]:
    return {view(fleet, node.name, "").features for node in fleet.nodes if node.role is Role.BALANCER}


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    try:
        with signals_as_exit():
            sys.exit(main(sys.argv[1:]))
    except LbctlError as error:
        sys.exit(str(error))
