# SPDX-License-Identifier: Apache-2.0
"""FullNAT with real sockets, over IPv4 and IPv6: many connections at once through few ports, UDP, and a server that
has TIME_WAIT."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab import netns
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, host_of

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

VIP, PORT, TARGET = "20.20.20.1", 80, 8080
SOURCE = "10.1.0.2"
ENDPOINT = "10.1.0.11"
PATIENCE_S = 240.0
CONNECTIONS = 1_000


def write(directory: Path, *, ports: str = "1024-65535", endpoint: str = "") -> Path:
    """Clients, endpoints and the balancer's only leg are in one network, and the balancer is nobody's gateway."""
    directory.mkdir(exist_ok=True)
    (directory / "site.yaml").write_text(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: [{PORT}], targetPort: {TARGET}, mode: fullnat, pool: web}}
---
apiVersion: lbctl/v1
kind: Service
metadata: {{name: names}}
spec: {{vip: {VIP}, protocol: udp, ports: [53], targetPort: 5353, mode: fullnat, pool: web}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec: {{endpoints: [{{address: {ENDPOINT}}}{endpoint}]}}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: [{{name: eth0, addresses: [10.1.0.1/24]}}]
  snatAddresses: [{SOURCE}]
  snatPorts: {ports}
""")
    return directory


@pytest.fixture
def site(start_lab: LabMaker, tmp_path: Path) -> Callable[..., Lab]:
    def start(**more: str) -> Lab:
        directory = write(tmp_path / "manifests", **more)
        lab = start_lab(load(directory).fleet)
        lab.apply(directory)
        return lab

    return start


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def echo_server(lab: Lab, *, at: str = ENDPOINT, closes: bool = False) -> Iterator[set[tuple[str, int]]]:
    """A server on the endpoint that says what it is told; with `closes`, it ends each connection after the first
    answer. Yields the clients as it sees them."""
    peers: set[tuple[str, int]] = set()

    def listening() -> socket.socket:
        return socket.create_server((at, TARGET), family=family_of(at), backlog=4096)

    def serve(server: socket.socket, over: threading.Event) -> None:
        with server, selectors.DefaultSelector() as selector, ExitStack() as stack:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ)
            while not over.is_set():
                for key, _ in selector.select(0.1):
                    if key.fileobj is server:
                        made, peer = server.accept()
                        stack.enter_context(made)
                        peers.add(peer[:2])
                        selector.register(made, selectors.EVENT_READ)
                        continue
                    assert isinstance(key.fileobj, socket.socket)
                    said = key.fileobj.recv(100)
                    if said:
                        key.fileobj.sendall(said)
                    if closes or not said:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()

    over = threading.Event()
    server = netns.inside(lab.netns(host_of(ip_address(at))), listening)
    thread = threading.Thread(target=serve, args=(server, over))
    thread.start()
    try:
        yield peers
    finally:
        over.set()
        thread.join()


def client_of(lab: Lab, address: str, port: int = 0) -> socket.socket:
    """A connection to the VIP."""
    def connected() -> socket.socket:
        made = socket.socket(family_of(address))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(PATIENCE_S)
        made.bind((address, port))
        made.connect((VIP6 if ":" in address else VIP, PORT))
        return made

    return netns.inside(lab.netns(CLIENT), connected)


def test_a_thousand_connections_at_once_share_one_source(site: Callable[..., Lab]) -> None:
    lab = site()
    first, second = (str(client) for client in lab.topology.client[:2])
    with echo_server(lab) as peers, ExitStack() as stack:
        made = [
            stack.enter_context(client_of(lab, address, 20_000 + number))
            for number in range(CONNECTIONS // 2) for address in (first, second)
        ]  # fmt: skip
        for number, each in enumerate(made):
            each.sendall(b"%d" % number)
        assert [each.recv(100) for each in made] == [b"%d" % number for number in range(CONNECTIONS)]
        assert len(peers) == CONNECTIONS
        assert {address for address, _ in peers} == {SOURCE}
        assert {20_000 + number for number in range(CONNECTIONS // 2)} <= {port for _, port in peers}
        counts = json.loads(lab.lbctl("get", "flows", "--state", "open", "-o", "json").stdout)["items"]
        assert len(counts) == CONNECTIONS


def test_doctor_tells_that_ports_run_short_until_there_are_more(site: Callable[..., Lab], tmp_path: Path) -> None:
    lab = site(ports="20000-20063")
    own, manifests = str(lab.topology.client[0]), tmp_path / "manifests"

    def told() -> str:
        return lab.lbctl("doctor", str(manifests), "--node", "lb1").stdout

    with echo_server(lab), ExitStack() as stack:
        made = [stack.enter_context(client_of(lab, own)) for _ in range(30)]
        assert "ports-nearly-used" not in told()
        made += [stack.enter_context(client_of(lab, own)) for _ in range(31)]
        found = told()
        assert "ports-nearly-used" in found and f"{SOURCE} has 3 left towards {ENDPOINT}" in found
        lab.apply(write(manifests))
        assert "ports-nearly-used" not in told()
        made.append(stack.enter_context(client_of(lab, own)))
        for each in made:
            each.sendall(b"still")
        assert [each.recv(100) for each in made] == [b"still"] * len(made)


def test_edits_break_no_connection_whose_endpoint_stays(site: Callable[..., Lab], tmp_path: Path) -> None:
    lab = site()
    with echo_server(lab), ExitStack() as stack:
        made = [stack.enter_context(client_of(lab, str(lab.topology.client[0]))) for _ in range(50)]
        for change in (", {address: 10.1.0.12}", "", ", {address: 10.1.0.13}"):
            lab.apply(write(tmp_path / "manifests", endpoint=change))
            for each in made:
                each.sendall(b"still")
            assert [each.recv(100) for each in made] == [b"still"] * len(made)


def test_datagrams_come_back(site: Callable[..., Lab]) -> None:
    lab = site()
    assert_datagrams_come_back(lab, str(lab.topology.client[0]), VIP, ENDPOINT, SOURCE)


def assert_datagrams_come_back(lab: Lab, client_at: str, vip: str, endpoint: str, source: str) -> None:
    def bound(address: str, port: int) -> socket.socket:
        made = socket.socket(family_of(address), socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(0.5)
        return made

    server = netns.inside(lab.netns(host_of(ip_address(endpoint))), bound, endpoint, 5353)
    client = netns.inside(lab.netns(CLIENT), bound, client_at, 0)
    with server, client:
        client.connect((vip, 53))
        for size in (1, 100, 1400):
            deadline = time.monotonic() + PATIENCE_S
            while True:  # the first may be lost while neighbours get to know each other
                client.send(bytes(size))
                assert time.monotonic() < deadline
                with contextlib.suppress(TimeoutError):
                    question, peer = server.recvfrom(2000)  # or one that was sent twice
                    server.sendto(question, peer)
                    if client.recv(2000) == bytes(size):
                        break
            assert peer[0] == source


def test_no_port_returns_into_the_servers_time_wait(site: Callable[..., Lab]) -> None:
    """The server closes each connection first. Of forty ports, twenty connections of clients with other clocks get one
    each that had none before."""
    lab = site(ports="2000-2039")
    clients = [str(client) for client in lab.topology.client]
    with echo_server(lab, closes=True) as peers:
        for number in range(20):
            with client_of(lab, clients[number % len(clients)], 2005) as made:
                made.sendall(b"bye")
                assert made.recv(100) == b"bye"
                assert made.recv(100) == b""
        assert len(peers) == 20


# --- IPv6 ---------------------------------------------------------------------------------------------------------
VIP6, SOURCE6, ENDPOINT6 = "2001:db8:20::1", "2001:db8:1::c9", "2001:db8:1::11"


def write6(directory: Path, endpoint: str = "") -> Path:
    """As `write`, over IPv6. The balancer answers neighbour discovery for its source."""
    directory.mkdir(exist_ok=True)
    text = write(directory, endpoint=endpoint).joinpath("site.yaml").read_text()
    text = text.replace(f"vip: {VIP}", f"vip: '{VIP6}'").replace(f"address: {ENDPOINT}", f"address: '{ENDPOINT6}'")
    text = text.replace("10.1.0.1/24", "'2001:db8:1::1/64'").replace(f"[{SOURCE}]", f"['{SOURCE6}']")
    (directory / "site.yaml").write_text(text)
    return directory


@pytest.fixture
def site6(start_lab: LabMaker, tmp_path: Path) -> Lab:
    directory = write6(tmp_path / "manifests")
    lab = start_lab(load(directory).fleet)
    lab.apply(directory)
    return lab


def test_hundreds_of_connections_over_ipv6_share_one_source_and_outlive_edits(site6: Lab, tmp_path: Path) -> None:
    first, second = [str(client) for client in site6.topology.client if client.version == 6][:2]
    count = 200
    with echo_server(site6, at=ENDPOINT6) as peers, ExitStack() as stack:
        made = [
            stack.enter_context(client_of(site6, address, 20_000 + number))
            for number in range(count // 2) for address in (first, second)
        ]  # fmt: skip
        for change in ("", ", {address: '2001:db8:1::12'}", ", {address: '2001:db8:1::13'}"):
            site6.lbctl("apply", str(write6(tmp_path / "manifests", change)), "--auto-approve")
            for number, each in enumerate(made):
                each.sendall(b"%d" % number)
            assert [each.recv(100) for each in made] == [b"%d" % number for number in range(count)]
        assert len(peers) == count
        assert {address for address, _ in peers} == {SOURCE6}
        ports = json.loads(site6.lbctl("get", "ports", "-o", "json").stdout)["items"]
        assert [(pool["source"], pool["server"], pool["used"]) for pool in ports] == [
            (SOURCE6, f"[{ENDPOINT6}]:{TARGET}", count)
        ]
        # Another capacity has other tables.
        text = (tmp_path / "manifests/site.yaml").read_text()
        (tmp_path / "manifests/site.yaml").write_text(text + "  capacity: {flows: 700000}\n")
        done = site6.lbctl("apply", str(tmp_path / "manifests"), "--auto-approve")
        assert done.returncode == 0, done.stdout + done.stderr
        for number, each in enumerate(made):
            each.sendall(b"%d" % number)
        assert [each.recv(100) for each in made] == [b"%d" % number for number in range(count)]


def test_datagrams_over_ipv6_come_back(site6: Lab) -> None:
    client = next(str(client) for client in site6.topology.client if client.version == 6)
    assert_datagrams_come_back(site6, client, VIP6, ENDPOINT6, SOURCE6)
