# SPDX-License-Identifier: Apache-2.0
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from reconciler.lab.lab import Lab
from reconciler.model import Endpoint, Fleet, Interface, Node, Pool, Protocol, Service

from .web import Web, addresses, manifests, written

PREFIX = f"lbl-{os.getpid()}"

LabMaker = Callable[..., Lab]
WebMaker = Callable[..., Web]


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


@pytest.fixture
def start_web(start_lab: LabMaker, tmp_path: Path) -> WebMaker:
    """A web service that is up: its mode, its check, if any, how many endpoints, and what else its manifests say."""

    def start(mode: str, check: str = "", endpoints: int = 3, **more: str) -> Web:
        directory, all_ = tmp_path / "manifests", addresses(endpoints)
        fleet = written(directory, manifests(all_, mode, check, **more))
        web = Web(start_lab(fleet, node_name="lb1"), directory, tmp_path / "log")
        web.start()
        web.await_members(*all_)
        web.await_said("Applied", "No changes.")  # rings come first: who asks now may find no VIP yet
        if "type: http" in check:
            web.await_up(*all_)
        return web

    return start
