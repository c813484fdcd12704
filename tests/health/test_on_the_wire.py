# SPDX-License-Identifier: Apache-2.0
"""Checks between two namespaces: what needs raw sockets, ARP, ICMP errors of others, and marks."""

import os
import socket
import struct
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.sctp import (
    SCTP,
    SCTPChunkAbort,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkParamStateCookie,
)

from reconciler.health import place as places
from reconciler.health.checks.sctp import crc32c
from reconciler.health.way import SO_MARK, Way
from reconciler.kernel import next_hop, xdp
from reconciler.kernel.bpf import closing as closing_program
from reconciler.kernel.bpf import load_program
from reconciler.kernel.netns import within
from reconciler.lab import netns
from reconciler.model import CheckSize
from tests.health.run import LATE_S, outcome, outcomes, target, until

pytestmark = pytest.mark.kernel

PREFIX = f"lbh-{os.getpid()}"
HERE, THERE = f"{PREFIX}-here", f"{PREFIX}-there"
OWN = {4: "10.9.0.1", 6: "2001:db8:9::1"}
PEER = {4: "10.9.0.2", 6: "2001:db8:9::2"}
NOBODY = {4: "10.9.0.77", 6: "2001:db8:9::77"}
STRANGER = {4: "10.77.0.1", 6: "2001:db8:77::1"}
"""Behind the peer, which has no route to it."""
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

both = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    netns.destroy(PREFIX)
    try:
        netns.ip([f"netns add {HERE}", f"netns add {THERE}"])
        netns.ip([f"link add h0 netns {HERE} type veth peer name t0 netns {THERE}"])
        for name, link, addresses in ((HERE, "h0", OWN), (THERE, "t0", PEER)):
            netns.ip([
                "link set lo up", f"address add {addresses[4]}/24 dev {link}",
                f"address add {addresses[6]}/64 dev {link} nodad", f"link set {link} up",
            ], name)  # fmt: skip
        netns.ip([f"route add {STRANGER[v]} via {PEER[v]}" for v in (4, 6)], HERE)
        netns.write_sysctls(THERE, {
            "net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
            "net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0",
        })  # fmt: skip
        # Three seconds are long for a test. Timing decides nothing: it is waited for.
        netns.write_sysctls(HERE, {
            f"net/ipv{v}/neigh/h0/{setting}": value for v in (4, 6)
            for setting, value in (("retrans_time_ms", "50"), ("mcast_solicit", "2"))
        })  # fmt: skip
        for version in (4, 6):  # The first groups of IPv6 take a moment to be joined.
            until(lambda version=version: said("ping", PEER[version])[0] == "OK")
        yield
    finally:
        netns.destroy(PREFIX)


def said(kind, address, port=0, way=Way(), **more):  # noqa: B008 - it is frozen
    found = netns.inside(HERE, lambda: outcome(kind, port, address, way, **more))
    return found.verdict.name, found.error


@pytest.fixture(params=["0 2147483647", "1 0"], ids=["ping-socket", "raw-socket"])
def ping_group(request):
    netns.write_sysctls(HERE, {"net/ipv4/ping_group_range": request.param})


@both
def test_ping(version, ping_group):
    assert said("ping", PEER[version]) == ("OK", "")


@both
def test_pings_do_not_take_the_answers_of_others(version, ping_group):
    """Two at once to the same host, and one to a host that doesn't answer."""
    targets = [target("ping", 0, PEER[version], interval_s=float(i), timeout_s=5.0) for i in range(20)]
    targets.append(target("ping", 0, "192.0.2.1", timeout_s=LATE_S))
    found = netns.inside(HERE, lambda: outcomes(targets))
    assert [result.error for item, result in found if item.address == ip_address(PEER[version])] == [""] * 20
    assert [result.verdict.name for item, result in found if item.address == ip_address("192.0.2.1")] == ["UNREACHED"]


@both
def test_ping_of_nobody(version, ping_group):
    words = said("ping", NOBODY[version], timeout_s=5.0)
    assert words == ("UNREACHED", "host unreachable")


@both
def test_a_router_says_that_there_is_no_way(version):
    """It says so five times at most: then its kernel limits the rate."""
    expected = ("UNREACHED", "network unreachable")
    for kind, port in (("ping", 0), ("tcp", 80), ("sctp", 80)):
        assert said(kind, STRANGER[version], port) == expected, kind
    assert said("udp", STRANGER[version], 80, expect="x") == expected
    assert said("udp", STRANGER[version], 80) == expected


LONG_LOST = bytes.fromhex(
    "6112040000000000" "6111000000000000" "0701000087050000" "b700000002000000" "2d21010000000000" "b700000001000000"
    "9500000000000000"
)
"""r2 = data_end; r1 = data + 1415; r0 = XDP_PASS; if r1 <= r2: r0 = XDP_DROP; exit"""


def lose_long_ones():
    with closing_program(load_program("long_lost", LONG_LOST)) as program:
        xdp.swap("t0", "native", program, None)


@pytest.fixture
def narrow():
    """From here, packets of more than 1,400 bytes get lost on the way, and nobody says so."""
    netns.inside(THERE, lose_long_ones)
    yield
    netns.ip(["link set t0 xdp off"], THERE)


@both
def test_a_ping_of_full_size_fails_where_large_packets_get_lost(version, ping_group, narrow):
    full = CheckSize.FULL
    assert said("ping", PEER[version]) == ("OK", "")
    assert said("ping", PEER[version], timeout_s=LATE_S, size=full) == ("UNREACHED", "no answer within 200 ms")
    netns.ip(["link set h0 mtu 1400"], HERE)  # now it is known
    try:
        assert said("ping", PEER[version], size=full) == ("OK", "")
    finally:
        netns.ip(["link set h0 mtu 1500"], HERE)


def test_http_of_full_size_fails_where_large_packets_get_lost(narrow):
    with http_server() as port:
        assert said("http", PEER[4], port) == ("OK", "")
        verdict, words = said("http", PEER[4], port, timeout_s=LATE_S, size=CheckSize.FULL)
        assert verdict == "FAILED"
        assert words == "connected, but full packets get lost on the way (MTU), 1448 bytes and their headers"
        netns.ip([f"route replace 10.9.0.0/24 dev h0 src {OWN[4]} mtu 1400"], HERE)
        assert said("http", PEER[4], port, size=CheckSize.FULL) == ("OK", "")
        netns.ip([f"route replace 10.9.0.0/24 dev h0 src {OWN[4]}"], HERE)


@contextmanager
def http_server():
    """Answers each request as soon as it is whole, however long it is; its port."""
    with netns.inside(THERE, socket.create_server, ("0.0.0.0", 0)) as server:

        def answer():
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        data = b""
                        connection.settimeout(1.0)
                        while not data.endswith(b"\r\n\r\n"):
                            data += connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@both
def test_tcp_of_nobody(version):
    assert said("tcp", NOBODY[version], 80, timeout_s=5.0) == ("UNREACHED", "host unreachable")


@both
def test_link_that_is_down_is_no_fault_of_the_target(version):
    netns.ip(["link set h0 down"], HERE)
    try:
        verdict, words = said("tcp", PEER[version], 80, timeout_s=LATE_S)
    finally:
        netns.ip(["link set h0 up"], HERE)
        if version == 6:
            netns.ip([f"address replace {OWN[6]}/64 dev h0 nodad", f"route replace {STRANGER[6]} via {PEER[6]}"], HERE)
        netns.ip([f"route replace {STRANGER[4]} via {PEER[4]}"], HERE)
    assert (verdict, words) == ("UNREACHED", "network unreachable")


def test_it_is_known_what_of_the_node_keeps_packets_from_an_address():
    def lack(address):
        return netns.inside(HERE, next_hop.lack_of_way, ip_address(address))

    assert [lack(address) for address in (PEER[4], NOBODY[4], STRANGER[4], PEER[6], "127.0.0.1")] == [""] * 5
    assert lack("192.0.2.1") == "this node has no route to it"
    netns.ip(["link set t0 down"], THERE)
    try:
        assert lack(PEER[4]) == lack(STRANGER[4]) == "interface h0 has no carrier"
    finally:
        netns.ip(["link set t0 up", f"address replace {PEER[6]}/64 dev t0 nodad"], THERE)


@both
def test_udp_without_an_expected_answer_knows_that_nobody_is_there(version):
    """Also again and again: the kernel asks for the neighbour anew each time."""
    words = "no answer to ARP" if version == 4 else "no answer to neighbour discovery"
    for _ in range(4):
        found = said("udp", NOBODY[version], 5000, timeout_s=0.03)
        assert found in (("UNREACHED", words), ("UNREACHED", "host unreachable"))


@both
def test_udp_to_a_host_that_drops_is_silent_but_there(version):
    with closing(netns.inside(THERE, socket.socket, FAMILY[version], socket.SOCK_DGRAM)) as sock:
        sock.bind((PEER[version], 5001))
        assert said("udp", PEER[version], 5001, timeout_s=LATE_S) == ("OK", "")
        assert not netns.inside(HERE, lambda: next_hop.is_silent(ip_address(PEER[version])))


def test_next_hop():
    def silent(address):
        return netns.inside(HERE, lambda: next_hop.is_silent(ip_address(address)))

    said("udp", NOBODY[4], 5000, timeout_s=LATE_S)
    netns.ip([f"route add 10.78.0.0/24 via {NOBODY[4]}", f"route add 10.79.0.0/24 via {PEER[4]}"], HERE)
    said("tcp", PEER[4], 1)
    try:
        until(lambda: silent(NOBODY[4]))
        assert silent("10.78.0.5")           # by a router that is silent
        assert not silent("10.79.0.5")
        assert not silent("10.9.0.78")       # never asked
        assert not silent("127.0.0.1")       # no neighbour
        assert not silent("203.0.113.1")     # no route
    finally:
        netns.ip(["route del 10.78.0.0/24", "route del 10.79.0.0/24"], HERE)


@both
def test_mark(version):
    """Packets with the mark take a route of their own; without it there is no way."""
    address = {4: "10.80.0.1", 6: "2001:db8:80::1"}[version]
    netns.ip([f"address add {address}/{32 if version == 4 else 128} dev lo"], THERE)
    for words in ("rule add fwmark 7 table 77", f"route add {address} via {PEER[version]} table 77"):
        subprocess.run(netns.command(HERE, ["ip", f"-{version}", *words.split()]), check=True, timeout=20)
    with closing(netns.inside(THERE, socket.socket, FAMILY[version])) as listener:
        listener.bind((address, 8080))
        listener.listen(8)
        assert said("tcp", address, 8080, Way(mark=7)) == ("OK", "")
        assert said("tcp", address, 8080) == ("UNREACHED", "network unreachable")
    assert SO_MARK == 36


# SCTP: the server is played by scapy on a raw socket, since the kernel may have none.

class Server:
    """Answers each packet of SCTP with what `answer` makes of it, and remembers them."""

    def __init__(self, version, answer):
        self.answer, self.version = answer, version
        self.seen = []
        self.socket = netns.inside(THERE, socket.socket, FAMILY[version], socket.SOCK_RAW, 132)
        self.socket.settimeout(0.05)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.over.is_set():
            with suppress(TimeoutError):
                data, peer = self.socket.recvfrom(4096)
                packet = IP(data)[SCTP] if self.version == 4 else SCTP(data)
                self.seen.append(packet)
                for reply in self.answer(packet):
                    self.socket.sendto(bytes(reply), (peer[0], 0))

    def close(self):
        self.over.set()
        self.thread.join(20)
        self.socket.close()


def init_ack(packet, **changes):
    if not packet.haslayer(SCTPChunkInit):
        return []
    fields = {"sport": packet.dport, "dport": packet.sport, "tag": packet[SCTPChunkInit].init_tag} | changes
    theirs = fields.pop("theirs", 0x1234)
    ack = SCTPChunkInitAck(
        init_tag=theirs, a_rwnd=9999, n_out_streams=1, n_in_streams=1, init_tsn=5,
        params=[SCTPChunkParamStateCookie(cookie=b"cookie")],
    )  # fmt: skip
    return [SCTP(**fields) / ack]


def abort(packet, **fields):
    if not packet.haslayer(SCTPChunkInit):
        return []
    chunk = SCTPChunkAbort(TCB=fields.pop("reflected", 0))
    usual = {"sport": packet.dport, "dport": packet.sport, "tag": packet[SCTPChunkInit].init_tag}
    return [SCTP(**usual | fields) / chunk]


without_sctp = pytest.mark.skipif(Path("/proc/net/sctp").exists(), reason="the kernel speaks SCTP itself")


@without_sctp
@both
def test_sctp(version):
    with closing(Server(version, init_ack)) as server:
        assert said("sctp", PEER[version], 3868) == ("OK", "")
        until(lambda: len(server.seen) == 2)
    init, last = server.seen
    assert (init.dport, init.tag) == (3868, 0)
    chunk = init[SCTPChunkInit]
    assert chunk.init_tag
    assert (chunk.n_out_streams, chunk.n_in_streams) == (1, 1)
    assert chunk.a_rwnd >= 1500  # RFC 9260, section 3.3.2
    assert last.haslayer(SCTPChunkAbort)
    assert (last.sport, last.dport, last.tag) == (init.sport, 3868, 0x1234)
    for packet in server.seen:  # computed again by scapy
        checksum = packet.chksum
        del packet.chksum
        assert SCTP(bytes(packet)).chksum == checksum


@without_sctp
@both
def test_sctp_is_refused(version):
    for reply in (abort, lambda p: abort(p, tag=0, reflected=1)):
        with closing(Server(version, reply)):
            assert said("sctp", PEER[version], 3868) == ("FAILED", "refused")


@without_sctp
@pytest.mark.parametrize("answer", [
    lambda p: [], lambda p: init_ack(p, tag=7), lambda p: init_ack(p, sport=3869), lambda p: init_ack(p, dport=1),
    lambda p: abort(p, tag=9), lambda p: abort(p, tag=9, reflected=1), lambda p: [p], lambda p: [b"\xff" * 2000],
    lambda p: [bytes(init_ack(p)[0])[:20]], lambda p: [bytes(init_ack(p)[0])[:13]], lambda p: [b""],
    lambda p: [bytes(p)[:12] + struct.pack("!BBH", 2, 0, 0)],
], ids=range(12))  # fmt: skip
def test_what_is_no_answer_to_the_init_is_ignored(answer):
    with closing(Server(4, answer)):
        found = said("sctp", PEER[4], 3868, timeout_s=LATE_S)
    assert found == ("UNREACHED", "no answer within 200 ms")


@without_sctp
def test_an_association_without_a_tag_is_none():
    with closing(Server(4, lambda p: init_ack(p, theirs=0))):
        assert said("sctp", PEER[4], 3868) == ("FAILED", "the INIT ACK has no tag")


@without_sctp
def test_host_without_sctp():
    assert said("sctp", PEER[4], 3868) == ("FAILED", "protocol unreachable")


def test_checksum_of_sctp():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C (iSCSI)


def test_flood_of_answers_does_not_keep_the_others_waiting():
    """A host that sends junk as fast as it can, to a check that waits for something else."""
    flood = threading.Event()

    def shower():
        with closing(netns.inside(THERE, socket.socket, socket.AF_INET, socket.SOCK_RAW, 132)) as sock:
            while not flood.is_set():
                sock.sendto(b"\0" * 16, (OWN[4], 0))

    thread = threading.Thread(target=shower, daemon=True)
    thread.start()
    try:
        with closing(netns.inside(THERE, socket.socket)) as listener:
            listener.bind((PEER[4], 8081))
            listener.listen(64)
            targets = [target("sctp", 1, PEER[4], timeout_s=1.0)]
            targets += [target("tcp", 8081, PEER[4], interval_s=float(i)) for i in range(30)]
            began_s = time.monotonic()
            found = netns.inside(HERE, lambda: outcomes(targets))
            assert time.monotonic() - began_s < 15
    finally:
        flood.set()
        thread.join(20)
    assert sorted(result.verdict.name for _, result in found) == ["OK"] * 30 + ["UNREACHED"]


def test_checks_of_another_namespace_go_there_once_for_many(monkeypatch):
    visits = []
    monkeypatch.setattr(places, "within", lambda handle: (visits.append(handle), within(handle))[1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    place = places.Place(os.open(f"/run/netns/{HERE}", os.O_RDONLY | os.O_CLOEXEC))
    try:
        with http_server() as port:
            targets = [target("tcp", port, PEER[4], interval_s=float(i + 1)) for i in range(2 * places.AT_ONCE)]
            found = outcomes(targets, Way(place=place))
            assert {result.error for _, result in found} == {""}
            assert len(visits) == 2
            assert outcome("tcp", port, PEER[4], timeout_s=LATE_S).verdict.is_failure  # from outside
    finally:
        place.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
