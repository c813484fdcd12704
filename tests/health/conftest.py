# SPDX-License-Identifier: Apache-2.0
import socket
import threading
from contextlib import closing, suppress

import pytest

PATIENCE_S = 20.0


@pytest.fixture
def serve():
    """A function that starts a TCP server on loopback and gives its port. `talk` gets each connection, in a thread of
    its own; it is closed afterwards. `serve.peers` has the addresses of clients."""
    stops = []

    def start(talk, family=socket.AF_INET, address="127.0.0.1"):
        listener = socket.socket(family)
        listener.bind((address, 0))
        listener.listen(4096)
        over = threading.Event()
        threads = []

        def answer(connection):
            with closing(connection), suppress(OSError):
                connection.settimeout(PATIENCE_S)
                talk(connection)

        def accept():
            while True:
                try:
                    connection, peer = listener.accept()
                except OSError:
                    return
                if over.is_set():
                    connection.close()
                    return
                start.peers.append(peer)
                threads.append(threading.Thread(target=answer, args=(connection,), daemon=True))
                threads[-1].start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()

        def stop():
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            for thread in (accepting, *threads):
                thread.join(PATIENCE_S)

        stops.append(stop)
        return listener.getsockname()[1]

    start.peers = []
    yield start
    for stop in stops:
        stop()


@pytest.fixture
def serve_udp():
    """A function that starts a UDP server on loopback and gives its port. `answer` gets each datagram and gives those
    to be sent back."""
    stops = []

    def start(answer):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE_S)

        def run():
            while True:
                try:
                    data, peer = sock.recvfrom(65_536)
                except OSError:
                    return
                if data == b"\0stop":
                    return
                for reply in answer(data):
                    with suppress(OSError):
                        sock.sendto(reply, peer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def stop():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"\0stop", sock.getsockname())
            thread.join(PATIENCE_S)
            sock.close()

        stops.append(stop)
        return sock.getsockname()[1]

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def closed_port():
    """A port on loopback that nobody listens on, and that nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def frozen_port():
    """A port whose connections the kernel accepts, but no program."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(4096)
        yield sock.getsockname()[1]
