# SPDX-License-Identifier: Apache-2.0
"""A client of UDP whose datagrams have numbers, and servers that send them back: whether each number is answered."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, host_of
from reconciler.model import Address

EVERY_S, AGAIN_S = 0.02, 0.5
PATIENCE_S = 30.0


def _bound(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(0.1)
    return made


class Echo:
    """A server on an endpoint, which sends back `ADDRESS NUMBER`; at the endpoint's own address, or at a VIP."""

    def __init__(self, lab: Lab, endpoint: Address, port: int, at: Address | None = None) -> None:
        self._name = str(endpoint).encode()
        self._socket = netns.inside(lab.netns(host_of(endpoint)), _bound, str(at or endpoint), port)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _answer(self) -> None:
        with self._socket:
            while not self._over.is_set():
                with suppress(TimeoutError):
                    number, client = self._socket.recvfrom(100)
                    self._socket.sendto(self._name + b" " + number, client)


class Numbers:
    """The client: from one port, a number every 20 ms, and once more each half a second until it is answered: what was
    on its way when an endpoint left may be lost, as with any datagram. `homes` has who answered, in order."""

    def __init__(self, lab: Lab, vip: Address, port: int) -> None:
        self.homes: list[str] = []
        self.again = 0
        self._to = str(vip), port
        own = next(address for address in lab.topology.client if address.version == vip.version)
        self._socket = netns.inside(lab.netns(CLIENT), _bound, str(own), 0)
        self._open: dict[int, float] = {}
        self._sent = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._hear)]
        for thread in self._threads:
            thread.start()

    def await_home(self, *homes: Address) -> None:
        """Until answers come from these endpoints alone."""
        wanted = set(map(str, homes))
        begin = len(self.homes)
        wait_until(f"answers come from {homes}", lambda: len(self.homes) > begin, PATIENCE_S)
        wait_until(f"answers come from {homes}", lambda: {*self.homes[-10:]} <= wanted, PATIENCE_S)

    def stop(self) -> list[int]:
        """Send no new numbers; those that nobody has answered within half a minute."""
        sent, end_s = self._sent, time.monotonic() + PATIENCE_S
        self._over.set()
        while self._open and time.monotonic() < end_s:
            time.sleep(EVERY_S)
        left = sorted(self._open)
        assert sent > 0
        self._open.clear()
        for thread in self._threads:
            thread.join()
        self._socket.close()
        return left

    def _send(self) -> None:
        while not self._over.is_set() or self._open:
            now_s = time.monotonic()
            with self._lock:
                late = [number for number, sent_s in self._open.items() if now_s - sent_s > AGAIN_S]
                self.again += len(late)
                fresh = [] if self._over.is_set() else [self._sent]
                self._sent += len(fresh)
                self._open.update(dict.fromkeys([*late, *fresh], now_s))
            for number in (*late, *fresh):
                with suppress(ConnectionError):
                    self._socket.sendto(str(number).encode(), self._to)
            time.sleep(EVERY_S)

    def _hear(self) -> None:
        while not self._over.is_set() or self._open:
            with suppress(TimeoutError, ConnectionError):
                home, number = self._socket.recv(100).split()
                with self._lock:
                    if self._open.pop(int(number), None) is not None:
                        self.homes.append(home.decode())
