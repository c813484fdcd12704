# SPDX-License-Identifier: Apache-2.0
"""The control plane's bars: rounds over fleets of growing size, measured from outside, each beside its baseline."""

from __future__ import annotations

import gc
import itertools
import math
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reconciler.agent import wake
from reconciler.agent.checks import LOOK_S
from reconciler.config.load import Loader
from reconciler.kernel.port import Kernel
from reconciler.kernel.real import RealKernel
from reconciler.live import read_live
from reconciler.reconcile import desired_of, survey
from reconciler.resource import Desired, Key, Resource
from reconciler.wish.drains import FILE as DRAINS
from reconciler.wish.drains import Drain
from reconciler.wish.drains import write as write_drains
from tests import big_fleet
from tests.bench import written
from tests.bench.machinery import Agent, NotMeasuredError, Site, command, site
from tests.packets.balancer import inside

ENDPOINTS = (1_000, 10_000, 100_000)

EDITS = 200
EDITS_A_FIGURE = 5
"""So many times more edits are made where only rows are counted."""
EDITS_LIMIT_S = 150.0
"""Edits of an agent's files end after so long, even if there were fewer."""
AT_ONCE = 1_000
_LOOK_S = 0.001
_CHANGED = r"Applied.*: .* ([\d,]+) changed"
_SEED = 9


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured with a fleet of so many endpoints. `bar` is what the project asks of the largest fleet."""

    what: str
    endpoints: int
    value: float
    unit: str
    baseline: str = ""
    ratio: float | None = None
    bar: str = ""
    is_reached: bool | None = None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def figures(endpoints: Sequence[int], name: str, cache: Path, edits: int = EDITS) -> Iterator[Figure | str]:
    """All figures, one fleet after the other; a text in place of those that could not be measured. What is compiled
    is kept in `cache`, and compiled before anything is measured. Needs root."""
    with site(f"{name}-0", 1, cache) as place:
        place.lbctl("apply", place.manifests, "--auto-approve")
    rows, differing = written.count(EDITS_A_FIGURE * edits)
    yield Figure(f"rows written for {EDITS_A_FIGURE * edits:,} edits", 10 * written.SERVICES, rows, "rows",
                 f"{differing:,} rows differ", rows / differing, "= 1 x", rows == differing)  # fmt: skip
    for size in endpoints:
        with site(f"{name}-{size}", size // big_fleet.ENDPOINTS_A_POOL, cache) as place:
            for part in (_files, _node, _agent, _end):
                try:
                    for figure in part(place, size, edits):
                        yield figure if size >= ENDPOINTS[-1] else replace(figure, is_reached=None)
                except NotMeasuredError as error:
                    yield f"not measured with {size:,} endpoints: {error}"


def _at_most(limit: float, what: str) -> Callable[[float], dict[str, object]]:
    return lambda measured: {"bar": f"≤ {limit:g} {what}".rstrip(), "is_reached": measured <= limit}


# --- files ---------------------------------------------------------------------------------------------
def _files(place: Site, endpoints: int, edits: int) -> Iterator[Figure]:
    """Reading and checking files: no node, no root."""
    composed, validated = [], []
    for _ in range(3):
        said = command(sys.executable, "-c", _COMPOSE, place.manifests, environment=place.environment).said
        composed.append(float(said))
        validated.append(place.lbctl("validate", place.manifests))
    compose_s = statistics.median(composed)
    cold_s = statistics.median(run.seconds for run in validated)
    yield Figure(
        "validate, cold", endpoints, cold_s, "s", f"PyYAML's C compose {compose_s:.2f} s", cold_s / compose_s,
        **_at_most(3, "x")(cold_s / compose_s),
    )  # fmt: skip
    loader = Loader(place.manifests)
    load_s = _timed(loader.load)
    rng, times = random.Random(_SEED), []
    for _ in range(20):
        number = rng.randrange(place.services)
        big_fleet.edit(place.manifests, place.services, {(number, 0): rng.randrange(5, 99)})
        times.append(_timed(loader.load))
    edit_s = statistics.median(times)
    yield Figure(
        "load, one file edited", endpoints, edit_s, "s", f"load, cold, {load_s:.2f} s", edit_s / load_s,
        **_at_most(0.02, "x")(edit_s / load_s),
    )  # fmt: skip
    big_fleet.write(place.manifests, place.services)


_COMPOSE = """
import gc, sys, time
from pathlib import Path
import yaml
texts = [path.read_text() for path in sorted(Path(sys.argv[1]).glob("*.yaml"))]
gc.disable()
started = time.perf_counter()
for text in texts:
    for document in yaml.compose_all(text, yaml.CSafeLoader):
        pass
print(time.perf_counter() - started)
"""


def _timed(run: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


# --- the node --------------------------------------------------------------------------------------------
def _node(place: Site, endpoints: int, edits: int) -> Iterator[Figure]:
    """First apply, plan with nothing to do, and the reading alone."""
    checked = place.lbctl("validate", place.manifests)
    validate_s = checked.seconds
    first = place.lbctl("apply", place.manifests, "--auto-approve")
    yield Figure("first apply, program cached", endpoints, first.seconds, "s", f"validate {validate_s:.2f} s",
                 first.seconds / validate_s, **_at_most(15, "s")(first.seconds))  # fmt: skip
    writing_s = _said_ms(first.said) / 1000
    yield Figure("  of that writing", endpoints, writing_s, "s", "first apply", writing_s / first.seconds,
                 **_at_most(4, "s")(writing_s))  # fmt: skip
    yield Figure("  most memory of apply", endpoints, first.peak_mb, "MB", f"validate {checked.peak_mb:.0f} MB",
                 first.peak_mb / checked.peak_mb)  # fmt: skip
    pairs = [(place.lbctl("plan", place.manifests), place.lbctl("validate", place.manifests)) for _ in range(3)]
    assert all("No changes" in run.said for run, _ in pairs), pairs[0][0].said[-500:]
    plan_s = statistics.median(run.seconds for run, _ in pairs)
    ratio = statistics.median(run.seconds / of_files.seconds for run, of_files in pairs)
    validate_s = statistics.median(of_files.seconds for _, of_files in pairs)
    yield Figure("plan, nothing to do", endpoints, plan_s, "s", f"validate {validate_s:.2f} s", ratio,
                 **_at_most(1.3, "x")(ratio))  # fmt: skip
    plan_mb = max(run.peak_mb for run, _ in pairs)
    yield Figure("  most memory of plan", endpoints, plan_mb, "MB", f"validate {checked.peak_mb:.0f} MB",
                 plan_mb / checked.peak_mb)  # fmt: skip
    with inside(place.name):
        kernel, wanted = _wanted(place)
        reading_s = min(_timed(lambda: read_live(kernel, wanted)) for _ in range(3))
        slices = list(_slices(kernel, wanted))
    yield Figure("  the reading alone", endpoints, reading_s, "s", "plan", reading_s / plan_s,
                 **_at_most(1, "s")(reading_s))  # fmt: skip
    yield Figure("the agent's full look: longest slice", endpoints, max(slices), "s", f"all {sum(slices):.2f} s",
                 max(slices) / sum(slices), **_at_most(0.05, "s")(max(slices)))  # fmt: skip


def _slices(kernel: Kernel, wanted: Mapping[Key, Resource]) -> Iterator[float]:
    """Seconds of each slice of a survey of the whole node: an edit waits for one of them at most."""
    looking = survey(kernel, Desired(wanted))
    gc.collect()
    while True:
        started = time.perf_counter()
        if next(looking, None) is None:
            return
        yield time.perf_counter() - started


def _said_ms(said: str) -> float:
    """The milliseconds of `Applied: … in 1,234 ms.`"""
    found = re.search(r"Applied: .* in ([\d,]+) ms", said)
    if not found:
        raise NotMeasuredError(f"apply did not say how long it took: {said[-300:]}")
    return float(found[1].replace(",", ""))


def _wanted(place: Site) -> tuple[Kernel, dict[Key, Resource]]:
    """The node's kernel and what the manifests ask of it. Within the namespace."""
    fleet = Loader(place.manifests).load().fleet
    assert fleet
    kernel = RealKernel(place.name, place.run_dir, netns=place.name)
    return kernel, dict(desired_of(fleet, big_fleet.NODE, kernel).resources)


# --- the agent --------------------------------------------------------------------------------------------
def _agent(place: Site, endpoints: int, edits: int) -> Iterator[Figure]:
    """Restart with everything in place, edits of one weight, many at once, and memory."""
    started = time.monotonic()
    with inside(place.name), place.agent() as agent:
        ready, _ = agent.line("No changes|Applied")
        writes = sum("Applied" in said for _, said in agent.lines)
        yield Figure("restart of the agent, nothing to do", endpoints, ready - started, "s",
                     f"{writes} rounds that wrote", **_at_most(10, "s")(ready - started + 1e9 * writes))  # fmt: skip
        kernel, wanted = _wanted(place)
        rings = {member: key for key, ring in wanted.items() if key.kind == "ring" for member in _members(ring)}
        weights: dict[tuple[int, int], int] = {}
        rng, times, memory = random.Random(_SEED), [], []
        ends = time.monotonic() + EDITS_LIMIT_S
        while len(times) < edits and time.monotonic() < ends:
            number, member = rng.randrange(place.services), rng.randrange(big_fleet.ENDPOINTS_A_POOL)
            weights[number, member] = _other(rng, weights.get((number, member), 0))
            key = rings[str(big_fleet.endpoint(number, member))]
            times.append(_edit(place, agent, kernel, wanted[key], weights, number))
            memory.append(agent.memory_mb())
        yield from _of_edits(endpoints, times, memory)
        if place.services >= AT_ONCE:
            yield from _at_once(place, agent, endpoints, weights, rng)


def _members(ring: Resource) -> tuple[str, ...]:
    members: tuple[str, ...] = ring.members  # type: ignore[attr-defined]
    return members


def _other(rng: random.Random, weight: int) -> int:
    return rng.choice([other for other in range(5, 60) if other != weight])


def _edit(
    place: Site, agent: Agent, kernel: Kernel, ring: Resource, weights: dict[tuple[int, int], int], number: int
) -> tuple[float, float]:
    """Edit a file: seconds from its renaming until the ring in the map is another, and until the agent said so."""
    file = big_fleet.file_of(number)
    before = read_live(kernel, only=[ring.key]).resources[ring.key]
    first = len(agent.lines)
    in_file = {at: weight for at, weight in weights.items() if big_fleet.file_of(at[0]) == file}
    big_fleet.edit(place.manifests, place.services, in_file)
    renamed = looked = time.monotonic()
    while read_live(kernel, only=[ring.key]).resources.get(ring.key) in (before, None):
        if time.monotonic() - renamed > EDITS_LIMIT_S:
            raise NotMeasuredError(f"{ring.key} was not written in {EDITS_LIMIT_S:.0f} s")
        time.sleep(max(_LOOK_S, time.monotonic() - looked))  # leave the agent the other half of this CPU
        looked = time.monotonic()
    seen_s, said_s = time.monotonic() - renamed, agent.line("Applied", first)[0] - renamed
    # Whoever looks at a busy machine may see a ring later than the agent, which has read it back by then.
    return min(seen_s, said_s), said_s


def _of_edits(endpoints: int, times: Sequence[tuple[float, float]], memory: Sequence[float]) -> Iterator[Figure]:
    settle_s = wake.SETTLED_QUIET_S  # each edit is one file, renamed into its place
    in_map = sorted(seconds for seconds, _ in times)
    p50, p99 = statistics.median(in_map), in_map[math.ceil(0.99 * len(in_map)) - 1]
    many = f"{len(times)} edits"
    yield Figure("edit: file renamed → ring in the map, p50", endpoints, p50, "s", many, **_at_most(0.3, "s")(p50))
    yield Figure("edit: file renamed → ring in the map, p99", endpoints, p99, "s", many)
    for name, seconds, limit in (("p50", p50, 0.06), ("p99", p99, 0.15)):
        left = seconds - settle_s
        yield Figure(f"  from settled ({settle_s * 1000:.0f} ms), {name}", endpoints, left, "s", many,
                     **_at_most(limit, "s")(left))  # fmt: skip
    yield Figure("  until the agent says so, p50", endpoints, statistics.median(said for _, said in times), "s", many)
    yield Figure("agent's memory after these edits", endpoints, memory[-1], "MB", f"{memory[0]:.0f} MB before",
                 memory[-1] / memory[0], **_at_most(400, "MB")(memory[-1]))  # fmt: skip
    later = memory[len(memory) // 2 :]
    slope_kb = 1000 * statistics.linear_regression(range(len(later)), later).slope if len(later) > 2 else math.nan
    yield Figure("  its slope over the second half", endpoints, slope_kb, "kB an edit")


def _at_once(
    place: Site, agent: Agent, endpoints: int, weights: dict[tuple[int, int], int], rng: random.Random
) -> Iterator[Figure]:
    """One endpoint each of many pools, whose files are renamed into place one right after the other."""
    weights |= {(number, 1): _other(rng, weights.get((number, 1), 0)) for number in range(AT_ONCE)}
    first, changed = len(agent.lines), 0
    big_fleet.edit(place.manifests, place.services, {at: w for at, w in weights.items() if at[0] < AT_ONCE})
    renamed = done = time.monotonic()
    while changed < AT_ONCE:
        done, text = agent.line(_CHANGED, first)
        first = agent.lines.index((done, text), first) + 1
        found = re.search(_CHANGED, text)
        assert found
        changed += int(found[1].replace(",", ""))
    seconds = done - renamed - wake.QUIET_S  # many files at once
    files = AT_ONCE // big_fleet.SERVICES_A_FILE
    yield Figure(f"{AT_ONCE:,} pools edited at once, from settled", endpoints, seconds, "s", f"files read: {files}")
    drains = [Drain(big_fleet.endpoint(n, 2), pool=big_fleet.name(n), began_s=time.time()) for n in range(AT_ONCE)]
    drained = [_drained(place, agent, some) for some in (drains, [])]
    slowest = max(drained)
    yield Figure(f"{AT_ONCE:,} endpoints change state → all rings", endpoints, slowest, "s",
                 f"as many edited {seconds:.2f} s", slowest / seconds, **_at_most(1, "s")(slowest))  # fmt: skip


def _drained(place: Site, agent: Agent, drains: Sequence[Drain]) -> float:
    """Have endpoints drained, as checks would take them out: seconds until all rings are written and read back."""
    first = len(agent.lines)
    write_drains(place.run_dir / place.name / DRAINS, drains)
    written = time.monotonic()
    return agent.line(_CHANGED, first)[0] - written - LOOK_S / 2


# --- the end ------------------------------------------------------------------------------------------------
def _end(place: Site, endpoints: int, edits: int) -> Iterator[Figure]:
    gone = place.lbctl("delete", "--auto-approve")
    validate_s = place.lbctl("validate", place.manifests).seconds
    yield Figure("delete", endpoints, gone.seconds, "s", f"validate {validate_s:.2f} s", gone.seconds / validate_s,
                 **_at_most(5, "s")(gone.seconds))  # fmt: skip


# --- for people -----------------------------------------------------------------------------------------------
HEAD = f"{'endpoints':>9}  {'what':<46}{'measured':>18}{'ratio':>8}  {'baseline':<30}bar"


def line(figure: Figure | str) -> str:
    if isinstance(figure, str):
        return figure
    ratio = f"{figure.ratio:.3g} x" if figure.ratio is not None else ""
    verdict = {None: "", True: "reached", False: "NOT REACHED"}[figure.is_reached]
    return (
        f"{figure.endpoints:>9,}  {figure.what:<46}{figure.value:>11,.3f} {figure.unit:<6}{ratio:>8}  "
        f"{figure.baseline:<30}{figure.bar:<9} {verdict}"
    ).rstrip()


def growth(found: Sequence[Figure]) -> Iterator[str]:
    """The exponents by which time and memory grow from one size to the next: 0 not at all, 1 as the fleet, 2 as its
    square."""
    by_name: dict[str, list[Figure]] = {}
    for figure in found:
        if figure.unit in ("s", "MB") and figure.value > 0:
            by_name.setdefault(figure.what, []).append(figure)
    for what, of_sizes in by_name.items():
        steps = [
            f"{math.log(after.value / before.value) / math.log(after.endpoints / before.endpoints):.2f}"
            f" ({before.endpoints:,} → {after.endpoints:,})"
            for before, after in itertools.pairwise(of_sizes)
        ]
        if steps:
            yield f"{what.strip():<46}{', '.join(steps)}"
