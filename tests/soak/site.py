# SPDX-License-Identifier: Apache-2.0
"""What a soak runs on: a balancer with an agent, eight endpoints, and a watcher that knows who could break a request
when."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from reconciler import children
from reconciler.config.load import load
from reconciler.health import roster, store
from reconciler.health.state import Health
from reconciler.kernel.real import RealKernel
from reconciler.kinds.ring import Ring
from reconciler.kinds.rings import RingKind
from reconciler.lab import netns, server
from reconciler.lab.build import await_answer, wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of

VIP, PORT = IPv4Address("20.20.20.1"), 80
ENDPOINTS = tuple(IPv4Address(f"10.2.0.{number}") for number in range(11, 19))
PATIENCE_S = 120.0
LOOK_S = 0.1
CHECK = "{type: http, interval: 1s, timeout: 900ms, fall: 2, rise: 1}"


def manifests(weights: dict[IPv4Address, int], fall: int = 2, ports: str = "[80]") -> str:
    endpoints = ", ".join(f"{{address: {address}, weight: {weight}}}" for address, weight in weights.items())
    return f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: {ports}, mode: nat, algorithm: maglev, pool: web}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec:
  endpoints: [{endpoints}]
  healthCheck: {CHECK.replace("fall: 2", f"fall: {fall}")}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
"""


FIRST = manifests(dict.fromkeys(ENDPOINTS, 1))


@dataclass(slots=True)
class Death:
    """An endpoint that doesn't answer since `began_s`. It may break what is begun until `until_s`, when it is known to
    be down and in no ring any more, or answers again; None: not yet."""

    address: IPv4Address
    began_s: float
    until_s: float | None = None


class Site:
    """Endpoints die and come back by methods of this; a thread sees when they have left the ring."""

    def __init__(self, lab: Lab, directory: Path, log: Path) -> None:
        self.lab, self.directory, self.log = lab, directory, log
        self.kernel = RealKernel(lab.balancer, lab.run_dir)
        self.place = lab.run_dir / lab.balancer
        self.deaths: list[Death] = []
        self.frozen: set[IPv4Address] = set()
        self.killed: set[IPv4Address] = set()
        self.agent: subprocess.Popen[bytes]
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def dead(self) -> set[IPv4Address]:
        return self.frozen | self.killed

    def write(self, text: str) -> None:
        """Put manifests in place as an editor does: in one step."""
        path = self.directory / "all.yaml"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)

    def start_agent(self) -> None:
        with self.log.open("ab") as output:
            self.agent = self.lab.start_lbctl(
                "run", str(self.directory), "--node", "lb1", "--resync", "2s", output=output
            )

    def members(self) -> set[IPv4Address]:
        """Who gets new connections."""
        rings = [ring for ring in RingKind(self.kernel).read({}).resources if isinstance(ring, Ring)]
        return {IPv4Address(member.partition(":")[0]) for ring in rings for member in ring.members}

    def up(self) -> set[IPv4Address]:
        """Whom checks find up. Of an edited check there are two targets for a moment: then the newer one counts."""
        entries = store.read(self.place / store.FILE).entries
        listed = roster.read(self.place / roster.FILE)
        return {
            IPv4Address(endpoint.address) for pool in listed.values() for endpoint in pool.endpoints
            if all(digest in entries and entries[digest].state.health is Health.UP for _, digest in endpoint.targets)
        }  # fmt: skip

    def story(self) -> str:
        """What is known of each endpoint, and the end of what the agent said."""
        states = "\n".join(self.lab.lbctl("get", *what).stdout for what in (["health", "-o", "wide"], ["drains"]))
        dead, members = sorted(map(str, self.dead)), sorted(map(str, self.members()))
        return f"dead: {dead}, in the ring: {members}\n{states}\n{self.log.read_text()[-3000:]}"

    def checker_pid(self) -> int:
        return store.read(self.place / store.FILE).progress.pid

    def freeze(self, address: IPv4Address) -> None:
        self._begin(address)
        self.frozen.add(address)
        self.lab.servers[address].send_signal(signal.SIGSTOP)

    def kill(self, address: IPv4Address) -> None:
        self._begin(address)
        self.killed.add(address)
        self.lab.servers[address].kill()
        self.lab.servers[address].wait(PATIENCE_S)

    def revive(self, address: IPv4Address) -> None:
        if address in self.frozen:
            self.frozen.discard(address)
            self.lab.servers[address].send_signal(signal.SIGCONT)
        else:
            argv = children.script(str(server.__file__), str(address), str(PORT))
            self.lab.servers[address] = self.lab.start(host_of(address), *argv)
            what = f"the server on {address} is back"
            netns.inside(self.lab.netns(host_of(address)), await_answer, what, str(address), PORT, True)
            self.killed.discard(address)

    def _begin(self, address: IPv4Address) -> None:
        self.deaths.append(Death(address, time.monotonic()))

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            dead, began_s = self.dead, time.monotonic()
            if any(death.until_s is None for death in self.deaths):
                # Who has just come back, and is in no ring yet, will be in one until checks find him dead again.
                serving = self.members() | self.up()
                for death in self.deaths:
                    is_back = death.address not in dead and began_s > death.began_s + LOOK_S
                    if death.until_s is None and (death.address not in serving or is_back):
                        death.until_s = time.monotonic()

    def begin(self) -> None:
        self._watcher.start()

    def end(self) -> None:
        self._over.set()
        self._watcher.join()


@contextmanager
def site(directory: Path, prefix: str) -> Iterator[Site]:
    """A site whose endpoints all serve."""
    (directory / "manifests").mkdir()
    (directory / "manifests/all.yaml").write_text(FIRST)
    fleet = load(directory / "manifests").fleet
    assert fleet
    with Lab(fleet, node_name="lb1", prefix=prefix, run_dir=directory / "run") as lab:
        lab.serve_http()
        found = Site(lab, directory / "manifests", directory / "log")
        found.start_agent()
        wait_until("all are up", lambda: found.up() == set(ENDPOINTS) == found.members(), PATIENCE_S)
        found.begin()
        try:
            yield found
        finally:
            found.end()


def chance(seed: int) -> random.Random:
    return random.Random(seed)
