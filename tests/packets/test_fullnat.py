# SPDX-License-Identifier: Apache-2.0
"""What fullnat makes of requests, replies and errors: whole frames, against a model that computes every checksum
anew."""

from __future__ import annotations

from types import ModuleType

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.packet import Packet

from reconciler.dataplane.layout import UNANSWERED, EndpointRowState, ModeCode, UndefinedCode, Verdict
from reconciler.dataplane.rows import Number
from reconciler.kernel.bpf import XdpVerdict
from reconciler.ports import pools
from tests.packets import balancer as node
from tests.packets import test_nat6, test_nat_errors
from tests.packets.balancer import STRANGER, STRANGER6, Balancer, macs_towards
from tests.packets.frames import At, answered, answered6, forwarded, translated
from tests.packets.fullnat import FOUR, SIX, Family, taken

pytestmark = pytest.mark.kernel


@pytest.fixture
def balancer(fullnat_balancer: Balancer) -> Balancer:
    return fullnat_balancer


@pytest.fixture
def source(family: Family) -> At:
    """Of the first connection: the first address, with the client's own port."""
    return At(family.sources[0], family.client.port)


def test_requests_and_replies_are_translated(balancer: Balancer, family: Family, source: At) -> None:
    family.serve(balancer)
    for flags, payload in (("S", b""), ("A", b"odd"), ("PA", bytes(range(200)))):
        request = family.tcp(family.client, family.web, flags, payload)
        reply = family.tcp(family.server, source, "A", payload)
        assert balancer.send(request) == (XdpVerdict.REDIRECT, family.to_server(request, source))
        assert balancer.send(reply, "back") == (XdpVerdict.REDIRECT, family.to_client(reply, family.client))
    assert balancer.verdicts() == {Verdict.REQUEST: 3, Verdict.REPLY: 3}


def test_clients_with_one_port_get_two(balancer: Balancer, family: Family, source: At) -> None:
    family.serve(balancer)
    assert family.opened(balancer, family.client) == source
    assert family.opened(balancer, family.other) == At(source.address, 1024)
    for client, own in ((family.client, source), (family.other, At(source.address, 1024))):
        reply = family.tcp(family.server, own, "SA")
        assert balancer.send(reply, "back").frame == family.to_client(reply, client)


def test_an_endpoint_on_the_clients_leg_answers_by_the_same_interface(
    balancer: Balancer, family: Family, source: At
) -> None:
    family.serve(balancer)
    neighbour = family.neighbour(family.client)
    balancer.endpoint(family.ids[0], neighbour)
    syn, server = family.tcp(family.other, family.web), At(neighbour, 80)
    sent = forwarded(translated(syn, source=source, destination=server), macs_towards(neighbour))
    assert balancer.send(syn, "front") == (XdpVerdict.TX, sent)
    reply = family.tcp(server, source, "SA")
    assert balancer.send(reply, "front") == (XdpVerdict.TX, family.to_client(reply, family.other))


def test_datagrams_are_translated_and_those_without_a_checksum_get_none(
    balancer: Balancer, family: Family, source: At
) -> None:
    family.serve(balancer, node.UDP)
    for payload in (b"", b"odd", bytes(1400)):
        question, answer = family.udp(family.client, family.web, payload), family.udp(family.server, source, payload)
        assert balancer.send(question).frame == family.to_server(question, source)
        assert balancer.send(answer, "back").frame == family.to_client(answer, family.client)
    bare = family.udp(family.client, family.web, chksum=0)
    assert balancer.send(bare).frame == family.to_server(bare, source)


ERRORS = [
    pytest.param(family, errors, kind, quoted, id=f"ipv{family.version}-{name}-{quoted}")
    for family, errors in ((FOUR, test_nat_errors), (SIX, test_nat6))
    for name, kind in errors.ERRORS.items() for quoted in errors.QUOTED
]  # fmt: skip


@pytest.mark.parametrize(("family", "errors", "kind", "quoted"), ERRORS)
def test_errors_reach_who_sent_what_they_are_about(
    balancer: Balancer, family: Family, source: At, errors: ModuleType, kind: Packet, quoted: int
) -> None:
    family.serve(balancer)
    assert family.opened(balancer, family.client) == source
    client, web, server = family.client, family.web, family.server

    def about(sender: At, receiver: At, router: str, to: At) -> bytes:
        return errors.error(router, to.address, errors.segment(sender, receiver), kind, quoted)

    of_reply = about(web, client, errors.ROUTER_BEFORE, web)
    meant = about(server, source, errors.ROUTER_BEFORE, server)
    assert balancer.send(of_reply) == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(server.address)))
    of_request = about(source, server, errors.ROUTER_BEHIND, source)
    meant = about(client, web, errors.ROUTER_BEHIND, client)
    hop = macs_towards(family.neighbour(client))
    assert balancer.send(of_request, "back") == (XdpVerdict.REDIRECT, forwarded(meant, hop))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ICMP_ERROR: 1, Verdict.ERROR_RELAYED: 1}


def test_what_is_too_big_is_answered_both_ways(balancer: Balancer, family: Family, source: At) -> None:
    family.serve(balancer)
    assert family.opened(balancer, family.client) == source
    for content, side in (
        (family.tcp(family.client, family.web, "A", bytes(1500)), "front"),
        (family.tcp(family.server, source, "A", bytes(1500)), "back"),
    ):
        if family is SIX:
            told = answered6(content, ICMPv6PacketTooBig(mtu=1500), 1232)
        else:
            told = answered(content, ICMP(type=3, code=4, nexthopmtu=1500), 504)
        assert balancer.send(content, side) == (XdpVerdict.TX, told)


def test_for_a_neighbour_without_a_known_mac_the_kernel_gets_what_it_forwards(
    balancer: Balancer, family: Family, source: At
) -> None:
    stranger = STRANGER6 if family is SIX else STRANGER
    balancer.endpoint(family.ids[0], stranger)
    family.serve(balancer)
    request = family.tcp(family.client, family.web)
    meant = translated(request, source=source, destination=At(stranger, 80))
    assert balancer.send(request) == (XdpVerdict.PASS, meant)


def test_what_belongs_to_no_connection_is_the_kernels_or_undefined_traffic(
    balancer: Balancer, family: Family, source: At
) -> None:
    """The kernel answers with a reset, since the source is one of its own addresses."""
    family.serve(balancer)
    assert family.opened(balancer, family.client) == source
    for sender, receiver in (
        (family.server, At(source.address, 1)), (At(family.server.address, 81), source), (family.second, source),
        (family.server, At(family.sources[1], source.port)),
    ):  # fmt: skip
        stranger = family.tcp(sender, receiver, "A")
        assert balancer.send(stranger, "back") == (XdpVerdict.PASS, stranger)
    for elsewhere in (family.tcp(family.client, At(family.web.address, 81)), family.udp(family.client, family.web)):
        assert balancer.send(elsewhere).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.UNDEFINED: 2}


def test_both_versions_of_ip_have_pools_of_their_own(loaded_fullnat: Balancer) -> None:
    for index, family in enumerate((FOUR, SIX), start=1):
        loaded_fullnat.sources(family.sources[0])
        loaded_fullnat.endpoint(family.ids[0])
        loaded_fullnat.serve(family.web, ring=[family.ids[0]], index=index, mode=ModeCode.FULLNAT)
        assert family.opened(loaded_fullnat, family.client) == At(family.sources[0], family.client.port)
    found = pools(loaded_fullnat.kernel)
    assert [pool.version for pool in found] == [4, 6]
    assert len({pool.number for pool in found}) == len(taken(loaded_fullnat)) == 2
    loaded_fullnat.clear()


def unanswered(balancer: Balancer, endpoint: int) -> int:
    """How many SYNs for an endpoint were sent again."""
    (value,) = balancer.kernel.lookup(UNANSWERED.name, [UNANSWERED.key.pack(Number(endpoint))])
    return 0 if value is None else UNANSWERED.value.unpack(value)[0]


def test_a_syn_that_is_sent_again_counts_as_unanswered_until_somebody_answers(
    balancer: Balancer, family: Family, source: At
) -> None:
    family.serve(balancer)
    assert family.opened(balancer, family.client) == source
    before = unanswered(balancer, family.ids[0])
    assert [family.opened(balancer, family.client) for _ in range(3)] == [source] * 3
    assert unanswered(balancer, family.ids[0]) == before + 3
    balancer.send(family.tcp(family.server, source, "SA"), "back")
    for flags in ("A", "S", "FA", "S"):
        assert family.source_of(balancer.send(family.tcp(family.client, family.web, flags)).frame) == source
    assert unanswered(balancer, family.ids[0]) == before + 3


def test_a_dead_endpoint_keeps_open_connections_and_gets_no_other_ones(
    balancer: Balancer, family: Family, source: At
) -> None:
    first, second = family.ids
    asked = family.udp(family.client, family.dns)
    family.serve(balancer)
    balancer.serve(family.dns, ring=[first], index=2, mode=ModeCode.FULLNAT, protocol=node.UDP)
    assert family.opened(balancer, family.client) == source
    other = family.opened(balancer, family.other)
    assert other
    assert family.destination_of(balancer.send(asked).frame).address == family.server.address
    balancer.send(family.tcp(family.server, source, "SA"), "back")
    balancer.send(family.tcp(family.client, family.web, "A"))
    balancer.endpoint(second)
    balancer.ring(1, [second])
    balancer.ring(2, [second])
    balancer.endpoint(first, state=EndpointRowState.DEAD)

    moved = balancer.send(family.tcp(family.other, family.web)).frame

    assert family.destination_of(moved) == family.second, "nobody has answered it"
    kept = family.tcp(family.client, family.web, "PA", b"GET /")
    assert balancer.send(kept).frame == family.to_server(kept, source)
    reply = family.tcp(family.server, source, "PA", b"200")
    assert balancer.send(reply, "back").frame == family.to_client(reply, family.client)
    assert family.destination_of(balancer.send(asked).frame).address == family.second.address
    late = family.tcp(family.server, other, "SA")
    assert balancer.send(late, "back") == (XdpVerdict.PASS, late), "its port came back, so the kernel resets it"
    assert taken(balancer, 1024) == family.owned(balancer)


def test_without_a_source_connections_are_refused(balancer: Balancer, family: Family) -> None:
    family.serve(balancer)
    balancer.sources(version=family.version)
    balancer.vip(family.sources[0], UndefinedCode.PASS)
    assert family.opened(balancer, family.client) is None
    assert balancer.verdicts() == {Verdict.NO_PORT: 1}
