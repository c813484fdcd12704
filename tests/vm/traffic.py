# SPDX-License-Identifier: Apache-2.0
"""Real sockets: servers that say who they are, a client, and what passed between router and balancer meanwhile."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from reconciler.lab import netns
from reconciler.model import Address
from tests.vm.fleet import Case
from tests.vm.site import BALANCER, CLIENT, ROUTER, Site, address, mac, port

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "sctp": socket.IPPROTO_SCTP, "udp": socket.IPPROTO_UDP}

_PORTS = iter(range(20_000, 60_000))
"""Each connection comes from a port of its own, which decides where it goes: the same in each run."""
_CHUNK_BYTES = 16_384
_LARGE_BYTES = 100_000
"""Takes full packets, which don't fit into a tunnel at first."""
_LENGTH = struct.Struct("!I")
_ETH_P_ALL, _PACKET_OUTGOING = 3, 4
_SO_RCVBUFFORCE = 33


def _open(case: Case) -> socket.socket:
    """A socket in the namespace of the calling thread."""
    family = socket.AF_INET6 if ":" in case.vip else socket.AF_INET
    kind = socket.SOCK_DGRAM if case.protocol == "udp" else socket.SOCK_STREAM
    return socket.socket(family, kind, PROTOCOLS[case.protocol])


# --- servers and client ------------------------------------------------------------------------------------------
@contextmanager
def served(site: Site, cases: Iterable[Case]) -> Iterator[None]:
    """A server on each host of each case, at the VIP itself or, by nat, at the host's own address: it answers with the
    host's name and what it was sent."""

    def listen(case: Case, host: str) -> socket.socket:
        server = _open(case)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if case.way == "nat":
            server.bind((address(host, 6 if ":" in case.vip else 4), case.server_port))
        else:
            server.bind((case.vip, case.port))
        if case.protocol != "udp":
            server.listen(64)
        return server

    with ExitStack() as stack:
        for case, host in [(each, host) for each in cases for host in each.hosts]:
            server = stack.enter_context(netns.inside(site.netns(host), listen, case, host))
            serve = _serve_datagrams if case.protocol == "udp" else _serve_streams
            threading.Thread(target=serve, args=(server, host.encode()), daemon=True).start()
            stack.callback(_wake, server)
        yield


def _wake(server: socket.socket) -> None:
    try:
        server.shutdown(socket.SHUT_RDWR)
    except OSError:  # Of SCTP it ends no accept(); the thread ends with the process.
        return


def _serve_streams(server: socket.socket, name: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, name), daemon=True).start()


def _answer(connection: socket.socket, name: bytes) -> None:
    with connection:
        connection.settimeout(20)
        try:
            _send(connection, name, _receive(connection))
        except OSError:
            return


def _serve_datagrams(server: socket.socket, name: bytes) -> None:
    while True:
        try:
            content, client = server.recvfrom(65_536)
            if client is None:  # It was shut down.
                return
            server.sendto(name + b" " + content, client)
        except OSError:
            return


def _send(stream: socket.socket, name: bytes, payload: bytes) -> None:
    message = name + b" " + payload
    message = _LENGTH.pack(len(message)) + message
    for start in range(0, len(message), _CHUNK_BYTES):
        stream.sendall(message[start : start + _CHUNK_BYTES])


def _receive(stream: socket.socket) -> bytes:
    """What `_send` sent. SCTP keeps messages apart, TCP doesn't; neither matters here."""
    content = bytearray()
    while len(content) < _LENGTH.size or len(content) < _LENGTH.size + _LENGTH.unpack_from(content)[0]:
        part = stream.recv(_CHUNK_BYTES)
        if not part:
            raise ConnectionError("the other side ended the connection early")
        content += part
    return bytes(content[_LENGTH.size :])


def ask(site: Site, case: Case, requests: int, payload: bytes = b"", limit_s: float = 5) -> list[str]:
    """Ask so many times, each from another port; who answered each, or what went wrong."""

    def once(source_port: int) -> str:
        with _open(case) as client:
            client.settimeout(limit_s)
            client.bind(("", source_port))
            try:
                client.connect((case.vip, case.port))
                if case.protocol == "udp":
                    client.send(b" " + payload)
                    answer = client.recv(65_536)
                else:
                    _send(client, b"", payload)
                    answer = _receive(client)
            except OSError as error:
                return f"{type(error).__name__}: {error}"
        name, _, echo = answer.partition(b" ")
        return name.decode() if echo == b" " + payload else f"{name.decode()} with {len(echo)} bytes of something else"

    def every() -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(once, [next(_PORTS) for _ in range(requests)]))

    return netns.inside(site.netns(CLIENT), every)


# --- what passes the balancer --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Packet:
    """A packet on the balancer's link. `protocol` is what the IP header announces: 4 and 41 are tunnels."""

    to_balancer: bool
    macs: bytes
    source: Address
    destination: Address
    protocol: int


class Tap:
    def __init__(self, tap: socket.socket) -> None:
        self._tap = tap

    def packets(self) -> list[Packet]:
        """All since it was opened or asked last."""
        found = []
        while True:
            try:
                frame, origin = self._tap.recvfrom(128)
            except BlockingIOError:
                return found
            to_balancer = origin[2] == _PACKET_OUTGOING
            # What the bridge only floods to this port is for somebody else.
            if not to_balancer or frame[:6] == bytes.fromhex(mac(BALANCER).replace(":", "")):
                found += _decode(frame, to_balancer)


def _decode(frame: bytes, to_balancer: bool) -> Iterator[Packet]:
    version, macs = frame[12:14], frame[:12]
    if version == b"\x08\x00":
        addresses = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
        yield Packet(to_balancer, macs, *addresses, frame[23])
    elif version == b"\x86\xdd":
        addresses6 = IPv6Address(frame[22:38]), IPv6Address(frame[38:54])
        yield Packet(to_balancer, macs, *addresses6, frame[20])


@contextmanager
def tapped(site: Site) -> Iterator[Tap]:
    """Watch the link between router and balancer."""

    def listen() -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        tap.setblocking(False)
        tap.bind((port(BALANCER), _ETH_P_ALL))
        return tap

    with netns.inside(site.netns(ROUTER), listen) as tap:
        yield Tap(tap)


# --- the proof -----------------------------------------------------------------------------------------------------
def prove(site: Site, case: Case, *, requests: int = 16, limit_s: float = 5) -> None:
    """Check that requests reach exactly the case's hosts, that the balancer sends them on as it says, and that replies
    pass it by nat only. AssertionError says what is wrong."""
    vip = ip_address(case.vip)
    with tapped(site) as tap:
        answers = ask(site, case, requests, b"x" * 100, limit_s)
        packets = tap.packets()
    replies = [packet for packet in packets if packet.to_balancer != (case.way == "nat") and packet.source == vip]
    if case.way == "nat":
        assert len(replies) >= requests, f"{len(replies)} packets of replies passed the balancer"
    else:
        assert not replies, f"{len(replies)} packets of replies passed the balancer"
    wrong = [answer for answer in answers if answer not in case.hosts]
    assert not wrong, f"{len(wrong)} of {requests} requests failed: {'; '.join(sorted(set(wrong)))}"
    assert set(answers) == set(case.hosts), f"only {sorted(set(answers))} answered"
    sent = [packet for packet in packets if not packet.to_balancer and _goes_on(packet, case)]
    assert len(sent) >= requests, f"the balancer sent {len(sent)} packets on for {requests} requests"
    if case.protocol != "udp":
        answers = ask(site, case, 2, bytes(i % 251 for i in range(_LARGE_BYTES)), limit_s)
        assert set(answers) <= set(case.hosts), f"large requests: {answers}"


def _goes_on(packet: Packet, case: Case) -> bool:
    if case.way == "mac":
        return packet.destination == ip_address(case.vip) and packet.protocol == PROTOCOLS[case.protocol]
    if case.way == "nat":
        own = [ip_address(address(host, packet.destination.version)) for host in case.hosts]
        return packet.destination in own and packet.protocol == PROTOCOLS[case.protocol]
    inner, _, outer = case.way.partition("-in-")
    tunnel = socket.IPPROTO_IPIP if inner == "4" else socket.IPPROTO_IPV6
    return packet.destination.version == int(outer) and packet.protocol == tunnel
