# SPDX-License-Identifier: Apache-2.0
"""A soak: random edits, deaths, drains, damage by hand and restarts of the agent, under load, and what must hold then.

Nothing may fail but requests that an endpoint took with it: those that were begun between its death and its leaving
the ring, and those on connections that it had. In the end the node holds what the manifests say, with as many rows as
in the beginning; and memory and descriptors don't grow.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from reconciler.dataplane.layout import ENDPOINTS as ENDPOINT_ROWS
from reconciler.dataplane.layout import MAPS, SERVICE_COUNTERS, SERVICES, EndpointRowState, MapType
from reconciler.dataplane.rows import Endpoint as EndpointFields
from reconciler.dataplane.rows import Number
from reconciler.kinds.endpoint import numbered_rows
from reconciler.lab import LabError
from reconciler.lab.build import wait_until
from reconciler.lab.traffic import Outcome
from reconciler.wish import drains
from tests.lab.web import PORT, VIP
from tests.soak.site import ENDPOINTS, LONG_S, Death, Site, chance, edition, first, site

MOST_DOWN = 3
FEW = 5
REST_S = 150.0
"""Nobody dies again before: who falls often has to be well for long, and nothing else would be seen."""
SETTLE_S = 400.0
"""Longer than anybody has to be well before he is back."""
TIMEOUT_S = 10.0
"""So long a request may wait for a machine that does many other things."""
STORY_S = 20.0
"""How far back what was done is told about a request that failed."""
LONG_OUT_S = 7.0
"""Whoever was dead for longer before he was out is told of: restarts and a busy machine may explain it."""
SLACK_S = 0.3
"""From a packet's way to what is written down of it."""
MOST_GROWTH_MB, MOST_MORE_DESCRIPTORS = 8.0, 8


@dataclass(frozen=True, slots=True)
class Sample:
    """`rows` are those of the maps that grow with what is asked for. Memory is in MB."""

    agent_mb: float
    checker_mb: float
    descriptors: int
    rows: int


@dataclass(slots=True)
class Report:
    for_s: float
    seed: int
    mode: str
    done: Counter[str] = field(default_factory=Counter)
    acts: list[tuple[float, str]] = field(default_factory=list)
    """What was done, and when that had been done."""
    deaths: list[Death] = field(default_factory=list)
    requests: int = 0
    lost: int = 0
    """Requests that a dead endpoint took with it."""
    unexplained: list[tuple[Outcome, str]] = field(default_factory=list)
    """With who answered before on that connection, if it was not a new one."""
    before: Sample | None = None
    after: Sample | None = None
    longest_out_s: float = 0.0
    plan: str = ""
    ended_s: float = 0.0
    verdicts: str = ""
    """What the program did with packets."""

    def lines(self) -> list[str]:
        did = ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))
        return [
            f"{self.mode}, {self.for_s:g} s, seed {self.seed}: {did}",
            f"{self.requests:,} requests; {self.lost} went with who died, {len(self.unexplained)} more failed",
            f"the longest time from a death to the ring: {self.longest_out_s:.2f} s",
            f"before: {self.before}",
            f"after:  {self.after}",
            f"in the end: {self.plan.strip().splitlines()[-1] if self.plan.strip() else 'no plan'}",
            *(self.verdicts.splitlines() if self.unexplained else ()),
            *(line for outcome, home in self.unexplained[:FEW] for line in self._about(outcome, home)),
            *(line for death in self.returned for line in self._of_death(death)),
            *(line for death in self.slow[:FEW] for line in self._of_death(death)),
        ]

    @property
    def returned(self) -> list[Death]:
        """Those who were in a ring again although they were dead."""
        return [death for death in self.deaths if death.returned_s is not None]

    @property
    def slow(self) -> list[Death]:
        return [death for death in self.deaths if (death.until_s or self.ended_s) - death.began_s > LONG_OUT_S]

    def _of_death(self, death: Death) -> list[str]:
        """A death that was remarkable, and what had been done by when it was over."""
        end_s = death.returned_s or death.until_s or self.ended_s
        done = [f"{then_s - death.began_s:.2f} s after: {what}" for then_s, what in self.acts
                if death.began_s - STORY_S < then_s < end_s]  # fmt: skip
        return [f"death of {death}", *done]

    def _about(self, outcome: Outcome, home: str) -> list[str]:
        """A request that failed, and what had happened by then."""
        at_s = outcome.started_s
        acts = [f"{at_s - then_s:.2f} s before: {what}" for then_s, what in self.acts if 0 < at_s - then_s < STORY_S]
        deaths = [f"{d.address} from {at_s - d.began_s:.2f} s before to "
                  f"{'the end' if d.until_s is None else f'{at_s - d.until_s:.2f} s before'}"
                  for d in self.deaths if d.began_s < at_s]  # fmt: skip
        before = f"unexplained: {outcome}, before it {home or 'nobody'} answered"
        return [before, *acts, f"who had died: {'; '.join(deaths) or 'nobody'}"]


def run(for_s: float, seed: int, directory: Path, prefix: str, mode: str = "nat") -> Report:
    """Do all of that for so long, and say what came of it. Needs root."""
    report = Report(for_s, seed, mode)
    with site(directory, prefix, mode) as found:
        load = found.lab.load(
            VIP, PORT, requests_per_connection=5, concurrency=8, rate=40, clients=16, timeout_s=TIMEOUT_S
        )
        soak = _Soak(found, report)
        soak.go_on(for_s / 2, restarts=True)
        report.before = soak.settled()
        soak.go_on(for_s / 2, restarts=False)  # one life, whose memory can be compared
        report.after = soak.settled()
        outcomes = load.stop()
        report.plan = found.lab.lbctl("plan", str(found.directory), "--node", "lb1").stdout
        report.requests, report.deaths, report.ended_s = len(outcomes), found.deaths, time.monotonic()
        report.verdicts = found.lab.lbctl("get", "verdicts").stdout
        _explain(report, found, outcomes)
        ended = [d.until_s - d.began_s for d in found.deaths if d.until_s is not None]
        report.longest_out_s = max(ended, default=0.0)
    return report


class _Soak:
    """What is done to a site."""

    def __init__(self, of: Site, report: Report) -> None:
        self._site, self._report = of, report
        self._chance = chance(report.seed)
        self._died_s = dict.fromkeys(ENDPOINTS, float("-inf"))

    @property
    def _drained(self) -> set[IPv4Address]:
        """As the node knows it: a drain that nobody has carried out in time is on all the same."""
        now_s = time.time()
        found = drains.read(self._site.place / drains.FILE)
        return {d.address for d in found if d.is_on(now_s) and isinstance(d.address, IPv4Address)}

    def go_on(self, for_s: float, *, restarts: bool) -> None:
        """For so long, and until a few things were done, however slow the machine is."""
        end_s, least = time.monotonic() + for_s, self._report.done.total() + FEW
        acts: list[Callable[[], str]] = [self._die, self._revive, self._edit, self._drain, self._undrain, self._damage]
        acts += [self._restart] if restarts else []
        while time.monotonic() < end_s or self._report.done.total() < least:
            began_s = time.monotonic()
            if done := self._chance.choice(acts)():
                self._report.done[done] += 1
                now_s = time.monotonic()
                self._report.acts.append((now_s, f"{done}, which took {now_s - began_s:.1f} s"))
            time.sleep(self._chance.uniform(0.0, 1.0))

    def settled(self) -> Sample:
        """All is healed, and the node is as it was in the beginning."""
        for address in tuple(self._site.dead):
            self._site.revive(address)
        while self._drained:
            self._undrain()
        self._site.write(first(self._report.mode))
        everybody = set(ENDPOINTS)
        plan = ("plan", str(self._site.directory), "--node", "lb1")
        try:
            wait_until("all serve again", lambda: self._site.up() == self._site.members() == everybody, SETTLE_S)
            wait_until("nothing is left", lambda: "No changes." in self._site.lab.lbctl(*plan).stdout, SETTLE_S)
        except LabError as error:
            raise AssertionError(f"{error}\n{self._site.story()}") from error
        agent, checker = self._site.agent.pid, self._site.checker_pid()
        fds = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (agent, checker))
        return Sample(_resident_mb(agent), _resident_mb(checker), fds, self._rows())

    def _rows(self) -> int:
        """Of maps that are tables of rows, and endpoints: what was deleted must be gone."""
        of_hashes = [name for name, spec in MAPS.items() if spec.type is MapType.HASH]
        return sum(len(self._site.kernel.dump(name)) for name in of_hashes) + len(numbered_rows(self._site.kernel))

    def _out(self) -> set[IPv4Address]:
        return self._site.dead | self._drained | (set(ENDPOINTS) - self._site.up())

    def _die(self) -> str:
        now_s, out = time.monotonic(), self._out()
        rested = [a for a in ENDPOINTS if a not in out and now_s - self._died_s[a] > REST_S]
        if len(out) >= MOST_DOWN or not rested:
            return ""
        address = self._chance.choice(rested)
        self._died_s[address] = now_s
        if self._chance.random() < 0.5:
            self._site.freeze(address)
            return "froze"
        self._site.kill(address)
        return "killed"

    def _revive(self) -> str:
        if not self._site.dead:
            return ""
        self._site.revive(self._chance.choice(sorted(self._site.dead)))
        return "revived"

    def _edit(self) -> str:
        weights = {address: self._chance.randint(1, 4) for address in ENDPOINTS}
        ports = "[80, 8080]" if self._chance.random() < 0.5 else "[80]"
        self._site.write(edition(self._report.mode, weights, self._chance.randint(2, 3), ports))
        return "edited"

    def _drain(self) -> str:
        others = [address for address in ENDPOINTS if address not in self._out()]
        if len(ENDPOINTS) - len(others) >= MOST_DOWN + 2:
            return ""
        address = self._chance.choice(others)
        self._site.lab.lbctl("drain", str(address), timeout_s=LONG_S)
        return "drained"

    def _undrain(self) -> str:
        drained = sorted(self._drained)
        if not drained:
            return ""
        address = self._chance.choice(drained)
        done = self._site.lab.lbctl("undrain", str(address), timeout_s=LONG_S)
        assert done.returncode == 0, done.stderr
        return "undrained"

    def _damage(self) -> str:
        """As hands do it that mean well: nothing of this breaks a connection, all of it is to be mended."""
        kernel, which = self._site.kernel, self._chance.randrange(3)
        match which:
            case 0:  # a service that nobody wants
                key, value = next(iter(kernel.dump(SERVICES.name)))
                place, row = SERVICES.key.unpack(key), SERVICES.value.unpack(value)
                # With the index of another, it could pass for its owner, and that would get a new one: flows that
                # direct server return remembers are found by it.
                row = row._replace(index=kernel.capacity(SERVICE_COUNTERS.name) - 1)
                kernel.update(SERVICES.name, [(SERVICES.key.pack(place._replace(port=9)), SERVICES.value.pack(row))])
            case 1:  # an endpoint that gets nothing new
                row = self._chance.choice(numbered_rows(kernel))
                retired = EndpointFields(row.row.address.packed, row.row.port, EndpointRowState.RETIRED)
                number, value = ENDPOINT_ROWS.key.pack(Number(row.number)), ENDPOINT_ROWS.value.pack(retired)
                kernel.update(ENDPOINT_ROWS.name, [(number, value)])
            case _:  # a VIP that the kernel doesn't answer for
                self._site.lab.run("lb1", "sh", "-c", f"ip route del local {VIP} table local || true")
        return f"damaged {('a service', 'an endpoint', 'a VIP')[which]}"

    def _restart(self) -> str:
        if self._chance.random() < 0.5:
            self._site.agent.kill()
        else:
            self._site.agent.terminate()
        self._site.agent.wait(LONG_S)
        self._site.start_agent("--resync", "2s")
        return "restarted"


def _explain(report: Report, of: Site, outcomes: list[Outcome]) -> None:
    """Sort the requests that failed: those that an endpoint took with it, and the others. A client has one connection
    at a time from each of its addresses; what answered last is where that goes."""
    homes: dict[str, tuple[str, float]] = {}
    for outcome in sorted(outcomes):
        end_s = outcome.started_s + outcome.duration_s
        if not outcome.error:
            homes[outcome.source] = outcome.endpoint.partition(":")[0], outcome.started_s
            continue
        home, well_s = homes.get(outcome.source, ("", end_s))
        if outcome.new_connection:
            is_explained = any(
                death.began_s - SLACK_S <= end_s and outcome.started_s <= (death.until_s or end_s) + SLACK_S
                for death in of.deaths
            )
        else:
            is_explained = any(
                str(death.address) == home and well_s - SLACK_S <= death.began_s <= end_s + SLACK_S
                for death in of.deaths
            )
        if is_explained:
            report.lost += 1
        else:
            report.unexplained.append((outcome, home))


def check(report: Report) -> None:
    """Raises AssertionError unless all holds that must."""
    assert report.before is not None
    assert report.after is not None
    text = "\n".join(report.lines())
    assert not report.unexplained, text
    assert not report.returned, text
    assert "No changes." in report.plan, text
    assert report.after.rows == report.before.rows, text
    assert report.after.descriptors <= report.before.descriptors + MOST_MORE_DESCRIPTORS, text
    assert report.after.agent_mb <= report.before.agent_mb + MOST_GROWTH_MB, text
    assert report.after.checker_mb <= report.before.checker_mb + MOST_GROWTH_MB, text


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)

