# SPDX-License-Identifier: Apache-2.0
"""Tables that are nearly full, and what the machine lacks; and the way of a request in words."""

import subprocess
from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.dataplane.layout import MAPS, RING_CHUNKS
from reconciler.doctor import tables
from reconciler.doctor.host import of_host
from reconciler.doctor.tables import of_tables
from reconciler.doctor.walk import walk
from reconciler.errors import BuildError
from reconciler.kernel import counters, headers, links
from reconciler.kernel.fake import FakeKernel
from reconciler.live import read_live
from reconciler.model import Capacity, Interface, Node, Role
from reconciler.plan import plan
from reconciler.view import view
from tests.kernel.conftest import entered, namespace  # noqa: F401 - a fixture
from tests.strategies import fake_source

CLIENT = ip_address("198.51.100.7")


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)
    monkeypatch.setattr(counters, "is_clock_kept", lambda: True)
    monkeypatch.setattr(headers, "find", lambda cache: cache)


def examined(fleet, kernel=None, name=None):
    kernel = kernel or FakeKernel()
    desired = compile_node(view(fleet, name, ""))
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    node = view(fleet, name, "").node
    return [found.name for found in of_host(node, read_live(kernel, desired.resources).resources, kernel)]


def with_node(fleet, **changes):
    (node,) = fleet.nodes
    return replace(fleet, nodes=(replace(node, **changes),))


def test_a_table_without_room_is_told(web_fleet):
    assert examined(web_fleet) == []
    (service,) = web_fleet.services
    two = replace(web_fleet, services=(replace(service, ports=(80, 443)),))
    assert examined(with_node(two, capacity=Capacity(services=2))) == ["table-nearly-full"]
    assert examined(with_node(two, capacity=Capacity(services=3))) == []


@pytest.mark.parametrize("table", tables._TABLES)
def test_every_table_without_room_is_told_with_the_way_out(web_fleet, table):
    kernel = FakeKernel()
    assert examined(web_fleet, kernel) == []
    spec = MAPS[table]
    if table != RING_CHUNKS.name:  # the fleet has one of these
        kernel.maps[table] = {bytes(spec.key_size): b"\1" * spec.value_size}
    kernel.sizes[table] = 2
    assert list(of_tables(web_fleet.nodes[0], {}, kernel)) == []
    kernel.sizes[table] = 1
    (found,) = of_tables(web_fleet.nodes[0], {}, kernel)
    assert (found.name, found.evidence[:2]) == ("table-nearly-full", "1 ")
    assert found.evidence.endswith(" in a table for 1") and found.way_out


def test_an_interface_that_takes_frames_for_any_mac_is_told(web_fleet):
    kernel = FakeKernel()
    kernel.promiscuous = {"front", "another"}
    assert examined(web_fleet, kernel) == ["promiscuous"]


def test_connection_tracking_that_is_nearly_full_is_told(web_fleet):
    kernel = FakeKernel()
    kernel.sysctls |= {"net/netfilter/nf_conntrack_count": "95", "net/netfilter/nf_conntrack_max": "100"}
    assert examined(web_fleet, kernel) == ["conntrack-full"]
    kernel.sysctls["net/netfilter/nf_conntrack_count"] = "50"
    assert examined(web_fleet, kernel) == []


def test_a_clock_that_nobody_keeps_is_told(web_fleet, monkeypatch):
    monkeypatch.setattr(counters, "is_clock_kept", lambda: False)
    assert examined(web_fleet) == ["clock-unkept"]


def test_a_kernel_that_keeps_no_neighbours_is_told(web_fleet):
    assert examined(web_fleet, FakeKernel(can_keep=False)) == ["kernel-too-old"]


def test_missing_headers_are_told_before_they_are_needed(web_fleet, monkeypatch):
    def find(_cache):
        raise BuildError("no kernel headers", hint="apt install linux-headers-amd64")

    monkeypatch.setattr(headers, "find", find)
    assert examined(web_fleet) == ["headers-missing"]


@pytest.mark.kernel
def test_the_kernel_says_whether_an_interface_takes_frames_for_any_mac(namespace):  # noqa: F811
    """As well if a bridge or a capture asked for it, which `ip link` doesn't show among the flags."""
    with entered(namespace):
        for words in ("v0 type veth peer v1", "b0 type bridge", "v2 type veth peer v3"):
            subprocess.run(["ip", "link", "add", *words.split()], check=True)
        subprocess.run(["ip", "link", "set", "v0", "promisc", "on"], check=True)
        subprocess.run(["ip", "link", "set", "v2", "master", "b0"], check=True)
        assert {link.name for link in links.read() if link.is_promiscuous} == {"v0", "v2"}


def test_a_request_is_walked_on_each_role(web_fleet):
    kernel = FakeKernel(known_ways={str(CLIENT): "front", "20.20.20.1": "back"})
    examined(web_fleet, kernel)
    router = Node("r", (Interface("front"), Interface("back")), role=Role.ROUTER)
    fleet = replace(web_fleet, nodes=(*web_fleet.nodes, router))

    def steps(seen):
        return list(walk(seen, CLIENT, kernel, lambda service, vip, port: f"to {vip}:{port}\nout back"))

    assert steps(view(web_fleet, None, "")) == [
        "198.51.100.7 → 20.20.20.1:80/tcp (service web, nat)", "  1. the VIP is this balancer's own",
        "  2. to 20.20.20.1:80", "     out back", "  3. the reply comes back here, and leaves for the client by front",
    ]  # fmt: skip
    assert steps(view(fleet, "r", "")) == ["no service of this node has a VIP of IPv4"]
    seen = replace(view(fleet, "r", ""), services=web_fleet.services)
    assert steps(seen)[1] == "  1. this router sends it out by back"
    seen = replace(seen, node=replace(router, role=Role.ENDPOINT))
    kernel.known_ways[str(CLIENT)] = ""
    assert steps(seen)[3] == "  3. there is NO way to the client: the reply is dropped"
