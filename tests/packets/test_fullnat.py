# SPDX-License-Identifier: Apache-2.0
"""What fullnat makes of requests, replies and errors, whole frames; and which ports its connections get."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from reconciler.dataplane.layout import (
    ENDPOINTS,
    POOL_PORTS,
    RETURNS,
    TRANSLATED,
    UNANSWERED,
    EndpointRowState,
    ModeCode,
    UndefinedCode,
    Verdict,
)
from reconciler.dataplane.rows import Number
from reconciler.kernel.bpf import XdpVerdict
from reconciler.limits import Sizes
from reconciler.ports import pools, prune
from tests.packets import balancer as node
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, ROUTER, WEB, Balancer, loaded_balancer, macs_towards
from tests.packets.frames import At, forwarded, frame, padded, tcp, translated, udp

pytestmark = pytest.mark.kernel

SERVER = At(ENDPOINTS_AT[1], 80)
SOURCE, SECOND = "10.2.0.201", "10.2.0.202"
OTHER = At("192.0.2.9", CLIENT.port)
"""A client behind the router, with the same port as the other one."""
FEATURES = ("FULLNAT", "UDP", "ROUND_ROBIN", "SOURCE_HASH", "MAGLEV", "REJECT", "ECHO", "ALLOWED_SOURCES", "VLAN")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    run_dir = tmp_path_factory.mktemp("lbf-run")
    with loaded_balancer(run_dir, f"lbf-{os.getpid()}", FEATURES, Sizes(flows=4_000)) as made:
        yield made


@pytest.fixture
def balancer(loaded: Balancer) -> Iterator[Balancer]:
    loaded.sources(SOURCE)
    loaded.endpoint(1)
    yield loaded
    loaded.clear()


def serve(balancer: Balancer, protocol: int = node.TCP) -> None:
    balancer.serve(ring=[1], mode=ModeCode.FULLNAT, protocol=protocol)


def to_server(content: bytes, source: At, server: At = SERVER) -> bytes:
    return forwarded(translated(content, source=source, destination=server), macs_towards(SERVER.address))


def to_client(content: bytes, client: At, next_hop: str = "") -> bytes:
    return forwarded(translated(content, source=WEB, destination=client), macs_towards(next_hop or client.address))


def source_of(content: bytes) -> At:
    packet = Ether(content)
    return At(packet[IP].src, (packet[UDP] if UDP in packet else packet[TCP]).sport)


def opened(balancer: Balancer, client: At) -> At | None:
    """The source that a new connection gets; None if it is refused."""
    action, content = balancer.send(tcp(client, WEB, "S"))
    return source_of(content) if action == XdpVerdict.REDIRECT else None


def retried(balancer: Balancer, client: At) -> At | None:
    """The same for a client that tries again: at each try, a full pool looks at eight of its ports for one whose
    connection is no more."""
    return next((source for _ in range(150 // 8 + 1) if (source := opened(balancer, client))), None)


def clients(count: int, port: int = 40_000) -> list[At]:
    return [At(f"198.51.{number // 250}.{number % 250 + 1}", port) for number in range(count)]


def rest(balancer: Balancer, units: int) -> None:
    """Let all connections be silent for so much longer."""
    words = balancer.kernel.words(TRANSLATED.name)
    assert words is not None
    who = words.reshape(-1, 16)[:, :4]
    taken = who >> np.uint64(14) != 0
    seen = (who & np.uint64(0x7FF)) - np.uint64(units) & np.uint64(0x7FF)
    who[taken] = (who >> np.uint64(11) << np.uint64(11) | seen)[taken]


def taken(balancer: Balancer) -> set[tuple[int, int]]:
    """The ports that pools have given away: pairs of the pool's number and the port, counted from the first."""
    words = balancer.kernel.words(POOL_PORTS.name)
    assert words is not None
    bits = words.reshape(-1, POOL_PORTS.value_size // 8)[:, -4096::4]
    return {
        (pool, word * 64 + bit) for pool, word in np.argwhere(bits).tolist()
        for bit in range(64) if int(bits[pool, word]) >> bit & 1
    }  # fmt: skip


def owned(balancer: Balancer) -> set[tuple[int, int]]:
    """The ports that entries have, as `taken`; each has a word that replies find it by, and there is no other word."""
    entries, words = balancer.kernel.words(TRANSLATED.name), balancer.kernel.words(RETURNS.name)
    assert entries is not None
    assert words is not None
    table = entries.reshape(-1, 16)
    assert not ((table[:, 8:12] != 0) & (table[:, :4] >> np.uint64(14) == 0)).any(), "a free place has a port"
    own = {
        (way & 0x7FFF, (way >> 16 & 0xFFFF), bucket * 4 + place)
        for (bucket, place), way in zip(
            np.argwhere(table[:, 8:12]).tolist(), table[:, 8:12][table[:, 8:12] != 0].tolist(), strict=True
        )
    }  # fmt: skip
    assert {(w >> 43, w >> 27 & 0xFFFF, (w & (1 << 27) - 1) - 1) for w in words[words != 0].tolist()} == own
    return {(pool, port) for pool, port, _ in own}


def test_a_request_leaves_with_the_clients_port_and_its_reply_finds_back(balancer: Balancer) -> None:
    serve(balancer)
    syn, syn_ack = padded(tcp(CLIENT, WEB, "S")), tcp(SERVER, At(SOURCE, CLIENT.port), "SA")

    assert balancer.send(syn) == (XdpVerdict.REDIRECT, to_server(syn, At(SOURCE, CLIENT.port)))
    assert balancer.send(syn_ack, "back") == (XdpVerdict.REDIRECT, to_client(syn_ack, CLIENT))
    data = tcp(CLIENT, WEB, "PA", b"GET /")
    assert balancer.send(data).frame == to_server(data, At(SOURCE, CLIENT.port))
    assert balancer.verdicts() == {Verdict.REQUEST: 2, Verdict.REPLY: 1}


def test_clients_with_one_port_get_two(balancer: Balancer) -> None:
    serve(balancer)
    first, second = opened(balancer, CLIENT), opened(balancer, OTHER)

    assert first == At(SOURCE, CLIENT.port)
    assert second == At(SOURCE, 1024)
    for client, source, hop in ((CLIENT, first, ""), (OTHER, second, ROUTER)):
        reply = tcp(SERVER, source, "SA")
        assert balancer.send(reply, "back").frame == to_client(reply, client, hop)


def test_an_endpoint_on_the_clients_leg_answers_by_the_same_interface(balancer: Balancer) -> None:
    serve(balancer)
    balancer.endpoint(1, CLIENT.address)
    syn = tcp(OTHER, WEB, "S")

    action, out = balancer.send(syn, "front")

    assert action == XdpVerdict.TX
    source = At(SOURCE, OTHER.port)
    assert out == forwarded(
        translated(syn, source=source, destination=At(CLIENT.address, 80)), macs_towards(CLIENT.address)
    )
    reply = tcp(At(CLIENT.address, 80), source, "SA")
    assert balancer.send(reply, "front") == (XdpVerdict.TX, to_client(reply, OTHER, ROUTER))


def test_a_datagram_without_a_checksum_keeps_none(balancer: Balancer) -> None:
    serve(balancer, node.UDP)
    for has_sum in (True, False):
        datagram = UDP(sport=CLIENT.port, dport=80) if has_sum else UDP(sport=CLIENT.port, dport=80, chksum=0)
        content = frame(CLIENT.address, WEB.address, datagram / Raw(b"hello"))
        wanted = Ether(to_server(content, At(SOURCE, CLIENT.port)))
        if not has_sum:
            wanted[UDP].chksum = 0
        assert balancer.send(content).frame == bytes(wanted)
    reply = udp(SERVER, At(SOURCE, CLIENT.port))
    assert balancer.send(reply, "back").frame == to_client(reply, CLIENT)


def test_what_belongs_to_no_connection_is_the_kernels(balancer: Balancer) -> None:
    """It answers with a reset, since the source is one of its own addresses."""
    serve(balancer)
    opened(balancer, CLIENT)
    for stranger in (tcp(SERVER, At(SOURCE, 1), "A"), tcp(At(SERVER.address, 81), At(SOURCE, CLIENT.port), "A"),
                     tcp(At(ENDPOINTS_AT[2], 80), At(SOURCE, CLIENT.port), "A")):  # fmt: skip
        assert balancer.send(stranger, "back") == (XdpVerdict.PASS, stranger)


def quoted(content: bytes) -> IP:
    """As a router quotes a packet that it got."""
    packet = Ether(content)[IP]
    return IP(bytes(packet)[:28])


@pytest.mark.parametrize("kind", [(3, 1), (3, 4), (11, 0)])
def test_errors_reach_who_sent_what_they_are_about(balancer: Balancer, kind: tuple[int, int]) -> None:
    serve(balancer)
    source = opened(balancer, CLIENT)
    assert source
    type_, code = kind

    def about(sender: At, receiver: At) -> bytes:
        segment = TCP(sport=sender.port, dport=receiver.port)
        return bytes(IP(src=sender.address, dst=receiver.address, id=7) / segment)[:28]

    behind = frame("10.2.0.254", SOURCE, ICMP(type=type_, code=code) / Raw(about(source, SERVER)))
    action, out = balancer.send(behind, "back")
    assert action == XdpVerdict.REDIRECT
    wanted = frame("10.2.0.254", CLIENT.address, ICMP(type=type_, code=code) / Raw(about(CLIENT, WEB)))
    assert out == forwarded(wanted, macs_towards(CLIENT.address))

    before = frame(ROUTER, WEB.address, ICMP(type=type_, code=code) / Raw(about(WEB, CLIENT)))
    action, out = balancer.send(before, "front")
    assert action == XdpVerdict.REDIRECT
    wanted = frame(ROUTER, SERVER.address, ICMP(type=type_, code=code) / Raw(about(SERVER, source)))
    assert out == forwarded(wanted, macs_towards(SERVER.address))


def test_every_port_is_given_out_once_and_only_then_are_connections_refused(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources(SOURCE, SECOND, first_port=2000, ports=150)

    got = [opened(balancer, client) for client in clients(300)]

    assert {(at.address, at.port) for at in got if at} == {
        (address, port) for address in (SOURCE, SECOND) for port in range(2000, 2150)
    }  # fmt: skip
    assert opened(balancer, CLIENT) is None
    assert balancer.verdicts()[Verdict.NO_PORT] == 1
    assert len(taken(balancer)) == 300
    assert {(pool, port + 2000) for pool, port in taken(balancer)} == owned(balancer)


def test_a_port_is_found_when_one_of_all_is_free(balancer: Balancer) -> None:
    """Wherever it is, and wherever the cursor stands; it had no time to rest."""
    serve(balancer)
    balancer.sources(SOURCE, first_port=2000, ports=150)
    for client in clients(150):
        assert opened(balancer, client)
    for number in (0, 63, 64, 77, 149):
        client = clients(150)[number]
        source = source_of(balancer.send(tcp(client, WEB, "A")).frame)
        balancer.send(tcp(client, WEB, "R"))  # over, but the place is kept for a while
        rest(balancer, 4)
        assert retried(balancer, At("192.0.2.77", 7)) == source
        balancer.send(tcp(At("192.0.2.77", 7), WEB, "R"))
        rest(balancer, 4)
        for other in clients(150):
            balancer.send(tcp(other, WEB, "A"))
        assert retried(balancer, client) == source


def test_a_port_rests_until_the_cursor_has_gone_round(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources(SOURCE, first_port=2000, ports=150)
    ports = []
    for number, client in enumerate(clients(300)):
        source = opened(balancer, client)
        assert source
        ports.append(source.port)
        if number >= 10:
            balancer.send(tcp(clients(300)[number - 10], WEB, "R"))
            rest(balancer, 1)
    assert ports == [2000 + number % 150 for number in range(300)]


def test_a_port_that_the_endpoint_closed_is_left_alone_while_others_are_free(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources(SOURCE, first_port=2000, ports=150)
    first = opened(balancer, At(CLIENT.address, 2070))
    assert first == At(SOURCE, 2070)
    balancer.send(tcp(SERVER, first, "SA"), "back")
    balancer.send(tcp(At(CLIENT.address, 2070), WEB, "A"))
    balancer.send(tcp(SERVER, first, "FA"), "back")
    balancer.send(tcp(At(CLIENT.address, 2070), WEB, "FA"))
    rest(balancer, 4)

    again = opened(balancer, At(CLIENT.address, 2070))

    assert again == At(SOURCE, 2000), "the server still has the former connection in TIME_WAIT"
    others = [opened(balancer, client) for client in clients(148)]
    assert At(SOURCE, 2070) not in others
    assert opened(balancer, At("192.0.2.77", 7)) == At(SOURCE, 2070), "but a tired port is better than none"


@pytest.mark.parametrize("state", [EndpointRowState.DISABLED, EndpointRowState.FREE])
def test_ports_come_back_when_their_endpoint_goes(balancer: Balancer, state: EndpointRowState) -> None:
    serve(balancer)
    balancer.sources(SOURCE, first_port=2000, ports=150)
    for client in clients(150):
        assert opened(balancer, client)
    balancer.endpoint(1, state=state)
    balancer.endpoint(2, SERVER.address)
    balancer.ring(1, [2])
    assert opened(balancer, CLIENT), "of the same server, by another row"
    assert {(pool, port + 2000) for pool, port in taken(balancer)} == owned(balancer)


def test_a_sweep_gives_back_the_ports_of_connections_that_are_no_more_and_no_others(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources(SOURCE, first_port=2000, ports=150)
    for client in clients(150):
        source = opened(balancer, client)
        assert source
        balancer.send(tcp(SERVER, source, "SA"), "back")
        balancer.send(tcp(client, WEB, "A"))
    ended = clients(150)[:40]
    for client in ended:
        balancer.send(tcp(client, WEB, "R"))
    buckets = balancer.kernel.capacity(TRANSLATED.name)
    assert balancer.kernel.sweep_translated(4, buckets) == 0, "they are kept for late packets"
    rest(balancer, 4)

    assert balancer.kernel.sweep_translated(4, buckets) == len(ended)

    assert {(pool, port + 2000) for pool, port in taken(balancer)} == owned(balancer)
    (pool,) = pools(balancer.kernel)
    assert (pool.source, pool.server, pool.used, pool.free) == (SOURCE, "10.2.0.11:80", 110, 40)
    assert sum(opened(balancer, client) is not None for client in ended) == len(ended)
    assert opened(balancer, CLIENT) is None


def test_a_pool_goes_when_its_server_is_gone(balancer: Balancer) -> None:
    serve(balancer)
    assert opened(balancer, CLIENT)
    assert prune(balancer.kernel) == 0
    balancer.endpoint(1, state=EndpointRowState.FREE)
    balancer.kernel.delete(ENDPOINTS.name, [ENDPOINTS.key.pack(Number(1))])
    assert prune(balancer.kernel) == 0, "its ports are taken still"
    balancer.kernel.sweep_translated(4, balancer.kernel.capacity(TRANSLATED.name))
    assert prune(balancer.kernel) == 1
    assert pools(balancer.kernel) == []
    balancer.endpoint(1)
    assert opened(balancer, CLIENT)
    (pool,) = pools(balancer.kernel)
    assert (pool.number, pool.used) == (1, 1)


def test_an_endpoint_in_two_pools_is_one_server(balancer: Balancer) -> None:
    serve(balancer)
    balancer.endpoint(2, SERVER.address)
    balancer.serve(At("20.20.20.2", 80), ring=[2], index=2, mode=ModeCode.FULLNAT)
    first = opened(balancer, CLIENT)
    second = source_of(balancer.send(tcp(CLIENT, At("20.20.20.2", 80), "S")).frame)
    assert first != second
    for source, vip in ((first, WEB), (second, At("20.20.20.2", 80))):
        assert source
        reply = tcp(SERVER, source, "SA")
        assert source_of(balancer.send(reply, "back").frame) == vip


def test_ports_and_entries_agree_after_any_history(balancer: Balancer) -> None:
    """Connections that open, close in any way, are forged, silent, and cut off, with few ports and a small table."""
    chance = random.Random(11)
    serve(balancer)
    balancer.serve(At(WEB.address, 53), ring=[1], index=2, mode=ModeCode.FULLNAT, protocol=node.UDP)
    balancer.sources(SOURCE, SECOND, first_port=2000, ports=150)
    some = [At(client.address, port) for client in clients(60) for port in (2000, 2149, 40_000)]
    ways: dict[At, At] = {}
    for turn in range(4_000):
        client = chance.choice(some)
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                if source := opened(balancer, client):
                    ways[client] = source
            case 4:
                balancer.send(udp(client, At(WEB.address, 53)))
            case 5 | 6:
                balancer.send(tcp(client, WEB, chance.choice(("A", "FA", "R", "PA"))))
            case 7 | 8 | 9 if client in ways:
                reply = tcp(SERVER, ways[client], chance.choice(("SA", "A", "FA", "R")))
                action, out = balancer.send(reply, "back")
                if action == XdpVerdict.REDIRECT:
                    packet = Ether(out)
                    known = At(packet[IP].dst, packet[TCP].dport)
                    assert ways[known] == ways[client], "a reply went to a client that has another source"
            case 10:
                rest(balancer, chance.choice((1, 4, 30)))
            case 11 if turn % 50 == 0:
                balancer.endpoint(1, state=chance.choice((EndpointRowState.DISABLED, EndpointRowState.USABLE)))
            case _:
                balancer.endpoint(1)
        if turn % 100 == 0:
            assert {(pool, port + 2000) for pool, port in taken(balancer)} == owned(balancer)
    assert len(ways) > 100
    assert balancer.verdicts()[Verdict.REPLY] > 40


def unanswered(balancer: Balancer, endpoint: int) -> int:
    """How many SYNs for an endpoint were sent again."""
    (value,) = balancer.kernel.lookup(UNANSWERED.name, [UNANSWERED.key.pack(Number(endpoint))])
    return 0 if value is None else UNANSWERED.value.unpack(value)[0]


def test_a_syn_that_is_sent_again_counts_as_unanswered_until_somebody_answers(balancer: Balancer) -> None:
    serve(balancer)
    source = opened(balancer, CLIENT)
    assert source
    before = unanswered(balancer, 1)
    assert [opened(balancer, CLIENT) for _ in range(3)] == [source] * 3
    assert unanswered(balancer, 1) == before + 3
    balancer.send(tcp(SERVER, source, "SA"), "back")
    for flags in ("A", "S", "FA", "S"):
        assert source_of(balancer.send(tcp(CLIENT, WEB, flags)).frame) == source
    assert unanswered(balancer, 1) == before + 3


def test_a_dead_endpoint_keeps_open_connections_and_gets_no_other_ones(balancer: Balancer) -> None:
    serve(balancer)
    balancer.serve(At(WEB.address, 53), ring=[1], index=2, mode=ModeCode.FULLNAT, protocol=node.UDP)
    source, other = opened(balancer, CLIENT), opened(balancer, OTHER)
    assert source
    assert other
    assert Ether(balancer.send(udp(CLIENT, At(WEB.address, 53))).frame)[IP].dst == SERVER.address
    balancer.send(tcp(SERVER, source, "SA"), "back")
    balancer.send(tcp(CLIENT, WEB, "A"))
    balancer.endpoint(2)
    balancer.ring(1, [2])
    balancer.ring(2, [2])
    balancer.endpoint(1, state=EndpointRowState.DEAD)

    _, moved = balancer.send(tcp(OTHER, WEB, "S"))

    assert Ether(moved)[IP].dst == ENDPOINTS_AT[2], "nobody has answered it"
    kept = tcp(CLIENT, WEB, "PA", b"GET /")
    assert balancer.send(kept).frame == to_server(kept, source)
    reply = tcp(SERVER, source, "PA", b"200")
    assert balancer.send(reply, "back").frame == to_client(reply, CLIENT)
    assert Ether(balancer.send(udp(CLIENT, At(WEB.address, 53))).frame)[IP].dst == ENDPOINTS_AT[2]
    late = tcp(SERVER, other, "SA")
    assert balancer.send(late, "back") == (XdpVerdict.PASS, late), "its port came back, so the kernel resets it"
    assert {(pool, port + 1024) for pool, port in taken(balancer)} == owned(balancer)


def test_without_a_source_connections_are_refused(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources()
    balancer.vip(SOURCE, UndefinedCode.PASS)
    assert opened(balancer, CLIENT) is None
    assert balancer.verdicts() == {Verdict.NO_PORT: 1}
