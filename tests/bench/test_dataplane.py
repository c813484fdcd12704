# SPDX-License-Identifier: Apache-2.0
"""Every case of the benchmark runs, and all packets get the verdict that it expects. Nothing depends on times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.bench import __main__ as command
from tests.bench import dataplane, report
from tests.bench.cases import BEFORE, FOR_SOME, KEPT, LRU, MOVING, NOTHING, OURS, Case, Program, cases
from tests.bench.node import Group

pytestmark = pytest.mark.kernel

EFFORT = dataplane.Effort(packets=500, runs=2, lru_flows=8192)
SCALE = 1024
"""A thousandth of the flows: 1,024 are known, 16,384 are new to tables that hold half of them."""

ROW_FIELDS = {
    "case", "program", "flows", "services", "total_ns", "net_ns", "ratio_to_lru", "katran_net_ns", "verdicts",
    "expected_verdict", "expected_reason", "valid", "wrong", "runs_ns",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Iterator[dataplane.Bench]:
    with command.opened_bench(EFFORT) as opened:
        yield opened


ALL = {case.name: case for case in cases(SCALE)}


@pytest.mark.parametrize("name", ALL)
def test_all_packets_of_a_case_get_the_expected_verdict(bench: dataplane.Bench, name: str) -> None:
    for row in bench.rows(ALL[name]):
        assert row.wrong == ""
        assert len(row.runs_ns) == EFFORT.runs
        if row.program != NOTHING:
            assert row.verdicts == {ALL[name].action.name: EFFORT.packets * EFFORT.runs}


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [({"action": XdpVerdict.DROP}, "not 1,000 verdicts"), ({"reason": Verdict.REPLY}, "REQUEST 4,000")],
)
def test_other_verdicts_than_expected_make_a_row_void(
    bench: dataplane.Bench, wrong: dict[str, Any], complaint: str
) -> None:
    rows = bench.rows(replace(ALL["known, 1 flow, IPv4"], **wrong))
    assert all(complaint in row.wrong for row in rows if row.program != NOTHING)


def test_flows_that_the_lru_does_not_know_make_a_row_void(bench: dataplane.Bench) -> None:
    known = ALL["known, 1M flows, IPv4"]
    unknown = tuple(replace(program, before=ALL["not for a VIP, IPv4"].stream) for program in known.programs)
    other = replace(unknown[3].stream, frame=_from(unknown[3].stream.frame, "198.51.100.0"))
    rows = bench.rows(replace(known, programs=(*unknown[:3], replace(unknown[3], stream=other), unknown[4])))
    assert all("the LRU missed 1,000 of 1,000 packets" in row.wrong for row in rows)


def test_each_round_begins_with_a_frame_as_it_came_in(bench: dataplane.Bench) -> None:
    """What comes out after many rounds is what one round makes of the last packet."""
    for name in ("known, 1M flows, IPv4", "known, 1M flows, IPv6"):
        ours = ALL[name].programs[0]
        subject = bench.subject(ours)
        subject.take(ours.stream, first=0)
        subject.run(1000)
        after_many = subject.output
        subject.take(ours.stream, first=999)
        subject.run(1)
        assert subject.output == after_many
        inner = Ether(after_many).payload.payload
        assert isinstance(inner, IP | IPv6)
        assert inner.sport == 1024 + 999


def test_in_transition_flows_are_remembered_or_follow_the_previous_endpoint(bench: dataplane.Bench) -> None:
    case = ALL["known, 1M flows, IPv4"]
    bench.rows(case)
    steady, moving, before = (endpoints_of(bench, program) for program in case.programs[:3])
    assert not any(one == other for one, other in zip(moving, steady, strict=True))
    assert before == endpoints_of(bench, as_steady(case))


def endpoints_of(bench: dataplane.Bench, program: Program) -> list[str]:
    """Where the first packets of a stream go."""
    subject, found = bench.subject(program), []
    subject.take(program.stream)
    for _ in range(64):
        subject.run(1)
        found.append(Ether(subject.output)[IP].dst)
    return found


def as_steady(case: Case) -> Program:
    """The clients of those that began before the transition, at a service that has none."""
    ours, _, before, *_ = case.programs
    packet = Ether(before.stream.frame)
    packet[IP].dst = str(Group.STEADY.first_vip)
    return replace(ours, stream=replace(before.stream, frame=bytes(packet)))


def test_flows_and_services_vary_as_the_case_says(bench: dataplane.Bench) -> None:
    many = ALL["known, 1M flows, 512 services, IPv4"].programs[0]
    subject, seen = bench.subject(many), set()
    subject.take(many.stream)
    for _ in range(2 * many.stream.flows):
        subject.run(1)
        inner = Ether(subject.output)[IP].payload
        seen.add((inner.src, inner.sport, inner.dst))
    assert len(seen) == many.stream.flows
    assert {vip for _, _, vip in seen} == {str(Group.STEADY.first_vip + n) for n in range(512)}


def test_the_file_has_every_figure(bench: dataplane.Bench, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json.loads(json.dumps(command.measure_data_plane(bench, SCALE)))
    printed = capsys.readouterr().out
    assert set(figures) == {"packets_a_run", "runs", "rows", "memory", "bars"}
    assert all(set(row) == ROW_FIELDS and row["valid"] for row in figures["rows"])
    measured = {(row["case"], row["program"]) for row in figures["rows"]}
    assert measured == {(case.name, program.name) for case in ALL.values() for program in case.programs}
    assert {OURS, MOVING, BEFORE, KEPT, LRU, NOTHING, FOR_SOME} == {program for _, program in measured}
    assert all(isinstance(number, int) and number > 0 for number in figures["memory"].values())
    for bar in figures["bars"]:
        assert bar["measured"] is not None
        assert bar["reached"] == (bar["measured"] <= bar["target"])
        assert bar["what"] in printed
    assert all(name in printed for name in ALL)
    assert "VOID" not in printed


def test_a_bar_that_was_not_measured_is_not_reached() -> None:
    bar = report.Bar("known flow", 0.3, "x LRU", None)
    assert not bar.reached
    assert "not measured" in report.bar_line(bar)
    assert "NOT REACHED" in report.bar_line(bar)


def _from(content: bytes, source: str) -> bytes:
    packet = Ether(content)
    packet[IP].src = source
    del packet[IP].chksum
    return bytes(packet)
