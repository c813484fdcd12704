# SPDX-License-Identifier: Apache-2.0
"""The way of checks through VIPs, as far as it needs no node: what lacks is said, and is nobody's failure."""

from ipaddress import ip_address

from reconciler.health.outcome import Verdict
from reconciler.health.prober import Prober
from reconciler.health.target import Target
from reconciler.health.through import Through
from reconciler.health.way import DIRECT
from reconciler.model import CheckType, HealthCheck, Mode

TCP = HealthCheck(type=CheckType.TCP)
SERVER, VIP = ip_address("10.2.0.11"), ip_address("20.20.20.1")


def test_a_check_of_an_own_address_goes_directly(tmp_path):
    assert Through(tmp_path, "record").way(Target(SERVER, 80, TCP)) is DIRECT


def test_without_a_place_to_check_from_nobody_is_checked_and_nobody_fails(tmp_path):
    target = Target(SERVER, 80, TCP, VIP, Mode.DSR_L3)
    way = Through(tmp_path, "record").way(target)
    prober = Prober()
    prober.start(target, way)
    ((found, outcome),) = prober.poll()
    prober.close()
    assert (found, outcome.verdict) == (target, Verdict.NOT_CHECKED)
    assert "healthAddress" in outcome.error
