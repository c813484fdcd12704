# SPDX-License-Identifier: Apache-2.0
"""The data plane against one that keeps every flow in an LRU hash: nanoseconds, verdicts, memory.

The LRU variant is our own source with Katran's way of finding an endpoint, so that nothing else differs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.dataplane.layout import Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.bench import node, rounds, variants
from tests.bench.cases import LRU, NOTHING, Case, Program
from tests.packets.balancer import inside


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for a figure: packets in a run, runs, and how many flows the LRU has room for.

    Katran keeps eight million flows by default, which is this many for each core of a machine with two.
    """

    packets: int = 1_000_000
    runs: int = 11
    lru_flows: int = 4_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """What one program took in one case: medians of nanoseconds a packet. `net_ns` is without the wrapper.

    `ratio` is the median of those to the LRU variant's net, run by run. `wrong` says why the figures are void.
    """

    case: Case
    program: str
    runs_ns: tuple[int, ...]
    total_ns: float
    net_ns: float
    ratio: float | None
    verdicts: Mapping[str, int]
    wrong: str

    def as_json(self) -> dict[str, Any]:
        case = self.case
        return {
            "case": case.name, "program": self.program, "flows": case.stream.flows,
            "services": case.stream.services,
            "total_ns": self.total_ns, "net_ns": self.net_ns, "ratio_to_lru": self.ratio,
            "katran_net_ns": case.katran_ns, "verdicts": self.verdicts, "expected_verdict": case.action.name,
            "expected_reason": case.reason and case.reason.name, "valid": not self.wrong, "wrong": self.wrong,
            "runs_ns": self.runs_ns,
        }  # fmt: skip


class Bench:
    """A node of its own with all that is measured. Everything is gone when `stack` closes."""

    def __init__(self, stack: ExitStack, effort: Effort, name: str) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(variants.private_cache(directory / "cache"))
        stack.enter_context(node.namespace(name))
        self.effort = effort
        self._stack = stack
        self._node = node.Node(name, directory / "run")
        stack.callback(self._node.close)
        shared = self._node.open_maps()
        for descriptor in shared.values():
            stack.callback(os.close, descriptor)
        self._programs = variants.Programs(stack, shared, effort.lru_flows)
        self._subjects: dict[str, rounds.Subject] = {}

        self.memory = {"ours_before_the_first_vip_bytes": self._node.bare_bytes, **self._programs.memory(shared)}
        self._node.tunnels()
        for group in node.Group:
            self._node.serve(group)
        self.memory |= self._node.transitions(node.Group.MOVING)
        stack.enter_context(inside(name))

    def rows(self, case: Case) -> list[Row]:
        """Measure a case, one row a program, those first that have something to show."""
        if self._subjects.pop(LRU, None):
            self._programs.empty_lru()
        subjects = [self.subject(program) for program in case.programs]
        for program, subject in zip(case.programs, subjects, strict=True):
            self._prepare(case, program, subject)
        packets = self.effort.packets * self.effort.runs
        before, misses = self._node.reasons(), self._programs.misses()
        times = rounds.measure(subjects, self.effort.packets, self.effort.runs)
        for program in case.programs:
            if program.flows:
                self.memory |= {"known_flows": program.stream.flows, "kept_flows": self._programs.kept(program.flows)}
        reasons, misses = _increase(before, self._node.reasons()), self._programs.misses() - misses

        wrong = []
        decided = packets * sum(program.name != NOTHING for program in case.programs)
        if reasons != ({case.reason: decided} if case.reason is not None else {}):
            counts = ", ".join(f"{verdict.name} {n:,}" for verdict, n in reasons.items())
            wrong.append(f"of {decided:,} packets: {counts or 'no verdict'}")
        has_lru = any(program.name == LRU for program in case.programs)
        # It does not always evict the oldest, so that a few flows may be known when they come a second time.
        if has_lru and not (0.98 * packets <= misses <= packets if case.fills else misses == 0):
            wrong.append(f"the LRU missed {misses:,} of {packets:,} packets")
        return _rows(case, times, [subject.actions() for subject in subjects], packets, wrong)

    def _prepare(self, case: Case, program: Program, subject: rounds.Subject) -> None:
        """Make flows known, or fill the tables; then begin the stream."""
        packets = 2 * self.effort.lru_flows if case.fills else program.stream.flows
        subject.take(program.before or program.stream)
        subject.run(packets)
        subject.take(program.stream, first=packets)

    def subject(self, program: Program) -> rounds.Subject:
        """The loaded program of this name; one that is loaded already goes on from where it is."""
        if program.name not in self._subjects:
            loaded = self._programs.loaded(program.variant, program.flows)
            self._subjects[program.name] = rounds.Subject(*loaded, self._node.ifindex)
        return self._subjects[program.name]


def _rows(
    case: Case, times: list[list[int]], actions: list[list[int]], packets: int, wrong: list[str]
) -> list[Row]:  # fmt: skip
    runs = dict(zip((program.name for program in case.programs), times, strict=True))
    wrapper_ns = statistics.median(runs[NOTHING])
    rows = []
    for (name, of_program), of_actions in zip(runs.items(), actions, strict=True):
        total_ns = statistics.median(of_program)
        verdicts = {XdpVerdict(number).name: n for number, n in enumerate(of_actions) if n}
        own = [] if verdicts == {case.action.name: packets} or name == NOTHING else [f"not {packets:,} verdicts"]
        ratio = None
        if LRU in runs and name not in (LRU, NOTHING):
            # Of runs that came one after the other, so that what disturbed one disturbed the other.
            pairs = zip(of_program, runs[LRU], strict=True)
            ratio = round(statistics.median((one - wrapper_ns) / (lru - wrapper_ns) for one, lru in pairs), 3)
        rows.append(Row(
            case, name, tuple(of_program), total_ns, total_ns - wrapper_ns, ratio, verdicts, "; ".join(own + wrong),
        ))  # fmt: skip
    return rows


def _increase(before: Mapping[Verdict, int], after: Mapping[Verdict, int]) -> dict[Verdict, int]:
    grown = {verdict: n - before.get(verdict, 0) for verdict, n in after.items()}
    return {verdict: n for verdict, n in grown.items() if n}
