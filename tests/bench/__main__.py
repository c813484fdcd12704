# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what takes how long, each as a ratio to a baseline of the same run."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "examples" / "configs" / "nat-tcp"
RUNS = 15


def median_s(run, runs=RUNS):
    """Median seconds of a call."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def command(*words):
    return lambda: subprocess.run(words, check=True, capture_output=True)


def row(name, baseline_name, baseline_s, measured_s):
    return {
        "what": name, "ms": round(measured_s * 1000, 2),
        "baseline": baseline_name, "baseline_ms": round(baseline_s * 1000, 2),
        "ratio": round(measured_s / baseline_s, 2),
    }  # fmt: skip


def startup():
    """`lbctl validate` on a small directory, against an interpreter that does nothing."""
    bare = median_s(command(sys.executable, "-c", "pass"))
    validate = median_s(command(sys.executable, "-m", "reconciler.cli.main", "validate", str(EXAMPLE)))
    yield row("lbctl validate nat-tcp", "python -c pass", bare, validate)


def rings():
    """A ring of 4,096 slots and more, against one pass over as many slots and members in NumPy."""
    import numpy as np

    from reconciler.ring import hash_ring

    for count in (3, 100, 300):
        names = [f"10.0.{i >> 8}.{i & 255}:80" for i in range(count)]
        size = hash_ring(names, [1] * count).size
        scores = np.random.default_rng(1).random((size, count))
        pass_s = median_s(lambda scores=scores: scores.argmax(axis=1))
        ring_s = median_s(lambda names=names: hash_ring(names, [1] * len(names)))
        yield row(f"hash ring of {count} endpoints", "one argmax", pass_s, ring_s)


def no_op_plan():
    """The plan of an unchanged node with 1,000 services, against comparing its two dictionaries."""
    from ipaddress import IPv4Address

    from reconciler import model
    from reconciler.apply import apply
    from reconciler.compile import compile_node
    from reconciler.kernel.fake import FakeKernel
    from reconciler.live import read_live
    from reconciler.plan import plan
    from reconciler.view import view

    pools = tuple(
        model.Pool(f"p{i}", tuple(model.Endpoint(IPv4Address((10 << 24) + 4 * i + j), 80) for j in range(4)))
        for i in range(1000)
    )
    services = tuple(
        model.Service(p.name, IPv4Address(f"20.20.{i >> 8}.{i & 255}"), model.Protocol.TCP, (80,), p.name)
        for i, p in enumerate(pools)
    )
    fleet = model.Fleet(services, pools, (model.Node("lb1", (model.Interface("front"),)),))
    desired = compile_node(view(fleet, None, "host"))
    kernel = FakeKernel()
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    live = read_live(kernel, desired.resources)
    compare = median_s(lambda: live.resources == desired.resources)
    assert not plan(desired, live).changes
    yield row("plan, 1,000 services, no change", "dict == dict", compare, median_s(lambda: plan(desired, live)))
    read = median_s(lambda: read_live(kernel, desired.resources), 5)
    yield row("read live state, 1,000 services (fake kernel)", "dict == dict", compare, read)


def main():
    rows = []
    for bench in (startup, rings, no_op_plan):
        for result in bench():
            rows.append(result)
            print(f"{result['what']:<48} {result['ms']:>9} ms = {result['ratio']:>8} x {result['baseline']} ({result['baseline_ms']} ms)", flush=True)  # noqa: E501
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
