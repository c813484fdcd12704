# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what takes how long, each as a ratio to a baseline of the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from reconciler.errors import LbctlError
from tests.bench import dataplane, reconciler, report, rounds
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
    print("", *report.memory_lines(bench.memory), "", *map(report.bar_line, bars), sep="\n", flush=True)
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="FILE", help=f"default: {DEFAULT_JSON}")
    arguments = parser.parse_args()

    of_machine = machine()
    print(f"{of_machine['cpu']}, {of_machine['cpus']} CPUs, Linux {of_machine['kernel']}\n")
    print("The reconciler\n")
    of_reconciler = []
    for row in reconciler.rows():
        of_reconciler.append(row)
        print(reconciler.line(row), flush=True)
    print("\nThe data plane\n")
    try:
        with opened_bench(dataplane.Effort()) as bench:
            of_data_plane = measure_data_plane(bench)
    except LbctlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(
        {"machine": of_machine, "reconciler": of_reconciler, "data_plane": of_data_plane}, indent=2))  # fmt: skip
    print(f"\nAll figures: {arguments.json}")
    if void := [row for row in of_data_plane["rows"] if not row["valid"]]:
        print(f"error: {len(void)} figures are void: packets got other verdicts than expected", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
