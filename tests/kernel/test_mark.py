# SPDX-License-Identifier: Apache-2.0
"""Each object says whose it is: another instance neither sees nor removes it, and takes over only what it may."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.errors import ForeignError
from reconciler.kernel.mark import PROTOCOL, alias_of, protocol_of
from reconciler.kernel.objects import LocalVip, Neighbour, Route
from reconciler.kernel.real import RealKernel

from .conftest import ip

VIPS = [LocalVip(f"20.20.20.{n}", form) for n, form in ((1, "route"), (2, "address"))]
VIPS += [LocalVip(f"2001:db8:20::{n}", form) for n, form in ((1, "route"), (2, "address"))]
ROUTES = [Route("10.200.0.0/24"), Route("10.99.0.1/32", "", "lo", 251, 100)]
NEAR = [Neighbour("10.4.0.11", "side")]


@pytest.fixture
def kernels(inside: str, run_dir: Path) -> tuple[RealKernel, RealKernel]:
    ip("link", "add", "side", "type", "veth", "peer", "name", "far")
    ip("addr", "add", "10.4.0.1/24", "dev", "side")
    for name in ("side", "far"):
        ip("link", "set", name, "up")
    return RealKernel("default", run_dir), RealKernel("other", run_dir)


def test_names_have_marks_that_nobody_else_uses() -> None:
    assert (protocol_of("default"), alias_of("default")) == (PROTOCOL, "lbctl")
    marks = {protocol_of(f"lb{number}") for number in range(1_000)}
    assert min(marks) > 200 and max(marks) < PROTOCOL and len(marks) == 50
    assert len(alias_of("x" * 300).encode()) < 256


@pytest.mark.kernel
def test_what_one_instance_made_another_neither_sees_nor_removes(kernels: tuple[RealKernel, RealKernel]) -> None:
    real, other = kernels
    assert real.add_local_vips(VIPS) == [None] * 4
    assert real.add_routes(ROUTES) == [None] * 2
    assert real.keep_neighbours(NEAR) == [None]
    assert real.add_neighbour_proxies(NEAR) == [None]

    def held() -> tuple[object, ...]:
        of_neighbours = real.neighbours()[0], real.neighbour_proxies()[0]
        return sorted(real.local_vips()), sorted(real.routes()), real.announced_routes(), of_neighbours

    before = held()
    assert (other.local_vips(), other.routes(), other.announced_routes()) == ([], [], [])
    assert other.neighbours()[0] == other.neighbour_proxies()[0] == []
    other.remove_local_vips(VIPS)
    other.remove_routes(ROUTES)
    other.forget_neighbours(NEAR)
    other.remove_neighbour_proxies(NEAR)
    assert held() == before
    outcomes = [*other.add_local_vips(VIPS), *other.add_routes(ROUTES)]
    assert all(isinstance(outcome, ForeignError) for outcome in outcomes)
    assert held() == before


@pytest.mark.kernel
def test_what_is_on_the_loopback_is_taken_over_and_the_rest_stays(kernels: tuple[RealKernel, RealKernel]) -> None:
    _, other = kernels
    ip("addr", "add", "20.20.20.1/32", "dev", "lo")
    ip("route", "add", "local", "20.20.20.2", "dev", "lo", "table", "local", "proto", "static")
    ip("addr", "add", "20.20.20.3/32", "dev", "lo")
    ip("route", "add", "local", "2001:db8:20::1", "dev", "lo", "table", "local", "proto", "static")
    ip("addr", "add", "20.20.20.9/32", "dev", "side")
    ip("route", "add", "10.99.0.1/32", "dev", "lo", "table", "251", "proto", "static", "metric", "100")
    other.adopts = True
    wanted = [*VIPS, LocalVip("20.20.20.3", "address")]
    assert other.add_local_vips(wanted) == [None] * 5
    assert sorted(other.local_vips()) == sorted(wanted)
    assert other.foreign_addresses([vip.address for vip in wanted]) == {}
    assert other.add_routes(ROUTES) == [None] * 2
    assert other.announced_routes() == ROUTES[1:]
    (outcome,) = other.add_local_vips([LocalVip("20.20.20.9", "route")])
    assert isinstance(outcome, ForeignError)
    assert LocalVip("20.20.20.9", "route") not in other.local_vips()
    assert "20.20.20.9" in ip("addr", "show", "dev", "side")
    # An undone change leaves what was there before; what lbctl itself made goes.
    other.remove_local_vips(wanted)
    assert sorted(vip.address for vip in other.local_vips()) == [
        "20.20.20.1", "20.20.20.2", "20.20.20.3", "2001:db8:20::1",
    ]  # fmt: skip
