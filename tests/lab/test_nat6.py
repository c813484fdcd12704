# SPDX-License-Identifier: Apache-2.0
"""NAT over IPv6 with real sockets, from the example: TCP, UDP, and a path that carries 1,280 bytes on either side."""

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

EXAMPLE = Path(__file__).parents[2] / "examples/configs/nat-ipv6"
VIP, PORT, TARGET = "2001:db8:20::71", 443, 8443
CLIENTS, ENDPOINTS = "2001:db8:71::/64", "2001:db8:72::/64"
PATIENCE_S = 240.0
LARGE = bytes(range(250)) * 400
NAME = 16


@pytest.fixture
def lab(start_lab: LabMaker) -> Lab:
    lab = start_lab(load(EXAMPLE).fleet)
    done = lab.lbctl("apply", str(EXAMPLE), "--auto-approve")
    assert done.returncode == 0, done.stdout + done.stderr
    return lab


def bound(kind: int, address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.settimeout(0.5)
    return made


@contextmanager
def servers(lab: Lab, kind: int) -> Iterator[None]:
    """On each endpoint a server that answers with its address and all that it is sent."""
    over = threading.Event()

    def serve(server: socket.socket, name: bytes) -> None:
        with server:
            while not over.is_set():
                try:
                    if kind == socket.SOCK_DGRAM:
                        question, client = server.recvfrom(2000)
                        server.sendto(name + question, client)
                    else:
                        answer(server.accept()[0], name)
                except TimeoutError:
                    continue

    def answer(connection: socket.socket, name: bytes) -> None:
        with connection:
            connection.settimeout(PATIENCE_S)
            connection.sendall(name + everything(connection))

    threads = []
    for address in lab.topology.endpoints:
        server = netns.inside(lab.netns(host_of(address)), bound, kind, str(address), TARGET)
        if kind == socket.SOCK_STREAM:
            server.listen()
        threads.append(threading.Thread(target=serve, args=(server, str(address).encode().ljust(NAME))))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def everything(connection: socket.socket) -> bytes:
    found = bytearray()
    while piece := connection.recv(65_536):
        found += piece
    return bytes(found)


def carried(lab: Lab, content: bytes) -> bytes:
    """What comes back of a connection by which this is sent; the sender's name comes first."""
    client = netns.inside(lab.netns(CLIENT), bound, socket.SOCK_STREAM, str(lab.topology.client[0]), 0)
    with client:
        client.settimeout(PATIENCE_S)
        client.connect((VIP, PORT))
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        return everything(client)


@contextmanager
def narrow(lab: Lab, device: str, network: str) -> Iterator[None]:
    """The balancer's way to a network carries less. (A device with a smaller MTU would take in less, too.)"""
    netns.ip([f"route add {network} dev {device} metric 1 mtu lock 1280"], lab.balancer)
    yield
    netns.ip([f"route del {network} dev {device} metric 1"], lab.balancer)


def test_connections_are_carried_to_all_endpoints_also_where_the_path_is_narrow(lab: Lab) -> None:
    with servers(lab, socket.SOCK_STREAM):
        answers = [carried(lab, b"hello") for _ in range(4)]
        assert {answer[NAME:] for answer in answers} == {b"hello"}
        assert {answer[:NAME].strip().decode() for answer in answers} == set(map(str, lab.topology.endpoints))
        for device, network in (("eth1", ENDPOINTS), ("eth0", CLIENTS)):  # what clients send, then what endpoints send
            with narrow(lab, device, network):
                assert carried(lab, LARGE)[NAME:] == LARGE
        told = lab.lbctl("get", "verdicts", "-o", "json").stdout
        assert "too big answered" in told, told


def test_datagrams_come_back_and_the_flow_is_told(lab: Lab) -> None:
    with servers(lab, socket.SOCK_DGRAM):
        client = netns.inside(lab.netns(CLIENT), bound, socket.SOCK_DGRAM, str(lab.topology.client[0]), 0)
        with client:
            client.connect((VIP, PORT))
            for size in (1, 2, 1_000, 1_400):
                for _ in range(int(PATIENCE_S / 0.5)):  # some get lost while neighbours get to know each other
                    client.send(LARGE[:size])
                    try:
                        answer = client.recv(2000)
                    except TimeoutError:
                        continue
                    if len(answer) == NAME + size:
                        break
                assert answer[NAME:] == LARGE[:size]
            source, port = client.getsockname()[:2]
    rows = json.loads(lab.lbctl("get", "flows", "--service", f"[{VIP}]:{PORT}", "-o", "json").stdout)["items"]
    assert [(row["protocol"], row["state"]) for row in rows] == [("udp", "open")]
    assert f"{source}" in json.dumps(rows) and str(port) in json.dumps(rows)
