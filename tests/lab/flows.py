# SPDX-License-Identifier: Apache-2.0
"""Many flows of UDP, each a datagram from an address and port of its own, and who answers it: the same question again
is the same flows again."""

from __future__ import annotations

import select
import socket
import time

from reconciler.lab import netns
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT
from reconciler.model import Address

PATIENCE_S = 240.0
_FIRST_PORT = 20_000

Flow = tuple[str, int]
"""A client's address and port."""


def answers(lab: Lab, vip: Address, port: int, flows: int) -> dict[Flow, str]:
    """Who answers each of so many flows; AssertionError unless each has exactly one answer. One port of all clients at
    a time: what is under way at once fits into the queues of a veth."""
    clients = [str(own) for own in lab.topology.client if own.version == vip.version]
    return netns.inside(lab.netns(CLIENT), _ask_all, clients, (str(vip), port), flows)


def _ask_all(clients: list[str], to: tuple[str, int], flows: int) -> dict[Flow, str]:
    found: dict[Flow, str] = {}
    deadline_s = time.monotonic() + PATIENCE_S
    own_port = _FIRST_PORT
    while len(found) < flows:
        found |= _ask(clients[: flows - len(found)], own_port, to, deadline_s)
        own_port += 1
    return found


def _ask(clients: list[str], own_port: int, to: tuple[str, int], deadline_s: float) -> dict[Flow, str]:
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    found: dict[Flow, str] = {}
    poll = select.poll()
    sockets = {}
    try:
        for client in clients:
            made = socket.socket(family, socket.SOCK_DGRAM)
            sockets[made.fileno()] = made
            made.bind((client, own_port))
            poll.register(made, select.POLLIN)
            made.sendto(b"0", to)
        while len(found) < len(clients):
            ready = poll.poll(1000.0 * max(0.0, deadline_s - time.monotonic()))
            assert ready, f"{len(clients) - len(found)} of {len(clients)} flows from port {own_port} have no answer"
            for fd, _ in ready:
                answer, sender = sockets[fd].recvfrom(100)
                flow = sockets[fd].getsockname()[:2]
                assert sender[:2] == to and flow not in found, f"a second answer, or one of {sender}: {flow}"
                found[flow] = answer.split()[0].decode()
    finally:
        for made in sockets.values():
            made.close()
    return found
