# SPDX-License-Identifier: Apache-2.0
"""What a soak runs on: a balancer with an agent, eight endpoints, and a watcher that knows who could break a request
when."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from reconciler.health import store
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from tests.lab.web import PORT, Web, addresses, manifests, written

ENDPOINTS = addresses(8)
LONG_S = 120.0
"""How long anything may take on a busy machine."""
LOOK_S = 0.1
_CHECK = "{{type: http, port: {port}, interval: 1s, timeout: 900ms, fall: {fall}, rise: 1{more}}}"


def edition(mode: str, weights: dict[IPv4Address, int], fall: int = 2, ports: str = f"[{PORT}]") -> str:
    """The manifests, with what edits change."""
    check = _CHECK.format(port=PORT, fall=fall, more=", through: vip" if mode.startswith("dsr") else "")
    return manifests(weights, mode, check, service="algorithm: maglev", ports=ports)


def first(mode: str) -> str:
    return edition(mode, dict.fromkeys(ENDPOINTS, 1))


@dataclass(slots=True)
class Death:
    """An endpoint that doesn't answer since `began_s`. It may break what is begun until `until_s`, when it is known to
    be down and in no ring any more, or answers again; None: not yet. `known_s`: when checks were seen to have found
    it. `returned_s`: when it was in a ring again although it was dead all the time, which must not be."""

    address: IPv4Address
    began_s: float
    known_s: float | None = None
    until_s: float | None = None
    returned_s: float | None = None

    def __str__(self) -> str:
        def after(then_s: float | None) -> str:
            return "never" if then_s is None else f"{then_s - self.began_s:.2f} s"

        said = f"{self.address}: known after {after(self.known_s)}, out or back after {after(self.until_s)}"
        return said + (f", in a ring again after {after(self.returned_s)}" if self.returned_s else "")


class Site(Web):
    """Endpoints die and come back by methods of this; a thread sees when they have left the ring."""

    def __init__(self, lab: Lab, directory: Path, log: Path) -> None:
        super().__init__(lab, directory, log)
        self.deaths: list[Death] = []
        self.frozen: set[IPv4Address] = set()
        self.killed: set[IPv4Address] = set()
        self._reviving: set[IPv4Address] = set()
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def dead(self) -> set[IPv4Address]:
        return self.frozen | self.killed

    def story(self) -> str:
        """What is known of each endpoint, and the end of what the agent said."""
        states = "\n".join(self.lab.lbctl("get", *what).stdout for what in (["health", "-o", "wide"], ["drains"]))
        dead, members = sorted(map(str, self.dead)), sorted(map(str, self.members()))
        return f"dead: {dead}, in the ring: {members}\n{states}\n{self.log.read_text()[-3000:]}"

    def checker_pid(self) -> int:
        return store.read(self.place / store.FILE).progress.pid

    def freeze(self, address: IPv4Address) -> None:
        self.deaths.append(Death(address, time.monotonic()))
        self.frozen.add(address)
        self.lab.servers[address].send_signal(signal.SIGSTOP)

    def kill(self, address: IPv4Address) -> None:
        self.deaths.append(Death(address, time.monotonic()))
        self.killed.add(address)
        self.lab.servers[address].kill()
        self.lab.servers[address].wait(LONG_S)

    def revive(self, address: IPv4Address) -> None:
        self._reviving.add(address)
        if address in self.frozen:
            self.frozen.discard(address)
            self.lab.servers[address].send_signal(signal.SIGCONT)
        else:
            self.serve_again(address)
            self.killed.discard(address)
        self._reviving.discard(address)

    def look(self) -> None:
        """See who of the dead is known, who has left the ring, and who is back in it."""
        latest = {death.address: death for death in self.deaths}
        surely_dead = self.dead - self._reviving
        if not surely_dead and all(death.until_s is not None for death in latest.values()):
            return
        dead, began_s = self.dead, time.monotonic()
        members, up = self.members(), self.up()
        now_s = time.monotonic()
        for address, death in latest.items():
            # Who has just come back, and is in no ring yet, will be in one until checks find him dead again.
            is_back = address not in dead and began_s > death.began_s + LOOK_S
            if death.known_s is None and address not in up:
                death.known_s = now_s
            if death.until_s is None:
                if is_back or address not in members | up:
                    death.until_s = now_s
            elif death.returned_s is None and address in members & surely_dead - self._reviving & self.dead:
                death.returned_s = now_s

    def _watch(self) -> None:
        try:
            while not self._over.wait(LOOK_S):
                self.look()
        except Exception as error:  # noqa: BLE001 - whoever ends this tells
            self._failure = error

    def begin(self) -> None:
        self._watcher.start()

    def end(self) -> None:
        """Raises what the watcher stumbled over: of what came after that, it knows nothing."""
        self._over.set()
        self._watcher.join()
        if self._failure is not None:
            raise self._failure


@contextmanager
def site(directory: Path, prefix: str, mode: str) -> Iterator[Site]:
    """A site whose endpoints all serve."""
    fleet = written(directory / "manifests", first(mode))
    with Lab(fleet, node_name="lb1", prefix=prefix, run_dir=directory / "run") as lab:
        found = Site(lab, directory / "manifests", directory / "log")
        found.start("--resync", "2s")
        wait_until("all are up", lambda: found.up() == set(ENDPOINTS) == found.members(), LONG_S)
        found.begin()
        try:
            yield found
        finally:
            found.end()


def chance(seed: int) -> random.Random:
    return random.Random(seed)
