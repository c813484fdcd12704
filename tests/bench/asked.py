# SPDX-License-Identifier: Apache-2.0
"""What it costs to be asked: the agent's page, its metrics and its socket, each a hundred times a second by somebody
without rights. CPU time of the agent and of the processes that it started, less what it takes when nobody asks; and
what a packet takes meanwhile, against the time just before.

Those who ask work in a process of their own, in the node's network namespace. Packets go through the node's own
program and maps, in the wrapper that restores each frame.
"""

from __future__ import annotations

import grp
import http.client
import json
import os
import pwd
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from reconciler.agent.control import ask
from reconciler.errors import LbctlError
from reconciler.kernel import bpf, build, holders, maps
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.instance import Instance
from reconciler.kernel.real import RealKernel
from reconciler.lab.netns import command
from tests import big_fleet
from tests.bench import variants
from tests.bench.health import Figure
from tests.bench.machinery import CHECKOUT, Agent, Site, site
from tests.bench.rounds import Stream, Subject
from tests.packets.balancer import inside

SERVICES = 1_000
RATE = 100
FOR_S = 60.0
IDLE_S = 15.0
BAR = 0.10
PACKETS, PAUSE_S = 200_000, 0.4
"""Of a run, and between two."""
MOST_SLOWER = 1.05
PATIENCE_S = 100.0
"""Longer than the agent takes to answer or to refuse."""
FLOWS, SERVICES_ASKED = 1 << 16, 512
METRICS, WEB = 9101, 8080
WHO, GROUP = "nobody", "nogroup"
ASKED = {
    "page": f"GET {WEB} /", "metrics": f"GET {METRICS} /metrics", "socket, status": "ask status",
    "socket, get services by a member of the group": "ask get",
}  # fmt: skip
_CLOCK_HZ = os.sysconf("SC_CLK_TCK")


def figures(for_s: float = FOR_S, services: int = SERVICES) -> Iterator[Figure]:
    """Measure on a node of its own. Needs root."""
    with TemporaryDirectory(prefix="lbb-") as cache, site(f"lbq-{os.getpid()}", services, Path(cache)) as node:
        node.run_dir.parent.chmod(0o711)  # those without rights reach what is theirs to reach
        with node.agent("--metrics", str(METRICS), "--web", str(WEB), "--group", GROUP) as agent:
            agent.line("Applied:|No changes")
            began_s = _spent_s(agent)
            time.sleep(IDLE_S)
            idle = (_spent_s(agent) - began_s) / IDLE_S
            yield Figure(f"the agent of {services:,} services, nobody asks", idle, "of a CPU")
            with _packets(node) as packets:
                for what, words in ASKED.items():
                    before_ns = _medians_ns(packets, min(for_s, IDLE_S), lambda: True)
                    began_s = _spent_s(agent)
                    with _asking(node.name, node.run_dir / node.name, words, for_s) as asking:
                        meanwhile_ns = _medians_ns(packets, for_s, lambda: asking.poll() is None)
                        told = json.loads(asking.communicate(timeout=for_s + 2 * PATIENCE_S)[0])
                    share = (_spent_s(agent) - began_s) / told["took_s"] - idle
                    text = f"{what}: {told['answered'] / told['took_s']:.3g} answers/s, {told['refused']} refused"
                    is_met = share < BAR and told["answered"] > 0
                    yield Figure(text, share, "of a CPU", f"{BAR} of a CPU at {RATE} a second", is_met)
                    ratio = meanwhile_ns / before_ns
                    text = f"  a packet meanwhile, {meanwhile_ns:.0f} ns with the wrapper, to before"
                    yield Figure(text, ratio, "times", f"{MOST_SLOWER} times", ratio <= MOST_SLOWER)


@contextmanager
def _packets(node: Site) -> Iterator[Subject]:
    """The node's program on the node's maps, with packets of known flows to its services."""
    with ExitStack() as stack:
        kernel = RealKernel(node.name, node.run_dir, netns=node.name)
        program = kernel.loaded_program()
        generation = holders.live(Instance(node.name, node.run_dir))
        assert program and program.features and generation
        directory = Path(stack.enter_context(TemporaryDirectory()))
        image = build.build(program.features, variants.source_of(variants.Variant.OURS, directory), "bench_balance")
        opened = {name: generation.open(name) for name in image.maps if name != "bench"}
        for descriptor in opened.values():
            assert descriptor is not None
            stack.callback(os.close, descriptor)
        bench = maps.describe(stack.enter_context(bpf.closing(maps.create("bench", image.maps["bench"]))))
        code = image.linked({name: fd for name, fd in opened.items() if fd is not None} | {"bench": bench.fd})
        loaded = stack.enter_context(bpf.closing(bpf.load_program("bench_asked", code)))
        stack.enter_context(inside(node.name))
        subject = Subject(loaded, bench, socket.if_nametoindex(big_fleet.INTERFACE))
        frame = Ether(src=big_fleet.GATEWAY_MAC, dst=_mac(node.name))
        packet = IP(src="198.18.0.0", dst=str(big_fleet.vip(0))) / TCP(sport=1024, dport=big_fleet.PORT, flags="A")
        subject.take(Stream(bytes(frame / packet / Raw(bytes(44))), FLOWS, SERVICES_ASKED))
        subject.run(PACKETS)
        actions = subject.actions()
        assert actions[XdpVerdict.TX] == PACKETS, actions
        yield subject


def _mac(netns: str) -> str:
    told = subprocess.check_output(["ip", "-j", "-n", netns, "link", "show", big_fleet.INTERFACE])
    return str(json.loads(told)[0]["address"])


def _medians_ns(packets: Subject, for_s: float, goes_on: Callable[[], bool]) -> float:
    """What a packet takes, the median of many runs. The kernel's clock stands still while others have the CPU."""
    until_s = time.monotonic() + for_s
    found: list[int] = []
    while not found or (time.monotonic() < until_s and goes_on()):
        found.append(packets.run(PACKETS))
        time.sleep(PAUSE_S)
    return statistics.median(found)


def _spent_s(agent: Agent) -> float:
    """CPU time of a process with its threads, its children, and theirs, whether they have ended or not."""
    pids, spent = [agent.process.pid], 0
    for pid in pids:
        with suppress(OSError):  # it has just ended: its parent knows what it took
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent += sum(map(int, fields[11:15]))
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):  # a thread that answered somebody, and has ended
                    pids += map(int, (task / "children").read_text().split())
    return spent / _CLOCK_HZ


@contextmanager
def _asking(netns: str, instance_dir: Path, words: str, for_s: float) -> Iterator[subprocess.Popen[str]]:
    """Those who ask; what they were told is written at the end."""
    user, group = pwd.getpwnam(WHO).pw_uid, grp.getgrnam(GROUP).gr_gid
    argv = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", sys.executable, "-m", __spec__.name]
    asking = subprocess.Popen(
        command(netns, [*argv, str(instance_dir), words, str(for_s)]), cwd=CHECKOUT,
        stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    try:
        yield asking
    finally:
        asking.kill()
        asking.wait()


def _question(instance_dir: Path, words: str) -> Callable[[], None]:
    """Asks once. Raises LbctlError, OSError or HTTPException if there is no answer."""
    how, *where = words.split()
    if how == "ask":
        request = {"ask": where[0], "what": "services"}
        return lambda: list(ask(instance_dir, request, PATIENCE_S)).clear()

    def get() -> None:
        port, path = where
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(answer.reason)

    return get


def ask_again_and_again(instance_dir: Path, words: str, for_s: float) -> dict[str, float]:
    """Ask RATE times a second, four at once at most, as those who wait for an answer do."""
    from concurrent.futures import ThreadPoolExecutor

    question = _question(instance_dir, words)
    began_s = time.monotonic()

    def often(worker: int) -> tuple[int, int]:
        answered = refused = 0
        while (due_s := (worker + 4 * (answered + refused)) / RATE) < for_s:
            time.sleep(max(0.0, began_s + due_s - time.monotonic()))
            if time.monotonic() > began_s + for_s:
                break
            try:
                question()
                answered += 1
            except (LbctlError, OSError, http.client.HTTPException):
                refused += 1
        return answered, refused

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(often, range(4)))
    took_s = time.monotonic() - began_s
    return {"answered": sum(a for a, _ in counts), "refused": sum(r for _, r in counts), "took_s": took_s}


if __name__ == "__main__":
    print(json.dumps(ask_again_and_again(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))))
