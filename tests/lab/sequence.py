# SPDX-License-Identifier: Apache-2.0
"""Numbered datagrams from a lab's client to a VIP and back: none may be missing in the end.

Nothing sends a datagram again, so unlike a connection of TCP this hides no loss.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from reconciler.lab import netns
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, host_of

_LAST_S = 30.0
"""How long the last answers may take."""
_LOOK_S = 0.2


class Sequence:
    """Datagrams that are under way until `stop`."""

    def __init__(self, lab: Lab, vip: str, port: int, rate: float, flows: int) -> None:
        self._over = threading.Event()
        self._pause_s = flows / rate
        self._sent = [0] * flows
        self._answered: list[set[int]] = [set() for _ in range(flows)]
        self._threads: list[threading.Thread] = []
        for flow in range(flows):
            client = netns.inside(lab.netns(CLIENT), _connected, vip, port)
            for work in (self._send, self._receive):
                self._threads.append(threading.Thread(target=work, args=(flow, client), daemon=True))
        for thread in self._threads:
            thread.start()

    def _send(self, flow: int, client: socket.socket) -> None:
        while not self._over.wait(self._pause_s):
            self._sent[flow] += 1
            client.send(b"%d" % self._sent[flow])

    def _receive(self, flow: int, client: socket.socket) -> None:
        give_up = None
        with client:
            while not self._over.is_set() or len(self._answered[flow]) < self._sent[flow]:
                if self._over.is_set():
                    give_up = give_up or time.monotonic() + _LAST_S
                    if time.monotonic() > give_up:
                        return
                try:
                    self._answered[flow].add(int(client.recv(100)))
                except (TimeoutError, ConnectionRefusedError):
                    continue

    def stop(self) -> tuple[int, list[tuple[int, int]]]:
        """How many were sent, and the flow and number of each without an answer."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        numbered = [(flow, number) for flow, sent in enumerate(self._sent) for number in range(1, sent + 1)]
        return len(numbered), [(flow, number) for flow, number in numbered if number not in self._answered[flow]]


@contextmanager
def sequence(lab: Lab, vip: str, port: int, rate: float = 100, flows: int = 4) -> Iterator[Sequence]:
    """Send `rate` datagrams a second; endpoints answer at the ports that they have in the lab."""
    servers = [
        netns.inside(lab.netns(host_of(address)), _bound, str(address), each)
        for address, ports in lab.topology.endpoints.items() for each in dict.fromkeys(ports)
    ]  # fmt: skip
    over = threading.Event()
    threads = [threading.Thread(target=_answer, args=(server, over), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        made = Sequence(lab, vip, port, rate, flows)
        try:
            yield made
        finally:
            made.stop()
    finally:
        over.set()
        for thread in threads:  # a port is free once nobody waits at it any more
            thread.join()


def _connected(vip: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(_LOOK_S)
    made.connect((vip, port))
    return made


def _bound(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(_LOOK_S)
    made.bind((address, port))
    return made


def _answer(server: socket.socket, over: threading.Event) -> None:
    with server:
        while not over.is_set():
            try:
                content, client = server.recvfrom(100)
                server.sendto(content, client)
            except TimeoutError:
                continue
