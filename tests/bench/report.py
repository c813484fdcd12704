# SPDX-License-Identifier: Apache-2.0
"""The figures of the data plane as a table that people can read, and the bars that they should reach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from tests.bench.cases import FOR_SOME, KEPT, MOVING, NOTHING, OURS
from tests.bench.dataplane import Row
from tests.bench.node import LARGE_RING

MB = 1e6
HEAD = """\
Nanoseconds a packet, medians of {runs} runs of {packets:,}. Net: without the wrapper. Ratio: to the net of the LRU
variant. Katran: its net, by the same method, in runs beside ours on one machine, but not in this run.
""" + f"\n{'case':<46}{'program':<16}{'total':>6}{'net':>7}{'ratio':>9}{'Katran':>9}   verdicts"


FOOT = """\
New flows: the LRU variant stores each, and so did Katran for its column, with its flood guard off. By default Katran
stores none above a certain rate: under this load it took 212, and about 85 in a flood that lasts.
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """What is asked for, and what was measured; None where it was not."""

    what: str
    target: float
    unit: str
    measured: float | None

    @property
    def reached(self) -> bool:
        return self.measured is not None and self.measured <= self.target

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"reached": self.reached}


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The rows of one case. The empty program has a line only where nothing else was measured."""
    shown = [row for row in rows if row.program != NOTHING] or rows
    for number, row in enumerate(shown):
        net = f"{row.net_ns:.0f}" if row.program != NOTHING else ""
        ratio = f"{row.ratio:.2f} x" if row.ratio is not None else ""
        katran = _range(row.case.katran_ns) if row.case.katran_ns and row.program == OURS else ""
        packets = sum(row.verdicts.values())
        verdicts = ", ".join(f"{name} {n / packets:.0%}" for name, n in row.verdicts.items())
        yield (
            f"{row.case.name if not number else '':<46}{row.program:<16}{row.total_ns:>6.0f}{net:>7}{ratio:>9}"
            f"{katran:>9}   {verdicts} of {packets:,}{'   VOID: ' + row.wrong if row.wrong else ''}"
        )


def _range(ends: tuple[int, int]) -> str:
    least, most = ends
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def memory_lines(memory: Mapping[str, int]) -> Iterator[str]:
    bare, ours, lru = (memory[f"{name}_bytes"] / MB for name in (
        "ours_before_the_first_vip", "ours_with_all_features", "lru_with_all_features",
    ))  # fmt: skip
    yield f"memory before the first VIP: {bare:.1f} MB; with all that is measured here, no VIP yet: {ours:.1f} MB"
    yield f"the same with an LRU of {memory['lru_flows']:,} flows: {lru:.1f} MB"
    table, as_many = memory["table_bytes"] / MB, memory["lru_of_as_many_flows_bytes"] / MB
    yield f"memory of {memory['table_flows']:,} flows: {table:.1f} MB; as an LRU {as_many:.1f} MB"
    rows, slots = memory["transition_row_bytes"] / MB, memory["transition_slot_bytes"] / MB
    yield (f"{memory['transition_rings']} rings with {memory['transition_slots']:,} slots, all in transition: "
           f"{slots:.1f} MB, and {rows:.1f} MB for their rows")  # fmt: skip
    if "kept_flows" in memory:
        yield f"of {memory['known_flows']:,} flows, a node made for as many remembers {memory['kept_flows']:,}"


def bars(rows: Iterable[Row], memory: Mapping[str, int]) -> list[Bar]:
    """What the project asks of its data plane."""
    by_name = {(row.case.name, row.program): row for row in rows if not row.wrong}

    def ratio(case: str, program: str) -> float | None:
        row = by_name.get((case, program))
        return row.ratio if row else None

    def net(case: str, program: str = OURS) -> float | None:
        row = by_name.get((case, program))
        return row.net_ns if row else None

    def beyond(case: str) -> float | None:
        one, other = net(case, FOR_SOME), net(case)
        return None if one is None or other is None else one - other

    steady, transition = "in the steady state", "with every slot in transition"
    large = f"known, 1M flows, 512 services, {LARGE_RING:,} slots, IPv4"
    kept = "known, 1M flows, node made for 1M, IPv4"
    table = memory["table_bytes"] / memory["lru_of_as_many_flows_bytes"]
    return [
        Bar(f"known flow, 1M flows, {steady}", 0.3, "x LRU", ratio("known, 1M flows, IPv4", OURS)),
        Bar(f"known flow, 1M flows, {transition}", 0.45, "x LRU", ratio("known, 1M flows, IPv4", MOVING)),
        Bar(f"known flow, 512 services, {steady}", 0.35, "x LRU", ratio("known, 1M flows, 512 services, IPv4", OURS)),
        Bar(f"known flow, 512 services, {transition}", 0.5, "x LRU",
            ratio("known, 1M flows, 512 services, IPv4", MOVING)),
        Bar(f"known flow, 512 services with {LARGE_RING:,} slots", 0.5, "x LRU", ratio(large, OURS)),
        Bar("known flow, 1M flows, in transition, all kept", 135, "ns", net(kept, KEPT)),
        Bar("flows forgotten by a node made for 1M", 0.01, "%",
            100 * (1 - memory["kept_flows"] / memory["known_flows"]) if "kept_flows" in memory else None),
        Bar("rows of slots in transition", 6, "bytes", memory["transition_row_bytes"] / memory["transition_slots"]),
        Bar(f"new flow, {steady}", 0.1, "x LRU", ratio("new (SYN), 16M flows, IPv4", OURS)),
        Bar(f"new flow into a full table, {transition}", 0.3, "x LRU", ratio("new (SYN), 16M flows, IPv4", MOVING)),
        Bar("known flow, 1 flow", 45, "ns", net("known, 1 flow, IPv4")),
        Bar("not for a VIP, beyond the empty program", 12, "ns", net("not for a VIP, IPv4")),
        *(Bar(f"20,000 allowed sources, {family}, beyond a service for everybody", 15, "ns",
              beyond(f"allowed sources, 1M flows, {family}")) for family in ("IPv4", "IPv6")),
        Bar("memory before the first VIP", 20, "MB", memory["ours_before_the_first_vip_bytes"] / MB),
        Bar(f"memory of {memory['table_flows']:,} flows", 0.1, "x LRU", table),
    ]


def bar_line(bar: Bar) -> str:
    measured = "not measured" if bar.measured is None else f"{bar.measured:.2f} {bar.unit}"
    verdict = "reached" if bar.reached else "NOT REACHED"
    return f"{bar.what:<60}at most {bar.target:g} {bar.unit:<8}{measured:>16}  {verdict}"
