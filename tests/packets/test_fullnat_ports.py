# SPDX-License-Identifier: Apache-2.0
"""Which ports connections of fullnat get, how long a port rests, and when it comes back."""

from __future__ import annotations

import random

import pytest

from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6, EndpointRowState, ModeCode, Verdict
from reconciler.dataplane.rows import Number
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kinds.snat import Snat, SnatKind
from reconciler.ports import TIGHT_PERCENT, pools, prune
from reconciler.readings.occupancy import occupancy
from tests.packets import balancer as node
from tests.packets.balancer import Balancer
from tests.packets.frames import At
from tests.packets.fullnat import SIX, Family, taken

pytestmark = pytest.mark.kernel

FIRST, PORTS = 2000, 150


@pytest.fixture
def balancer(fullnat_balancer: Balancer, family: Family) -> Balancer:
    """A web service, and few ports."""
    family.serve(fullnat_balancer)
    fullnat_balancer.sources(family.sources[0], first_port=FIRST, ports=PORTS)
    return fullnat_balancer


@pytest.fixture
def newcomer(family: Family) -> At:
    return family.many(PORTS + 1)[-1]


def test_every_port_is_given_out_once_and_only_then_are_connections_refused(
    balancer: Balancer, family: Family
) -> None:
    balancer.sources(*family.sources, first_port=FIRST, ports=PORTS)
    got = [family.opened(balancer, client) for client in family.many(2 * PORTS)]
    assert {(at.address, at.port) for at in got if at} == {
        (address, port) for address in family.sources for port in range(FIRST, FIRST + PORTS)
    }  # fmt: skip
    assert family.opened(balancer, family.client) is None
    assert balancer.verdicts()[Verdict.NO_PORT] == 1
    assert len(taken(balancer)) == 2 * PORTS
    assert taken(balancer, FIRST) == family.owned(balancer)


def test_a_port_is_found_when_one_of_all_is_free(balancer: Balancer, family: Family, newcomer: At) -> None:
    """Wherever it is, and wherever the cursor stands; it had no time to rest."""
    several = family.many(PORTS)
    for client in several:
        assert family.opened(balancer, client)
    for number in (0, 63, 64, 77, PORTS - 1):
        client = several[number]
        source = family.source_of(balancer.send(family.tcp(client, family.web, "A")).frame)
        balancer.send(family.tcp(client, family.web, "R"))  # over, but the place is kept for a while
        family.rest(balancer, 4)
        assert family.retried(balancer, newcomer) == source
        balancer.send(family.tcp(newcomer, family.web, "R"))
        family.rest(balancer, 4)
        for other in several:
            balancer.send(family.tcp(other, family.web, "A"))
        assert family.retried(balancer, client) == source


def test_a_port_rests_until_the_cursor_has_gone_round(balancer: Balancer, family: Family) -> None:
    ports, several = [], family.many(2 * PORTS)
    for number, client in enumerate(several):
        source = family.opened(balancer, client)
        assert source
        ports.append(source.port)
        if number >= 10:
            balancer.send(family.tcp(several[number - 10], family.web, "R"))
            family.rest(balancer, 1)
    assert ports == [FIRST + number % PORTS for number in range(2 * PORTS)]


def test_a_port_that_the_endpoint_closed_is_left_alone_while_others_are_free(
    balancer: Balancer, family: Family, newcomer: At
) -> None:
    client, source = At(family.client.address, FIRST + 70), At(family.sources[0], FIRST + 70)
    assert family.opened(balancer, client) == source
    balancer.send(family.tcp(family.server, source, "SA"), "back")
    balancer.send(family.tcp(client, family.web, "A"))
    balancer.send(family.tcp(family.server, source, "FA"), "back")
    balancer.send(family.tcp(client, family.web, "FA"))
    family.rest(balancer, 4)

    again = family.opened(balancer, client)

    assert again == At(source.address, FIRST), "the server still has the former connection in TIME_WAIT"
    assert source not in [family.opened(balancer, other) for other in family.many(PORTS - 2)]
    assert family.opened(balancer, newcomer) == source, "but a tired port is better than none"


@pytest.mark.parametrize("state", [EndpointRowState.DISABLED, EndpointRowState.FREE])
def test_ports_come_back_when_their_endpoint_goes(balancer: Balancer, family: Family, state: EndpointRowState) -> None:
    first, second = family.ids
    for client in family.many(PORTS):
        assert family.opened(balancer, client)
    balancer.endpoint(first, state=state)
    balancer.endpoint(second, family.server.address)
    balancer.ring(1, [second])
    assert family.opened(balancer, family.client), "of the same server, by another row"
    assert taken(balancer, FIRST) == family.owned(balancer)


def test_a_sweep_gives_back_the_ports_of_connections_that_are_no_more_and_no_others(
    balancer: Balancer, family: Family
) -> None:
    several = family.many(PORTS)
    for client in several:
        source = family.opened(balancer, client)
        assert source
        balancer.send(family.tcp(family.server, source, "SA"), "back")
        balancer.send(family.tcp(client, family.web, "A"))
    ended = several[:40]
    for client in ended:
        balancer.send(family.tcp(client, family.web, "R"))
    assert sweep(balancer, family) == 0, "they are kept for late packets"
    family.rest(balancer, 4)

    assert sweep(balancer, family) == len(ended)

    assert taken(balancer, FIRST) == family.owned(balancer)
    (pool,) = pools(balancer.kernel)
    server = f"[{family.server.address}]:80" if family is SIX else f"{family.server.address}:80"
    assert (pool.source, pool.server, pool.used, pool.free) == (family.sources[0], server, PORTS - 40, 40)
    assert sum(family.opened(balancer, client) is not None for client in ended) == len(ended)
    assert family.opened(balancer, family.client) is None


def sweep(balancer: Balancer, family: Family) -> int:
    """Have the whole table swept; returns how many connections are no more."""
    return balancer.kernel.sweep_translated(family.version, balancer.kernel.capacity(family.table.name))


def test_a_pool_goes_when_its_server_is_gone(balancer: Balancer, family: Family) -> None:
    number = family.ids[0]
    assert family.opened(balancer, family.client)
    balancer.send(family.tcp(family.client, family.web, "R"))
    family.rest(balancer, 4)
    assert sweep(balancer, family) == 1
    assert prune(balancer.kernel) == 0, "a row names the server still"
    assert family.opened(balancer, family.client)
    for spec in (ENDPOINTS, ENDPOINTS6):
        balancer.kernel.delete(spec.name, [spec.key.pack(Number(number))])
    assert prune(balancer.kernel) == 0, "its ports are taken still"
    sweep(balancer, family)
    assert prune(balancer.kernel) == 1
    assert pools(balancer.kernel) == []
    balancer.endpoint(number)
    assert family.opened(balancer, family.client)
    (pool,) = pools(balancer.kernel)
    assert (pool.number, pool.used) == (1, 1)


def test_an_endpoint_in_two_pools_is_one_server(balancer: Balancer, family: Family) -> None:
    mail = At(family.web.address, 25)
    balancer.endpoint(family.ids[1], family.server.address, port=80)
    balancer.serve(mail, ring=[family.ids[1]], index=2, mode=ModeCode.FULLNAT)
    first = family.opened(balancer, family.client)
    second = family.source_of(balancer.send(family.tcp(family.client, mail)).frame)
    assert first != second
    for source, service in ((first, family.web), (second, mail)):
        assert source
        reply = family.tcp(family.server, source, "SA")
        assert family.source_of(balancer.send(reply, "back").frame) == service


def test_ports_and_entries_agree_after_any_history(balancer: Balancer, family: Family) -> None:
    """Connections that open, close in any way, are forged, silent, and cut off, with few ports and a small table."""
    chance = random.Random(11)
    balancer.serve(family.dns, ring=[family.ids[0]], index=2, mode=ModeCode.FULLNAT, protocol=node.UDP)
    balancer.sources(*family.sources, first_port=FIRST, ports=PORTS)
    some = [At(client.address, port) for client in family.many(60) for port in (FIRST, FIRST + PORTS - 1, 40_000)]
    ways: dict[At, At] = {}
    for turn in range(4_000):
        client = chance.choice(some)
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                if source := family.opened(balancer, client):
                    ways[client] = source
            case 4:
                balancer.send(family.udp(client, family.dns))
            case 5 | 6:
                action, out = balancer.send(family.tcp(client, family.web, chance.choice(("A", "FA", "R", "PA"))))
                if action == XdpVerdict.REDIRECT:
                    ways[client] = family.source_of(out)  # such a packet opens one, too
            case 7 | 8 | 9 if client in ways:
                reply = family.tcp(family.server, ways[client], chance.choice(("SA", "A", "FA", "R")))
                action, out = balancer.send(reply, "back")
                if action == XdpVerdict.REDIRECT:
                    known = family.destination_of(out)
                    assert ways[known] == ways[client], "a reply went to a client that has another source"
            case 10:
                family.rest(balancer, chance.choice((1, 4, 30)))
            case 11 if turn % 50 == 0:
                state = chance.choice((EndpointRowState.DISABLED, EndpointRowState.USABLE))
                balancer.endpoint(family.ids[0], state=state)
            case _:
                balancer.endpoint(family.ids[0])
        if turn % 100 == 0:
            assert taken(balancer, FIRST) == family.owned(balancer)
    assert len(ways) > 100
    assert balancer.verdicts()[Verdict.REPLY] > 40


def test_ports_that_run_short_are_told_with_the_server_that_they_lead_to(balancer: Balancer, family: Family) -> None:
    (source, _), enough = family.sources, PORTS * TIGHT_PERCENT // 100
    kind, wanted = SnatKind(balancer.kernel), [Snat((source,), FIRST, PORTS, version=family.version)]
    several = family.many(enough)
    for client in several[:-1]:
        assert family.opened(balancer, client)
    assert list(kind.concerns(wanted)) == []

    assert family.opened(balancer, several[-1])

    (concern,) = kind.concerns(wanted)
    server = f"[{family.server.address}]:80" if family is SIX else f"{family.server.address}:80"
    assert f"{source} has {PORTS - enough} left towards {server}/tcp, {TIGHT_PERCENT} % are in use" in concern.text
    assert "snatAddresses" in concern.hint
    suffix = "6" if family is SIX else ""
    assert {each.map: each.used for each in occupancy(balancer.kernel)}[f"port_pools{suffix}"] == 1
