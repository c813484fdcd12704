# SPDX-License-Identifier: Apache-2.0
"""Warnings about endpoints and gateways that the kernel's routes don't reach as NAT needs it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from reconciler.kernel.fake import FakeKernel
from reconciler.model import Interface, Mode
from reconciler.reconcile import desired_of, plan_node
from reconciler.resource import Key
from reconciler.ways import about_ways

ENDPOINT = "10.2.0.1"


def concerns(fleet, kernel):
    return list(about_ways(kernel, desired_of(fleet, None, kernel)))


def changed(fleet, mode=Mode.NAT, **faces):
    interfaces = [Interface(name, gateway=gateway) for name, gateway in faces.items()]
    services = tuple(replace(service, mode=mode) for service in fleet.services)
    return replace(fleet, nodes=(replace(fleet.nodes[0], interfaces=tuple(interfaces)),), services=services)


def test_of_what_the_kernel_says_nothing_nobody_is_warned(web_fleet):
    assert concerns(web_fleet, FakeKernel()) == []
    assert concerns(web_fleet, FakeKernel(known_ways={ENDPOINT: "back"})) == []


def test_an_endpoint_without_a_route_is_warned_of_in_the_plan(web_fleet, tmp_path):
    kernel = FakeKernel(known_ways={ENDPOINT: ""})
    (concern,) = plan_node(desired_of(web_fleet, None, kernel), kernel, tmp_path).concerns
    assert concern.key.kind == "endpoint"
    assert concern.text == f"no route of this node leads to {ENDPOINT}: packets for it are dropped"


def test_replies_that_meet_no_program_are_warned_of(web_fleet):
    kernel = FakeKernel(known_ways={ENDPOINT: "back"})
    (concern,) = concerns(changed(web_fleet, front=None), kernel)
    assert concern.key == Key("xdp", "back")
    assert concern.hint == "add back to the `interfaces` of the Node"
    assert concerns(changed(web_fleet, front=None, back=None), kernel) == []
    assert concerns(changed(web_fleet, Mode.DSR_L2, front=None), kernel) == []  # replies go past the balancer


def test_a_program_on_the_ports_of_an_interface_is_enough(web_fleet):
    kernel = FakeKernel(
        interfaces=("front", "port", "bond"), known_ways={ENDPOINT: "bond"}, masters={"port": "bond"}
    )
    assert concerns(changed(web_fleet, front=None, port=None), kernel) == []


@pytest.mark.parametrize(
    ("way", "said"),
    [("", "the kernel has no route to it"), ("back", "the kernel's way to it leads by back"), ("front", None)],
)
def test_a_gateway_in_no_network_of_its_interface_is_warned_of(web_fleet, way, said):
    fleet = changed(web_fleet, front=IPv4Address("10.9.0.254"), back=None)
    found = concerns(fleet, FakeKernel(known_ways={"10.9.0.254": way, ENDPOINT: ""}))
    assert [concern.text.rpartition(": ")[2] for concern in found] == ([said] if said else [])
