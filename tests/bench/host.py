# SPDX-License-Identifier: Apache-2.0
"""The host around a balancer with very many VIPs: how soon one is withdrawn, how soon drift is mended, and what the
kernel's notices cost. A real agent on a node of its own, measured from outside."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from reconciler.agent.checks import LOOK_S
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.notices import Listener, Notice
from reconciler.wish import drains
from reconciler.wish.drains import Drain
from tests import big_fleet
from tests.bench.control import Figure
from tests.bench.machinery import Agent, NotMeasuredError, Site, site
from tests.packets.balancer import inside

VIPS = 10_000
REPEATS = 10
EVENTS_A_SECOND = 1_000
WATCHED_S = 5.0
_LIMIT_S = 300.0
_VIPS_A_FILE = 100
_TABLE, _LOCAL = 251, 255
_TICKS = os.sysconf("SC_CLK_TCK")
_PACE_S = 0.1
_SINGLE_VIP, _SINGLE_ENDPOINT = IPv4Address("20.200.0.1"), IPv4Address("10.127.0.1")


def figures(name: str, cache: Path, vips: int = VIPS, watched_s: float = WATCHED_S) -> Iterator[Figure | str]:
    """All figures; a text in place of those that could not be measured. Needs root."""
    with site(name, 0, cache) as place:
        _announced(place.manifests, vips - REPEATS)
        try:
            place.lbctl("apply", place.manifests, "--auto-approve")
            with inside(place.name), place.agent("--resync", "1h") as agent:
                agent.line("No changes|Applied")
                yield from _figures(place, agent, vips, watched_s)
        except NotMeasuredError as error:
            yield f"not measured with {vips:,} VIPs: {error}"


def _figures(place: Site, agent: Agent, vips: int, watched_s: float) -> Iterator[Figure]:
    directory = place.run_dir / place.name
    listener = Listener(protocol_of(place.name))
    try:
        cpu_s = _cpu_s(agent)
        times = [_withdrawal_s(listener, directory, number) for number in range(REPEATS)]
        spent_s = (_cpu_s(agent) - cpu_s) / REPEATS
        median_s = statistics.median(times)
        yield _figure(f"one of {vips:,} VIPs: drain written → withdrawn", vips, median_s, "s",
                      f"files looked at every {LOOK_S:g} s", 0.1)  # fmt: skip
        yield Figure("  the agent's CPU for it", vips, spent_s, "s", f"{REPEATS} VIPs")
        median_s = statistics.median(_mending_s(listener, place.name, number) for number in range(REPEATS))
        yield _figure("VIP removed by hand → there again", vips, median_s, "s", f"{REPEATS} times", 0.1)
    finally:
        listener.close()
    idle, _ = _load(agent, watched_s, lambda: None)
    with _Neighbours(place.name) as neighbours:
        busy, events = _load(agent, watched_s, neighbours.change)
    rate = f"{events / watched_s:,.0f}"
    yield _figure(f"{rate} neighbours' events a second: share of a core", vips, busy, "", f"idle {idle:.3f}", 0.05)


def _figure(what: str, vips: int, value: float, unit: str, baseline: str, most: float) -> Figure:
    return Figure(what, vips, value, unit, baseline, None, f"≤ {most:g} {unit}".rstrip(), value <= most)


def _announced(manifests: Path, vips: int) -> None:
    """Have so many VIPs announced, which share a pool. Each of some more has a pool of one endpoint, without which it
    may not be; not one for all, since whatever comes and goes is damped."""
    for first in range(0, vips, _VIPS_A_FILE):
        (manifests / f"vips-{first:06}.yaml").write_text("---\n".join(
            f"apiVersion: lbctl/v1\nkind: Service\nmetadata: {{name: vip-{number}}}\n"
            f"spec: {{vip: {big_fleet.vip(number)}, ports: [80], mode: dsr-l3, pool: all}}\n"
            for number in range(first, min(first + _VIPS_A_FILE, vips))
        ))  # fmt: skip
    (manifests / "all.yaml").write_text(
        "apiVersion: lbctl/v1\nkind: Pool\nmetadata: {name: all}\n"
        f"spec: {{endpoints: [{{address: {big_fleet.endpoint(0, 0)}}}, {{address: {big_fleet.endpoint(0, 1)}}}]}}\n"
    )
    node = manifests / "node.yaml"
    node.write_text(f"{node.read_text()}  announce: {{}}\n")
    (manifests / "single.yaml").write_text("---\n".join(
        f"apiVersion: lbctl/v1\nkind: Service\nmetadata: {{name: single-{number}}}\n"
        f"spec: {{vip: {_SINGLE_VIP + number}, ports: [80], mode: dsr-l3, pool: single-{number}}}\n---\n"
        f"apiVersion: lbctl/v1\nkind: Pool\nmetadata: {{name: single-{number}}}\n"
        f"spec: {{announceMin: 1, endpoints: [{{address: {_SINGLE_ENDPOINT + number}}}]}}\n"
        for number in range(REPEATS)
    ))  # fmt: skip


def _cpu_s(agent: Agent) -> float:
    """The CPU time that the agent's process has used."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _withdrawal_s(listener: Listener, directory: Path, number: int) -> float:
    """Seconds from the drain of a VIP's only endpoint until the VIP is announced no more."""
    drain = Drain(_SINGLE_ENDPOINT + number, pool=f"single-{number}", began_s=time.time())
    _all(listener)
    started = time.monotonic()
    drains.change(directory / drains.FILE, lambda before: drains.added(before, [drain], time.time()))
    return _until(listener, Notice("route", str(_SINGLE_VIP + number), _TABLE))[0] - started


def _mending_s(listener: Listener, netns: str, number: int) -> float:
    """Seconds from the removal of a VIP by hand until it is there again; another one each time, since the agent gives
    way to whoever removes the same thing again and again."""
    vip = str(big_fleet.vip(number))
    _all(listener)
    started = time.monotonic()
    subprocess.run(["ip", "-n", netns, "route", "del", "local", vip, "dev", "lo", "table", "local"], check=True)
    notice, heard = Notice("route", vip, _LOCAL), 0
    while heard < 2:  # that it is gone, and that it is back
        came = _until(listener, notice)
        heard += came[1]
    return came[0] - started


def _all(listener: Listener) -> None:
    """Leave behind what has come so far."""
    for _ in listener.read(()):
        pass


def _until(listener: Listener, notice: Notice) -> tuple[float, int]:
    """When the notice comes, and how often by then. Raises NotMeasuredError."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        if listener.wait(1.0) and (count := [*listener.read(())].count(notice)):
            return time.monotonic(), count
    raise NotMeasuredError(f"no {notice} within {_LIMIT_S:.0f} s")


def _load(agent: Agent, watched_s: float, change: Callable[[], object]) -> tuple[float, int]:
    """The share of a core that the agent takes while something changes ten times a second, and how often it did."""
    before_s, started, events = _cpu_s(agent), time.monotonic(), 0
    while (elapsed_s := time.monotonic() - started) < watched_s:
        events += int(change() or 0)
        time.sleep(max(0.0, _PACE_S - (time.monotonic() - started - elapsed_s)))
    return (_cpu_s(agent) - before_s) / (time.monotonic() - started), events


class _Neighbours:
    """Neighbours of the node whose MAC addresses change."""

    def __init__(self, netns: str) -> None:
        self._netns, self._turn = netns, 0

    def __enter__(self) -> _Neighbours:
        self._process = subprocess.Popen(["ip", "-n", self._netns, "-batch", "-"], stdin=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.communicate()

    def change(self) -> int:
        """Change a tenth of a second's share of them; how many."""
        count = round(EVENTS_A_SECOND * _PACE_S)
        self._turn += 1
        turn, dev = self._turn % 256, big_fleet.INTERFACE
        lines = [f"neigh replace 10.1.0.{2 + n} lladdr 02:0:0:0:{turn:x}:{n:x} dev {dev}\n" for n in range(count)]
        assert self._process.stdin
        self._process.stdin.write("".join(lines))
        self._process.stdin.flush()
        return count
