# SPDX-License-Identifier: Apache-2.0
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface

import pytest

from reconciler.lab.lab import Lab
from reconciler.model import Endpoint, Fleet, Interface, Node, Pool, Protocol, Service

PREFIX = f"lbl-{os.getpid()}"

LabMaker = Callable[..., Lab]


def interface(name: str, *addresses: str) -> Interface:
    return Interface(name, addresses=tuple(map(IPv4Interface, addresses)))


def fleet_of(vip: str, endpoints: list[str], *interfaces: Interface, **service) -> Fleet:
    """One service `web` on port 80 with these endpoints, on one node `lb1`."""
    pool = Pool("web", tuple(Endpoint(IPv4Address(address)) for address in endpoints))
    web = Service("web", (IPv4Address(vip),), Protocol.TCP, (80,), "web", **service)
    return Fleet((web,), (pool,), (Node("lb1", interfaces),))


TWO_ARMS = (interface("front", "10.1.0.1/24"), interface("back", "10.2.0.1/24"))
ONE_ARM = (interface("eth0", "10.3.0.1/24"),)


@pytest.fixture
def start_lab(tmp_path) -> Iterator[LabMaker]:
    """Labs that are gone after the test."""
    started: list[Lab] = []

    def start(fleet: Fleet, **options) -> Lab:
        lab = Lab(fleet, prefix=PREFIX, run_dir=tmp_path / "run", **options)
        started.append(lab.__enter__())
        return lab

    yield start
    for lab in started:
        lab.close()
