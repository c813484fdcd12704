# SPDX-License-Identifier: Apache-2.0
"""What the reconciler takes, each as a ratio to a baseline of the same run."""

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


def maglev(names, size):
    """The member of each slot, a prime number of them, as in Eisenbud et al. (NSDI 2016), section 3.4."""
    from hashlib import blake2b

    hashes = [int.from_bytes(blake2b(name.encode()).digest(), "little") for name in names]
    place, skip = [h % size for h in hashes], [(h >> 64) % (size - 1) + 1 for h in hashes]
    owner, left = [-1] * size, size
    while True:
        for member in range(len(names)):
            while owner[place[member]] >= 0:
                place[member] = (place[member] + skip[member]) % size
            owner[place[member]] = member
            left -= 1
            if not left:
                return owner


def rings():
    """Rings of equal members and what the loss of one moves, as a multiple of what it held; against Maglev."""
    import numpy as np

    from reconciler.dataplane.ring import hash_ring

    def moved(build, names, gone):
        left = names[:gone] + names[gone + 1 :]
        before, after = np.array(names)[build(names)], np.array(left)[build(left)]
        return np.sum(before != after) / np.sum(before == names[gone])

    for count, size in ((3, 4_099), (100, 4_099), (100, 65_537), (1_000, 65_537)):
        names = [f"10.0.{i >> 8}.{i & 255}:80" for i in range(count)]
        lost = range(0, count, -(-count // 5))
        runs = {
            "ring": lambda names, size=size: hash_ring(names, [1] * len(names), size),
            "Maglev": lambda names, size=size: maglev(names, size),
        }
        seconds = {name: median_s(lambda run=run, names=names: run(names), 3) for name, run in runs.items()}
        moves = {name: statistics.mean(moved(run, names, gone) for gone in lost) for name, run in runs.items()}
        what = f"{count:,} endpoints in {size:,} slots, 1 lost: x{moves['ring']:.2f}"
        yield row(what, f"Maglev, x{moves['Maglev']:.2f}", seconds["Maglev"], seconds["ring"])


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
        model.Service(p.name, (IPv4Address(f"20.20.{i >> 8}.{i & 255}"),), model.Protocol.TCP, (80,), p.name)
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


def rows():
    """Everything, one after the other."""
    for bench in (startup, rings, no_op_plan):
        yield from bench()


def line(row):
    return f"{row['what']:<48} {row['ms']:>9} ms = {row['ratio']:>8} x {row['baseline']} ({row['baseline_ms']} ms)"

