# SPDX-License-Identifier: Apache-2.0
"""NAT from manifests to sockets: SCTP as the kernel speaks it, with real checksums, and restarts of either side."""

from __future__ import annotations

import json
import selectors
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from reconciler.lab import netns
from tests.vm.fleet import NAT_CASES, NEAR, SILENT, Case, manifests
from tests.vm.site import BALANCER, CLIENT, Site, address, site
from tests.vm.traffic import prove, served

LIMIT_S = 20
_PORTS = iter(range(61_000, 62_000))


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with all cases at once. Endpoints answer clients by the balancer."""
    directory = tmp_path_factory.mktemp("manifests")
    (directory / "site.yaml").write_text(manifests((*NAT_CASES.values(), SILENT)))
    with site(directory, tmp_path_factory.mktemp("run")) as made:
        for host in NEAR:
            for version, network in ((4, "10.1.0.0/24"), (6, "2001:db8:1::/64")):
                made.ip(host, f"route add {network} via {address(BALANCER, version)}")
        made.apply(BALANCER)
        with served(made, NAT_CASES.values()):
            yield made


@pytest.mark.parametrize("case", NAT_CASES.values(), ids=list(NAT_CASES))
def test_every_endpoint_answers_through_the_balancer(applied: Site, case: Case) -> None:
    prove(applied, case)


def test_associations_are_seen_by_their_names(applied: Site) -> None:
    with _listening(applied, *NEAR) as servers, _association(applied) as client:
        client.sendall(b"hello")
        host, _ = _heard(servers)
        (flow,) = _flows(applied, client.getsockname()[1])
        assert (flow["protocol"], flow["state"]) == ("sctp", "open")
        assert flow["service"] == f"{SILENT.vip}:{SILENT.port}/sctp"
        assert flow["endpoint"] == address(host)


# --- restarts ----------------------------------------------------------------------------------------------------
def test_a_client_that_lost_its_association_begins_it_anew(applied: Site) -> None:
    """From the same port, while the endpoint knows of no end: the association restarts (RFC 9260, section 5.2.2)."""
    port = next(_PORTS)
    with _listening(applied, *NEAR) as servers, _association(applied, port) as client:
        client.sendall(b"before")
        first = _heard(servers)
        with _cut_off(applied, CLIENT, SILENT.vip):
            client.close()
        with _association(applied, port) as again:
            again.sendall(b"after")
            assert _heard(servers) == (first[0], b"after"), "the same endpoint"
            assert [flow["state"] for flow in _flows(applied, port)] == ["open"]


def test_an_endpoint_that_lost_its_association_may_send_the_init(applied: Site) -> None:
    port = next(_PORTS)
    with _talking(applied, CLIENT, address(CLIENT), port) as client:
        with _listening(applied, *NEAR) as servers:
            client.sendto(b"before", (SILENT.vip, SILENT.port))
            host, content = _heard(servers)
            assert content == b"before"
            with _cut_off(applied, host, address(CLIENT)):
                for server in servers.values():
                    server.close()
        with _talking(applied, host, address(host), SILENT.server_port) as server:
            server.sendto(b"from the endpoint", (address(CLIENT), port))
            content, source = client.recvfrom(100)
            assert (content, source) == (b"from the endpoint", (SILENT.vip, SILENT.port))
            client.sendto(b"back", (SILENT.vip, SILENT.port))
            assert server.recvfrom(100) == (b"back", (address(CLIENT), port))


def _open(kind: int, at: str, port: int) -> socket.socket:
    """A socket of SCTP in the namespace of the calling thread. Its end is an ABORT."""
    opened = socket.socket(socket.AF_INET, kind, socket.IPPROTO_SCTP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    opened.settimeout(LIMIT_S)
    opened.bind((at, port))
    return opened


@contextmanager
def _association(made: Site, port: int = 0) -> Iterator[socket.socket]:
    """One of the client with the service."""
    with netns.inside(made.netns(CLIENT), _open, socket.SOCK_STREAM, address(CLIENT), port) as client:
        client.connect((SILENT.vip, SILENT.port))
        yield client


@contextmanager
def _talking(made: Site, host: str, at: str, port: int) -> Iterator[socket.socket]:
    """A socket that begins associations, and takes those of others."""
    with netns.inside(made.netns(host), _open, socket.SOCK_SEQPACKET, at, port) as speaker:
        speaker.listen(8)
        yield speaker


@contextmanager
def _listening(made: Site, *hosts: str) -> Iterator[dict[str, socket.socket]]:
    """A silent server on each host, by name."""
    servers = {
        host: netns.inside(made.netns(host), _open, socket.SOCK_SEQPACKET, address(host), SILENT.server_port)
        for host in hosts
    }
    try:
        for server in servers.values():
            server.listen(8)
        yield servers
    finally:
        for server in servers.values():
            server.close()


def _heard(servers: dict[str, socket.socket]) -> tuple[str, bytes]:
    """Which server got something, and what."""
    selector = selectors.DefaultSelector()
    with selector:
        for host, server in servers.items():
            selector.register(server, selectors.EVENT_READ, host)
        ((key, _), *_) = selector.select(LIMIT_S) or pytest.fail("nobody heard anything")
        return key.data, servers[key.data].recvfrom(100)[0]


@contextmanager
def _cut_off(made: Site, host: str, to: str) -> Iterator[None]:
    """Nothing that a host sends to an address leaves it, so nobody hears of an end."""
    made.ip(host, f"route add blackhole {to}/32")
    try:
        yield
    finally:
        made.ip(host, f"route del blackhole {to}/32")


def _flows(made: Site, port: int) -> list[dict[str, Any]]:
    """Those from one of the client's ports."""
    chosen = ("--proto", "sctp", "--client", f"{address(CLIENT)}:{port}")
    flows: list[dict[str, Any]] = json.loads(made.lbctl(BALANCER, "get", "flows", *chosen, "-o", "json"))["items"]
    return flows
