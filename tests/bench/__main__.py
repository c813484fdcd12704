# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what takes how long, each as a ratio to a baseline of the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from reconciler.errors import LbctlError
from reconciler.lab.lab import signals_as_exit
from tests.bench import asked, control, dataplane, health, host, reconciler, report, rounds, through_vip
from tests.bench.cases import cases

DEFAULT_JSON = Path("build/bench.json")


@contextmanager
def opened_bench(effort: dataplane.Effort) -> Iterator[dataplane.Bench]:
    """All that is measured, on one CPU. Needs root."""
    with ExitStack() as stack:
        with _doing("compiling, and setting up a node with more than a thousand services"):
            bench = dataplane.Bench(stack, effort, f"lbb-{os.getpid()}")
        stack.enter_context(rounds.pinned())
        yield bench


def measure_data_plane(bench: dataplane.Bench, scale: int = 1) -> dict[str, Any]:
    """Measure and print all cases; the figures as they go into the file."""
    rows = []
    print(report.HEAD.format(runs=bench.effort.runs, packets=bench.effort.packets))
    for case in cases(scale):
        with _doing(case.name):
            measured = bench.rows(case)
        rows += measured
        print(*report.lines(measured), sep="\n", flush=True)
    bars = report.bars(rows, bench.memory)
    of_memory = report.memory_lines(bench.memory)
    print(f"\n{report.FOOT}", *of_memory, "", *map(report.bar_line, bars), sep="\n", flush=True)
    return {
        "packets_a_run": bench.effort.packets, "runs": bench.effort.runs, "rows": [row.as_json() for row in rows],
        "memory": bench.memory, "bars": [bar.as_json() for bar in bars],
    }  # fmt: skip


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """Say on a terminal what takes its time, until it is over."""
    if not sys.stdout.isatty():
        yield
        return
    print(f"… {what}", end="", flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", flush=True)


def machine() -> dict[str, Any]:
    model = next((line.split(": ", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    return {"cpu": model, "cpus": os.cpu_count(), "kernel": platform.release()}


def measure_reconciler(_arguments: argparse.Namespace) -> dict[str, Any]:
    """What a start, a ring and a plan in memory take."""
    found = []
    for row in reconciler.rows():
        found.append(row)
        print(reconciler.line(row), flush=True)
    return {"rows": found}


def measure_control_plane(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds over whole fleets, on nodes of their own, and how they grow."""
    print(control.HEAD)
    found: list[control.Figure] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lbb-") as cache:
        for figure in control.figures(arguments.endpoints, f"lbb-{os.getpid()}", Path(cache), arguments.edits):
            print(control.line(figure), flush=True)
            if isinstance(figure, control.Figure):
                found.append(figure)
            else:
                failed.append(figure)
    if growth := list(control.growth(found)):
        print("", "Exponents of growth: 0 not at all, 1 as the fleet, 2 as its square", *growth, sep="\n", flush=True)
    return {"figures": [figure.as_json() for figure in found], "failed": failed}


def measure_data_plane_alone(_arguments: argparse.Namespace) -> dict[str, Any]:
    """The program against one that keeps every flow in an LRU hash."""
    with opened_bench(dataplane.Effort()) as bench:
        measured = measure_data_plane(bench)
    void = [row for row in measured["rows"] if not row["valid"]]
    return measured | {"failed": [f"{row['case']}, {row['program']}: void, {row['wrong']}" for row in void]}


def measure_health(_arguments: argparse.Namespace) -> dict[str, Any]:
    """What checks of endpoints cost."""
    found = []
    for figure in chain(health.figures(), through_vip.figures()):
        found.append(figure)
        print(health.line(figure), flush=True)
    return {"figures": [figure.as_json() for figure in found]}


def measure_asked(_arguments: argparse.Namespace) -> dict[str, Any]:
    """What questions cost the agent."""
    found = []
    for figure in asked.figures():
        found.append(figure)
        print(health.line(figure), flush=True)
    return {"figures": [figure.as_json() for figure in found]}


def measure_host(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Announcing and drift, with ten thousand VIPs."""
    found: list[control.Figure] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lbb-") as cache:
        for figure in host.figures(f"lbb-{os.getpid()}-h", Path(cache)):
            print(control.line(figure), flush=True)
            if isinstance(figure, control.Figure):
                found.append(figure)
            else:
                failed.append(figure)
    return {"figures": [figure.as_json() for figure in found], "failed": failed}


PARTS = {
    "reconciler": ("The reconciler", measure_reconciler),
    "control": ("The control plane", measure_control_plane),
    "health": ("Health checks", measure_health),
    "asked": ("Page, metrics and socket", measure_asked),
    "host": ("The host", measure_host),
    "dataplane": ("The data plane", measure_data_plane_alone),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them if none is named")
    parser.add_argument("--endpoints", type=int, nargs="+", default=control.ENDPOINTS, metavar="N",
                        help="sizes of the control plane's fleets; ten to a service")  # fmt: skip
    parser.add_argument("--edits", type=int, default=control.EDITS, metavar="N", help="of files, with each fleet")
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="FILE", help=f"default: {DEFAULT_JSON}")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")

    found: dict[str, Any] = {"machine": machine()}
    print(f"{found['machine']['cpu']}, {found['machine']['cpus']} CPUs, Linux {found['machine']['kernel']}")
    for part in arguments.parts or PARTS:
        title, measure = PARTS[part]
        print(f"\n{title}\n", flush=True)
        try:
            found[part] = measure(arguments)
        except LbctlError as error:
            found[part] = {"failed": [str(error)]}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=2))
    print(f"\nAll figures: {arguments.json}")
    failed = [text for part in PARTS for text in found.get(part, {}).get("failed", ())]
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    # Namespaces, instances and children end with it, whatever ends it.
    try:
        with signals_as_exit():
            sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
