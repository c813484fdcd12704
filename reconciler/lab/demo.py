# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a service from YAML to packets, edited, killed, broken and mended under real traffic.

The lines below a command are its real output; every claim is checked, and the demo fails if one does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from reconciler.config.load import load
from reconciler.dataplane.layout import SERVICES
from reconciler.errors import LbctlError
from reconciler.kernel import bpf, xdp
from reconciler.kernel.real import RealKernel
from reconciler.lab import LabError, netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import PREFIX, Lab, signals_as_exit
from reconciler.lab.load import Load
from reconciler.lab.prove import check_shares, weights_of
from reconciler.lab.stage import Output, Screen, run, start
from reconciler.lab.topology import SWITCH, ipv4
from reconciler.lab.traffic import Outcome
from reconciler.model import Endpoint, Fleet, Pool, Service

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "examples/configs/nat-tcp"
REQUESTS = 300
NEW_RATE, KEPT_RATE, KEPT_CONNECTIONS = 120, 60, 8
AFTER_S = 3.0
"""How long traffic goes on after each change before it is counted."""


def run_demo(config_dir: Path, prefix: str = PREFIX) -> int:
    """Play the demo on a copy of a directory of manifests. Returns the exit code."""
    with signals_as_exit():
        return _checked(Screen(sys.stdout), config_dir, prefix)


def _checked(screen: Screen, config_dir: Path, prefix: str) -> int:
    """Play the demo, print how it ended, and return the exit code."""
    started = time.monotonic()
    code, verdict = 1, ""
    try:
        with tempfile.TemporaryDirectory(prefix="lbctl-") as scratch, contextlib.chdir(scratch):
            config = Path(config_dir.name)
            shutil.copytree(config_dir, config)
            programs = _play(screen, config, prefix)
            _show_nothing_is_left(screen, prefix, programs)
        code, verdict = 0, f"{screen.style.good('All of it held')}, in {time.monotonic() - started:.0f} s."
    except KeyboardInterrupt:
        code, verdict = 128 + signal.SIGINT, "Interrupted."
    except SystemExit as end:
        code, verdict = int(end.code or 0), "Interrupted."
    except LbctlError as error:
        verdict = f"{screen.style.bad('The demo failed')}: {error}"
    if left := netns.leftovers(prefix):
        code, verdict = 1, f"{verdict}\nThis is left: {', '.join(left)}"
    screen.line()
    screen.line(verdict, indent=0)
    return code


def _play(screen: Screen, config: Path, prefix: str) -> set[int]:
    """Play all acts in a lab. Returns the numbers of the programs that ran in it."""
    fleet = _fleet(config)
    service = fleet.services[0]
    pool = next(pool for pool in fleet.pools if pool.name == service.pool)
    spare = max(ipv4(tuple(endpoint.address for endpoint in pool.endpoints))) + 1
    screen.title("1  Build a lab from the manifests")
    with Lab(fleet, prefix=prefix, spares=[spare]) as lab:
        lab.serve_http()
        act = Act(lab, screen, config, service)
        act.show_lab()
        act.from_yaml_to_packets()
        agent = act.edit_under_traffic(pool, spare)
        act.kill_the_agent(agent)
        act.break_and_mend()
        programs = act.programs()
        screen.title("6  Take everything away")
    return programs


def _fleet(config: Path) -> Fleet:
    loaded = load(config)
    if loaded.fleet is None or not loaded.fleet.services:
        raise LabError(f"{config} holds no valid service", hint=f"lbctl validate {config}")
    return loaded.fleet


def _show_nothing_is_left(screen: Screen, prefix: str, programs: Collection[int]) -> None:
    screen.expect(not netns.leftovers(prefix), "no process, namespace, mount, pin or directory is left")
    # Links hold their programs, so the programs are gone only when links and pins are.
    wait_until("the kernel has unloaded the programs", lambda: not any(map(_is_loaded, programs)))
    screen.expect(bool(programs), f"no link is left: the kernel has unloaded the {len(programs)} programs on them")


def _is_loaded(program: int) -> bool:
    fd = bpf.open_program(program)
    if fd is None:
        return False
    with bpf.closing(fd):
        return True


@dataclass(frozen=True, slots=True)
class Act:
    """The lab and the stage of the demo, and the service that it is about."""

    lab: Lab
    screen: Screen
    config: Path
    service: Service

    @property
    def vip(self) -> IPv4Address:
        return ipv4(self.service.vips)[0]

    @property
    def port(self) -> int:
        return self.service.ports[0]

    def lbctl(self, *args: str) -> str:
        return run(self.lab, self.screen, *args)

    def show_lab(self) -> None:
        topology, line = self.lab.topology, self.screen.line
        for address in topology.client[:1]:
            line(f"{'client':<12}{address}")
        for interface in topology.node.interfaces:
            line(f"{topology.node.name:<12}{', '.join(str(a.ip) for a in interface.addresses):<18}{interface.name}")
        for address, ports in topology.endpoints.items():
            line(f"{'endpoint':<12}{address!s:<18}HTTP on port {', '.join(map(str, ports))}")
        line(f"Each is a network namespace: {', '.join(netns.namespaces(self.lab.prefix)[:2])}, …")

    def from_yaml_to_packets(self) -> None:
        self.screen.title("2  From YAML to packets")
        self.lbctl("validate", str(self.config))
        self.lbctl("plan", str(self.config))
        self.lbctl("apply", str(self.config), "--auto-approve")
        self.screen.title(f"3  {REQUESTS} HTTP requests from the client to {self.vip}:{self.port}")
        outcomes = self.lab.load(self.vip, self.port, count=REQUESTS).wait()
        answered = self._report(outcomes, "requests")
        self._expect_shares(answered)
        self.lbctl("get", "endpoints")
        rows = json.loads(self.lab.lbctl("get", "endpoints", "-o", "json").stdout)["items"]
        counted = {row["endpoint"].partition(":")[0]: row["connections"] for row in rows}
        seen = {name.partition(":")[0]: count for name, count in answered.items()}
        self.screen.expect(counted == seen, "the balancer counted the same connections as the client")

    def edit_under_traffic(self, pool: Pool, spare: IPv4Address) -> Output:
        """Edit manifests while clients send requests. Returns the agent, which goes on."""
        self.screen.title("4  Edit the pool while requests run")
        agent = start(self.lab, self.screen, "run", str(self.config))
        wait_until("the agent has looked at the node", lambda: "No changes." in agent.text)
        fresh, kept = self._traffic()
        file, removed, text = _edited(self.config, pool, spare)
        self._show_difference(file, text)
        file.write_text(text, encoding="utf-8")
        wait_until("the agent has applied the edit", lambda: "Applied" in agent.text)
        applied = time.monotonic()
        time.sleep(AFTER_S)
        outcomes, kept_outcomes = fresh.stop(), kept.stop()
        self.screen.line()
        self._report([*outcomes, *kept_outcomes], "requests in all")
        after = self._report([o for o in outcomes if o.started_s > applied], "new connections since then")
        self._expect_shares(after)
        names = {name.partition(":")[0] for name in after}
        self.screen.expect(str(spare) in names, f"{spare} has joined")
        self.screen.expect(removed not in names, f"{removed} gets no new connection")
        reopened = sum(o.new_connection for o in kept_outcomes) - KEPT_CONNECTIONS
        self.screen.expect(not reopened, f"{KEPT_CONNECTIONS} connections were open all the time")
        lasted = any(o.endpoint.startswith(f"{removed}:") and o.started_s > applied for o in kept_outcomes)
        self.screen.expect(lasted, f"those of them to {removed} go on")
        return agent

    def kill_the_agent(self, agent: Output) -> None:
        self.screen.title("5  Kill the agent, then break things by hand")
        fresh, kept = self._traffic()
        self.screen.command(["kill", "-9", str(agent.process.pid)])
        agent.process.kill()
        agent.process.wait()
        time.sleep(AFTER_S)
        self._report([*fresh.stop(), *kept.stop()], "requests with no agent")
        self._expect_no_changes()

    def break_and_mend(self) -> None:
        lab, vip = self.lab, str(self.vip)
        route = ["route", "del", "local", vip, "dev", "lo", "table", "local"]
        self.screen.command(["ip", "-n", lab.balancer, *route])
        lab.run(lab.topology.node.name, "ip", *route)
        key = self.vip.packed + self.port.to_bytes(2) + bytes([6, 0])
        self.screen.line(f"and the row of {vip}:{self.port} is deleted from the map, behind lbctl's back", indent=2)
        RealKernel(lab.balancer, lab.run_dir).delete(SERVICES.name, [key])
        outcomes = lab.load(self.vip, self.port, count=4, timeout_s=1).wait()
        self.screen.expect(all(o.error for o in outcomes), "the service is dead")
        planned = self.lbctl("plan", str(self.config))
        self.screen.expect(
            "Plan: 2 to add, 0 to change, 0 to remove (2 drifted)." in planned, "the plan is these two, as drift"
        )
        self.lbctl("apply", str(self.config), "--auto-approve")
        self._report(lab.load(self.vip, self.port, count=REQUESTS).wait(), "requests")
        self._expect_no_changes()

    def programs(self) -> set[int]:
        """The numbers of the programs that run on interfaces of the lab."""
        hosts = (self.lab.balancer, self.lab.netns(SWITCH))
        return {each.id for host in hosts for each in netns.inside(host, lambda: list(xdp.running()))}

    def _traffic(self) -> tuple[Load, Load]:
        """Start requests on a new connection each, and requests on connections that are kept."""
        vip, port = self.vip, self.port
        kept = self.lab.load(vip, port, rate=KEPT_RATE, concurrency=KEPT_CONNECTIONS, requests_per_connection=0)
        wait_until("the connections are open", lambda: len(kept.outcomes()) > KEPT_CONNECTIONS)
        fresh = self.lab.load(vip, port, rate=NEW_RATE)
        wait_until("traffic runs", lambda: len(fresh.outcomes()) > 0)
        return fresh, kept

    def _report(self, outcomes: Sequence[Outcome], what: str) -> Counter[str]:
        """Print which endpoints answered, and that no request failed."""
        answered = Counter(o.endpoint for o in outcomes if not o.error)
        shares = ", ".join(f"{name} × {count}" for name, count in sorted(answered.items()))
        errors = Counter(o.error for o in outcomes if o.error)
        self.screen.line(shares)
        why = "".join(f", {count} × {error}" for error, count in errors.most_common(3))
        self.screen.expect(bool(outcomes) and not errors, f"{len(outcomes)} {what}, {errors.total()} failed{why}")
        return answered

    def _expect_shares(self, answered: Counter[str]) -> None:
        weights = weights_of(_fleet(self.config), self.service, self.port)
        try:
            check_shares(answered, weights)
        except AssertionError as error:
            self.screen.expect(False, str(error))
        self.screen.expect(True, f"the shares are as the weights: {' : '.join(map(str, weights.values()))}")

    def _expect_no_changes(self) -> None:
        self.screen.expect("No changes." in self.lbctl("plan", str(self.config)), "the node is as the manifests say")

    def _show_difference(self, file: Path, text: str) -> None:
        self.screen.line()
        self.screen.line(f"{file} is edited:", indent=2)
        paint = {"+": self.screen.style.good, "-": self.screen.style.bad}
        before, after = file.read_text(encoding="utf-8").splitlines(), text.splitlines()
        for line in list(difflib.unified_diff(before, after, n=1, lineterm=""))[3:]:
            self.screen.line(paint.get(line[0], str)(line))


def _edited(config: Path, pool: Pool, spare: IPv4Address) -> tuple[Path, str, str]:
    """Add `spare`, remove the last endpoint, change the first one's weight, in the text of the pool's file.

    Returns the file, the address that was removed, and the new text. Raises LabError where the endpoints are
    not written one a line.
    """
    first, last = pool.endpoints[0], pool.endpoints[-1]
    file = config / first.span.file
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for endpoint in (first, last):
        if not re.fullmatch(rf" *- \{{.*{re.escape(str(endpoint.address))}.*\}}.*\n", _line(lines, endpoint)):
            raise LabError(f"{endpoint.span}: the demo edits endpoints that are written as `- {{address: …}}`")
    plain = _line(lines, first).replace(f", weight: {first.weight}", "")
    weighted = plain.replace("}", f", weight: {first.weight + 2}}}", 1)
    added = _line(lines, last).replace(str(last.address), str(spare))
    lines[first.span.line - 1] = weighted
    lines[last.span.line - 1] = added
    return file, str(last.address), "".join(lines)


def _line(lines: Sequence[str], endpoint: Endpoint) -> str:
    return lines[endpoint.span.line - 1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Play lbctl's demo in network namespaces.")
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT_CONFIG, help="manifests (%(default)s)")
    return run_demo(parser.parse_args().directory.resolve())


if __name__ == "__main__":
    sys.exit(main())
