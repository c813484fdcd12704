# SPDX-License-Identifier: Apache-2.0
"""Proof that a service of UDP works: each client's datagrams are answered in the name of the VIP, by one endpoint of
the pool, and all endpoints have clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from reconciler.lab import netns
from reconciler.lab.lab import Lab
from reconciler.lab.prove import weights_of
from reconciler.lab.topology import host_of
from reconciler.model import Address, Service

from .direct import answer_datagrams, udp_answers, udp_socket

QUESTIONS = 3
RELIABLE_SHARE = 0.2
"""An endpoint with at least this share gets none of 64 clients once in 1.6 million runs."""


@contextmanager
def serving(lab: Lab, at: Mapping[Address, tuple[str, int]]) -> Iterator[None]:
    """On each endpoint a server at an address and port, which answers with the endpoint's address."""
    over = threading.Event()
    threads = []
    try:
        for endpoint, (address, port) in at.items():
            server = netns.inside(lab.netns(host_of(endpoint)), udp_socket, address, port)
            threads.append(threading.Thread(target=answer_datagrams, args=(server, str(endpoint).encode(), over)))
            threads[-1].start()
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def prove_datagrams(lab: Lab, service: Service) -> int:
    """Ask the first and the last port of each VIP of a service; how many answers came. Raises AssertionError."""
    pool = next(pool for pool in lab.fleet.pools if pool.name == service.pool)
    answered = 0
    for vip in service.vips:
        for port in sorted({service.ports[0], service.ports[-1]}):
            by_place = weights_of(lab.fleet, service, port)
            weights = {name.rpartition(":")[0]: weight for name, weight in by_place.items()}
            at = {
                e.address: (str(vip), port) if service.mode.is_dsr else (
                    str(e.address), e.port or service.target_port or port
                )
                for e in pool.endpoints
            }  # fmt: skip
            with serving(lab, at):
                answers = udp_answers(lab, vip, port, QUESTIONS)
            homes = [set(of_client) for of_client in answers]
            assert all(len(home) == 1 for home in homes), f"clients of {vip}:{port} went from one endpoint to another"
            found = set().union(*homes)
            assert found <= weights.keys(), f"answers from {sorted(found)}, not all of them in the pool"
            due = {name for name, weight in weights.items() if weight / sum(weights.values()) >= RELIABLE_SHARE}
            assert due <= found, f"{sorted(due - found)} answered none of {len(answers)} clients of {vip}:{port}"
            answered += sum(map(len, answers))
    return answered
