# SPDX-License-Identifier: Apache-2.0
"""Ports of fullnat that run short are told before connections are refused."""

from __future__ import annotations

from reconciler.kinds.snat import Snat, SnatKind
from reconciler.ports import TIGHT_PERCENT
from reconciler.readings.occupancy import occupancy

from .balancer import Balancer
from .test_fullnat import SOURCE, balancer, clients, loaded, opened, serve  # noqa: F401 - fixtures

PORTS = 150


def test_ports_that_run_short_are_told_with_the_server_that_they_lead_to(balancer: Balancer) -> None:  # noqa: F811
    serve(balancer)
    balancer.sources(SOURCE, first_port=2000, ports=PORTS)
    kind, wanted = SnatKind(balancer.kernel), [Snat((SOURCE,), 2000, PORTS)]
    enough = PORTS * TIGHT_PERCENT // 100
    several = clients(enough)
    for client in several[:-1]:
        assert opened(balancer, client)
    assert list(kind.concerns(wanted)) == []

    assert opened(balancer, several[-1])

    (concern,) = kind.concerns(wanted)
    assert f"{SOURCE} has {PORTS - enough} left towards 10.2.0.11:80/tcp, {TIGHT_PERCENT} % are in use" in concern.text
    assert "snatAddresses" in concern.hint
    assert {each.map: each.used for each in occupancy(balancer.kernel)}["port_pools"] == 1
