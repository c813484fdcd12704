# SPDX-License-Identifier: Apache-2.0
"""What the tests of direct server return share: an example that runs, spread, and UDP."""

from __future__ import annotations

import math
import re
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.config.load import load
from reconciler.dataplane.layout import SERVICES
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.lab import Lab
from reconciler.lab.prove import weights_of
from reconciler.lab.topology import CLIENT, host_of
from reconciler.model import Address, Fleet

EXAMPLES = Path(__file__).parents[2] / "examples/configs"
NOT_YET = (r"(?m)^  healthCheck:.*\n", r", gateway: [\d.]+", r"(?m)^ +gateway:.*\n")
"""What the examples ask for beyond what these tests are about; without it they run."""


def example(name: str, directory: Path, *changes: tuple[str, str]) -> Fleet:
    """Copy an example, with these changes (pattern, replacement) besides."""
    shutil.copytree(EXAMPLES / name, directory)
    for path in directory.iterdir():
        text = path.read_text()
        for pattern, replacement in (*((pattern, "") for pattern in NOT_YET), *changes):
            text = re.sub(pattern, replacement, text)
        path.write_text(text)
    fleet = load(directory).fleet
    assert fleet
    return fleet


def check_spread(lab: Lab, vip: Address, port: int, requests: int = 640) -> None:
    """Each endpoint must get its weight's share of new connections, but for chance: five times the deviation."""
    service = next(service for service in lab.fleet.services if vip in service.vips)
    weights = weights_of(lab.fleet, service, port)
    outcomes = lab.load(vip, port, count=requests, concurrency=8, clients=64).wait()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    answered = Counter(outcome.endpoint for outcome in outcomes)
    for endpoint, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = math.sqrt(requests * share * (1 - share))
        assert abs(answered[endpoint] - requests * share) < 5 * deviation, (endpoint, answered)


def forget_services(lab: Lab) -> None:
    """Take the balancer's services away behind lbctl's back."""
    kernel = RealKernel(lab.balancer, lab.run_dir)
    kernel.delete(SERVICES.name, [key for key, _ in kernel.dump(SERVICES.name)])


def applied_on(lab: Lab, host: str, *args: str) -> str:
    """What lbctl says on a host."""
    done = lab.lbctl(*args, host=host)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def udp_servers(lab: Lab, vip: Address, port: int) -> Iterator[None]:
    """On each endpoint a server at the VIP itself, which answers with the endpoint's address."""
    over = threading.Event()
    servers = []
    for address in lab.topology.endpoints:
        server = netns.inside(lab.netns(host_of(address)), udp_socket, str(vip), port)
        servers.append(threading.Thread(target=answer_datagrams, args=(server, str(address).encode(), over)))
    for thread in servers:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in servers:
            thread.join()


def udp_answers(
    lab: Lab, vip: Address, port: int, questions: int = 3, question: bytes = b"who?"
) -> list[list[str]]:
    """Who answers each client address its questions, each of which arrives whole or not at all. Only what comes from
    the VIP and its port is taken."""
    answers = []
    for client in (client for client in lab.topology.client if client.version == vip.version):
        with netns.inside(lab.netns(CLIENT), udp_socket, str(client), 0) as sender:
            sender.connect((str(vip), port))
            answers.append([_ask(sender, question) for _ in range(questions)])
    return answers


def udp_socket(address: str, port: int) -> socket.socket:
    """One that waits a fifth of a second for an answer."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(0.2)
    return made


def _ask(sender: socket.socket, question: bytes, attempts: int = 25) -> str:
    """The answer; datagrams may get lost while neighbours get to know each other."""
    for _ in range(attempts):
        try:
            sender.send(question)
            return sender.recv(100).decode()
        except (TimeoutError, ConnectionError):  # refused: somebody says that nobody is there
            continue
    raise AssertionError(f"nobody answers {sender.getsockname()} from {sender.getpeername()}")


def answer_datagrams(server: socket.socket, name: bytes, over: threading.Event) -> None:
    """Send back a name for whatever comes."""
    with server:
        while not over.is_set():
            try:
                server.sendto(name, server.recvfrom(100)[1])
            except TimeoutError:
                continue
