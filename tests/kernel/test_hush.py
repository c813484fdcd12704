# SPDX-License-Identifier: Apache-2.0
"""A node that holds its tongue: no resets, no unreachable ports, and nobody who listens is disturbed."""

from __future__ import annotations

import errno
import resource
import select
import socket
from collections.abc import Iterator

import pytest

from reconciler.kernel.real import RealKernel

from .conftest import ip

pytestmark = pytest.mark.kernel

VIPS = {4: "20.20.20.1", 6: "2001:db8:20::1"}
LOUD = 81


@pytest.fixture(params=VIPS)
def vip(request: pytest.FixtureRequest, inside: str) -> Iterator[str]:
    """An address that the node has as a VIP, by a route alone."""
    version: int = request.param
    ip("-n", inside, f"-{version}", "route", "add", "local", VIPS[version], "dev", "lo", "table", "local")
    yield VIPS[version]


def begun(vip: str, port: int, kind: int) -> socket.socket:
    """A question to a port, not yet answered."""
    made = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, kind)
    made.setblocking(False)
    assert made.connect_ex((vip, port)) in (0, errno.EINPROGRESS)
    if kind == socket.SOCK_DGRAM:
        made.send(b"?")
    return made


def refusal(asked: socket.socket) -> int:
    return asked.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def is_refused(asked: socket.socket) -> bool:
    """Waits for the answer."""
    poll = select.poll()
    poll.register(asked, select.POLLERR)
    return bool(poll.poll(5000)) and refusal(asked) == errno.ECONNREFUSED


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_no_answer_comes_where_the_node_is_hushed(kernel: RealKernel, vip: str, protocol: str, kind: int) -> None:
    with (
        kernel.hushed([(protocol, vip, 80), (protocol, vip, 90)]),
        begun(vip, 80, kind) as quiet,
        begun(vip, LOUD, kind) as loud,
    ):
        assert is_refused(loud), "the node answers where it is not hushed, and did so after it was asked at 80"
        assert refusal(quiet) == 0
    with begun(vip, 80, kind) as after:
        assert is_refused(after)


def test_who_listens_already_is_heard_and_answers(kernel: RealKernel, vip: str) -> None:
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with socket.socket(family) as server:
        server.bind(("", 80))
        server.listen()
        with socket.socket(family) as own:
            own.setsockopt(socket.IPPROTO_IPV6 if ":" in vip else socket.IPPROTO_IP, 78 if ":" in vip else 15, 1)
            own.bind((vip, 82))
            own.listen()
            with kernel.hushed([("tcp", vip, 80), ("tcp", vip, 82)]):
                socket.create_connection((vip, 82), timeout=30).close()
        socket.create_connection((vip, 80), timeout=30).close()


def test_more_places_than_descriptors_do_no_harm(kernel: RealKernel, vip: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        kernel.hushed([("tcp", vip, port) for port in range(1, 1500)] + [("sctp", vip, 1), ("icmp", vip, 0)]),
        begun(vip, 1499, socket.SOCK_STREAM) as quiet,
        begun(vip, LOUD + 2000, socket.SOCK_STREAM) as loud,
    ):
        assert is_refused(loud)
        assert refusal(quiet) == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
