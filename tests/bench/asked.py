# SPDX-License-Identifier: Apache-2.0
"""What it costs the agent to be asked: its page, its metrics and its socket, each a hundred times a second by somebody
without rights. CPU time of the agent and of the processes that it started, less what it takes when nobody asks.

Those who ask work in a process of their own, in the node's network namespace.
"""

from __future__ import annotations

import grp
import http.client
import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from reconciler.agent.control import ask
from reconciler.errors import LbctlError
from reconciler.lab.netns import command
from tests.bench.health import Figure
from tests.bench.machinery import CHECKOUT, Agent, site

SERVICES = 1_000
RATE = 100
FOR_S = 60.0
IDLE_S = 15.0
BAR = 0.10
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
            for what, words in ASKED.items():
                began_s = _spent_s(agent)
                told = _asked(node.name, node.run_dir / node.name, words, for_s)
                share = (_spent_s(agent) - began_s) / told["took_s"] - idle
                text = f"{what}: {told['answered'] / told['took_s']:.0f} answers/s, {told['refused']} refused"
                yield Figure(text, share, "of a CPU", f"{BAR} of a CPU at {RATE} a second", share < BAR)


def _spent_s(agent: Agent) -> float:
    """CPU time of a process, its threads, and its children that have ended."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _CLOCK_HZ


def _asked(netns: str, instance_dir: Path, words: str, for_s: float) -> dict[str, float]:
    user, group = pwd.getpwnam(WHO).pw_uid, grp.getgrnam(GROUP).gr_gid
    argv = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", sys.executable, "-m", __spec__.name]
    done = subprocess.run(
        command(netns, [*argv, str(instance_dir), words, str(for_s)]), cwd=CHECKOUT, check=True,
        stdout=subprocess.PIPE, encoding="utf-8", timeout=for_s + 120,
    )  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout)
    return told


def _question(instance_dir: Path, words: str) -> Callable[[], None]:
    """Asks once. Raises LbctlError, OSError or HTTPException if there is no answer."""
    how, *where = words.split()
    if how == "ask":
        request = {"ask": where[0], "what": "services"}
        return lambda: list(ask(instance_dir, request, 30.0)).clear()

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
