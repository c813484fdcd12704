# SPDX-License-Identifier: Apache-2.0
"""NAT of UDP with real sockets: datagrams of all sizes both ways, and errors that reach the client's socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab import netns
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, host_of

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

VIP, PORT, TARGET = "20.20.20.1", 53, 5353
FULL = 1472
"""Bytes of payload that fill an Ethernet frame; what has more comes in fragments."""
SIZES = (1, 2, 3, 100, 1462, FULL - 1, FULL, FULL + 1, 2 * FULL + 9, 9_000, 60_000)
BYTES = bytes(range(256)) * 235
NAME = len("10.2.0.11 ")
PATIENCE_S = 30.0


@pytest.fixture
def lab(start_lab: LabMaker, tmp_path: Path) -> Lab:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "names.yaml").write_text(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: names}}
spec: {{vip: {VIP}, protocol: udp, ports: [{PORT}], targetPort: {TARGET}, algorithm: round-robin, pool: names}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: names}}
spec: {{endpoints: [{{address: 10.2.0.11}}, {{address: 10.2.0.12}}]}}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
""")
    lab = start_lab(load(directory).fleet)
    done = lab.lbctl("apply", str(directory), "--auto-approve")
    assert done.returncode == 0, done.stdout + done.stderr
    return lab


def udp_socket(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(0.2)
    return made


@contextmanager
def servers(lab: Lab) -> Iterator[None]:
    """On each endpoint a server that answers with its address and what it was sent."""
    over = threading.Event()

    def answer(server: socket.socket, name: bytes) -> None:
        with server:
            while not over.is_set():
                try:
                    question, client = server.recvfrom(65_535)
                    server.sendto(name + question, client)
                except TimeoutError:
                    continue

    threads = []
    for address in lab.topology.endpoints:
        server = netns.inside(lab.netns(host_of(address)), udp_socket, str(address), TARGET)
        threads.append(threading.Thread(target=answer, args=(server, f"{address} ".encode())))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def ask(client: socket.socket, question: bytes) -> bytes:
    """The answer; datagrams may get lost while neighbours get to know each other."""
    for _ in range(int(PATIENCE_S / 0.2)):
        client.send(question)
        try:
            return client.recv(65_535)
        except TimeoutError:
            continue
    raise AssertionError("nobody answers")


def connected(lab: Lab) -> socket.socket:
    """A socket that takes datagrams of the VIP and its port alone."""
    client = netns.inside(lab.netns(CLIENT), udp_socket, str(lab.topology.client[0]), 0)
    client.connect((VIP, PORT))
    return client


def test_datagrams_of_all_sizes_come_back_from_one_endpoint_a_flow(lab: Lab) -> None:
    with servers(lab):
        homes = []
        for _ in range(2):
            with connected(lab) as client:
                answers = [ask(client, BYTES[:size]) for size in SIZES]
                name = answers[0][:NAME]
                assert answers == [name + BYTES[:size] for size in SIZES]
                homes.append(name)
        assert sorted(homes) == [b"10.2.0.11 ", b"10.2.0.12 "]
    asked = ("--client", str(lab.topology.client[0]), "--service", f"{VIP}:{PORT}", "--state", "open", "-o", "json")
    rows = json.loads(lab.lbctl("get", "flows", *asked).stdout)["items"]
    service = f"{VIP}:{PORT}/udp"
    assert [(row["protocol"], row["service"], row["state"]) for row in rows] == [("udp", service, "open")] * 2


def test_a_client_is_told_that_nobody_listens(lab: Lab) -> None:
    with connected(lab) as client, pytest.raises(ConnectionRefusedError):
        ask(client, b"who?")
