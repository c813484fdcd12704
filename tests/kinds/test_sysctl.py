# SPDX-License-Identifier: Apache-2.0
"""Settings that traffic needs: each is held where the kernel asks for it, and no other setting moves with it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path

import pytest

from reconciler.apply import apply
from reconciler.kernel.fake import FakeKernel
from reconciler.model import Endpoint, Interface, Mode
from reconciler.reconcile import desired_of, plan_node
from reconciler.resource import Desired

NOWHERE = Path("/nonexistent")


def of(kernel: FakeKernel, setting: str, family: str = "ipv4") -> dict[str, str]:
    """The values of a setting by interface."""
    parts = [(name.split("/"), value) for name, value in kernel.sysctls.items()]
    return {p[3]: value for p, value in parts if p[1] == family and p[2:3] == ["conf"] and p[-1] == setting}


def plan_for(fleet, kernel):
    desired = desired_of(fleet, None, kernel) if fleet else Desired()
    return plan_node(desired, kernel, NOWHERE)


def brought(fleet, kernel: FakeKernel) -> FakeKernel:
    """The node after it was brought to what the fleet asks (None: to nothing)."""
    apply(plan_for(fleet, kernel), kernel).raise_if_failed()
    return kernel


@pytest.fixture
def six(web_fleet):
    """The same service in direct server return, with IPv6."""
    pool = replace(web_fleet.pools[0], endpoints=(Endpoint(IPv6Address("2001:db8:2::11")),))
    vips = (IPv6Address("2001:db8:20::1"),)
    service = replace(web_fleet.services[0], vips=vips, mode=Mode.DSR_L2)
    return replace(web_fleet, services=(service,), pools=(pool,))


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_forwarding_is_held_where_the_lookup_asks_for_it(web_fleet, six, family):
    fleet = {"ipv4": web_fleet, "ipv6": six}[family]
    kernel = brought(fleet, FakeKernel())
    assert plan_for(fleet, kernel).changes == ()
    name = f"net/{family}/conf/back/forwarding"
    kernel.sysctls[name] = "0"
    (change,) = plan_for(fleet, kernel).changes
    assert change.key.id == name
    assert brought(fleet, kernel).sysctls[name] == "1"


@pytest.mark.parametrize("all_now", ["0", "1"])
@pytest.mark.parametrize("side_now", ["0", "1"])
def test_no_other_interface_begins_or_ends_to_forward(six, all_now, side_now):
    """The kernel sets all interfaces along with `all`."""
    kernel = FakeKernel(interfaces=("a", "front", "back", "side"))
    for family in ("ipv4", "ipv6"):
        kernel.sysctls |= {f"net/{family}/conf/{n}/forwarding": side_now for n in ("a", "side", "default", "lo")}
    kernel.sysctls |= {"net/ipv4/ip_forward": all_now, "net/ipv6/conf/all/forwarding": all_now}
    before = dict(kernel.sysctls)
    faces = (Interface("a"), *six.nodes[0].interfaces)
    fleet = replace(six, nodes=(replace(six.nodes[0], interfaces=faces),))
    brought(fleet, kernel)
    ours, others = {"a": "1", "front": "1", "back": "1"}, {"side": side_now, "default": side_now, "lo": side_now}
    assert of(kernel, "forwarding") == {"all": before["net/ipv4/conf/all/forwarding"], **others, **ours}
    assert of(kernel, "forwarding", "ipv6") == {"all": "1", **others, **ours}
    assert kernel.sysctls["net/ipv4/ip_forward"] == all_now
    assert brought(None, kernel).sysctls == before


def test_a_node_that_an_earlier_version_made_a_router_goes_on_forwarding(web_fleet):
    kernel = FakeKernel()
    kernel.write_sysctl("net/ipv4/ip_forward", "1")
    kernel.remember_sysctl("net/ipv4/ip_forward", "0")
    brought(web_fleet, kernel)
    assert kernel.sysctls["net/ipv4/ip_forward"] == "0"
    assert of(kernel, "forwarding")["front"] == of(kernel, "forwarding")["back"] == "1"


def test_a_nat_service_that_goes_takes_nothing_from_direct_server_return(web_fleet):
    nat = web_fleet.services[0]
    direct = replace(nat, name="direct", vips=(IPv4Address("20.20.20.2"),), mode=Mode.DSR_L2)
    both = replace(web_fleet, services=(nat, direct))
    kernel = brought(both, FakeKernel())
    assert of(kernel, "accept_local")["back"] == "1"
    brought(replace(both, services=(direct,)), kernel)
    assert of(kernel, "accept_local")["back"] == "1", "replies by way of the balancer have a VIP for source"


def test_a_vip_in_the_network_of_an_interface_is_answered_for(web_fleet):
    """A machine that was an endpoint of another balancer has arp_ignore set; of `all` and the interface the greater
    one counts."""
    held = {"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/front/arp_ignore": "2"}
    far = Interface("front", addresses=(IPv4Interface("10.1.0.1/24"),))
    near = Interface("front", addresses=(IPv4Interface("20.20.20.10/24"),))
    for face, all_then, front_then in ((far, "1", "2"), (near, "0", "0")):
        fleet = replace(web_fleet, nodes=(replace(web_fleet.nodes[0], interfaces=(face, Interface("back"))),))
        kernel = FakeKernel()
        kernel.sysctls |= held
        found = of(brought(fleet, kernel), "arp_ignore")
        assert (found["all"], found["front"]) == (all_then, front_then)
        assert brought(None, kernel).sysctls.items() >= held.items()


def test_ipv6_that_was_switched_off_is_switched_on_where_it_is_needed(six):
    kernel = FakeKernel(interfaces=("front", "back", "side"))
    kernel.sysctls |= {f"net/ipv6/conf/{n}/disable_ipv6": "1" for n in ("all", "lo", "front", "back", "side")}
    before = dict(kernel.sysctls)
    brought(six, kernel)
    assert of(kernel, "disable_ipv6", "ipv6") == {
        "all": "1", "default": "0", "lo": "0", "front": "0", "back": "0", "side": "1",
    }  # fmt: skip
    assert brought(None, kernel).sysctls == before


@pytest.mark.parametrize(("all_now", "named"), [("0", "all"), ("1", "front")])
def test_default_routes_that_go_are_said_once(six, all_now, named):
    kernel = FakeKernel()
    kernel.sysctls |= {"net/ipv6/conf/all/forwarding": all_now, "net/ipv6/conf/back/forwarding": all_now}
    effects = plan_for(six, kernel).effects()
    assert [key.id for key, text in effects.items() if "accept_ra" in text] == [f"net/ipv6/conf/{named}/forwarding"]
