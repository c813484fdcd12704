# SPDX-License-Identifier: Apache-2.0
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import settings

from reconciler.model import Endpoint, Fleet, Interface, Node, Pool, Protocol, Service

HERE = Path(__file__).parent

# The same examples each time, so that a test that passed here passes there; `make fuzz` looks for new ones. How long
# one takes decides nothing: machines may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("long", max_examples=50_000, deadline=None)
settings.load_profile("repeatable")

LONGEST = ("lab", "cli", "faults", "bench", "kernel", "agent", "explain", "packets")
"""Directories with the files that take the longest, mostly because they wait: they begin first, so none ends last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        room = item.path.relative_to(HERE).parts[0]
        return LONGEST.index(room) if room in LONGEST else len(LONGEST)

    items.sort(key=rank)  # within a room the order stays


NODE = Node("lb1", (Interface("front"), Interface("back")))


@pytest.fixture
def web_fleet():
    """One service with two endpoints."""
    pool = Pool("web", (Endpoint(IPv4Address("10.2.0.1"), 8080, 2), Endpoint(IPv4Address("10.2.0.2"), 8080)))
    service = Service("web", (IPv4Address("20.20.20.1"),), Protocol.TCP, (80,), "web")
    return Fleet((service,), (pool,), (NODE,))


@pytest.fixture
def two_services():
    """Two services with a pool of one endpoint each."""
    pools = tuple(
        Pool(name, (Endpoint(IPv4Address(f"10.2.0.{i}"), 8080),)) for i, name in enumerate(("red", "blue"), 1)
    )
    services = tuple(
        Service(pool.name, (IPv4Address(f"20.20.20.{i}"),), Protocol.TCP, (80,), pool.name)
        for i, pool in enumerate(pools, 1)
    )
    return Fleet(services, pools, (NODE,))
