# SPDX-License-Identifier: Apache-2.0
"""The way of checks through VIPs, as far as it needs no node: what lacks is said, and is nobody's failure."""

from ipaddress import ip_address

from reconciler.health import through
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


def test_rows_are_read_when_the_node_was_changed_or_somebody_doubts_them(tmp_path, monkeypatch):
    now, reads = [0.0], []
    rows = {SERVER: 7}
    monkeypatch.setattr(through, "_numbers", lambda directory: reads.append(now[0]) or dict(rows))
    monkeypatch.setattr(Through, "_find_place", lambda self: "")
    record = tmp_path / "record"
    record.write_text("1")
    found = Through(tmp_path, "record", lambda: now[0])

    def number(address=SERVER):
        now[0] += 1.0
        return found.way(Target(address, 80, TCP, VIP, Mode.DSR_L2)).mark

    assert [number() for _ in range(5)] == [7] * 5
    assert len(reads) == 1
    rows[SERVER] = 8
    record.write_text("22")
    assert number() == 8
    rows[SERVER] = 9
    assert number() == 8  # nobody has said so
    found.doubt()
    assert [number() for _ in range(3)] == [9] * 3
    assert len(reads) == 3
    assert number(ip_address("10.2.0.12")) == 0  # not there yet, so it is looked for
    rows[ip_address("10.2.0.12")] = 10
    assert number(ip_address("10.2.0.12")) == 10
    assert len(reads) == 4
