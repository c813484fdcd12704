# SPDX-License-Identifier: Apache-2.0
"""Between a plan and its approval a node may change: then nothing is announced on what isn't there any more."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from reconciler.apply import apply
from reconciler.cli.execute import check_fresh
from reconciler.errors import PlanStaleError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import Neighbour
from reconciler.live import read_live
from reconciler.plan import plan
from reconciler.reconcile import desired_of

FORWARDING = "net/ipv4/conf/front/forwarding"


def program_off(kernel):
    del kernel.attached["front"]


def forwarding_off(kernel):
    kernel.sysctls[FORWARDING] = "0"


def interface_gone(kernel):
    kernel.interfaces = ("back",)
    program_off(kernel)


def address_of_the_node(kernel):
    kernel.foreign_vips["20.20.20.2"] = "address on front"


@pytest.fixture
def kernel(web_fleet):
    kernel = FakeKernel()
    planned_for(web_fleet, kernel, make=True)
    return kernel


@pytest.fixture
def moved_fleet(web_fleet):
    return replace(web_fleet, services=(replace(web_fleet.services[0], vips=(IPv4Address("20.20.20.2"),)),))


def planned_for(fleet, kernel, *, make=False):
    desired = desired_of(fleet, None, kernel)
    planned = plan(desired, read_live(kernel, desired.resources))
    if make:
        apply(planned, kernel).raise_if_failed()
    return planned


@pytest.mark.parametrize("happens", [program_off, forwarding_off, interface_gone, address_of_the_node])
def test_what_a_vip_stands_on_and_the_plan_does_not_change_makes_it_stale_when_it_goes(kernel, moved_fleet, happens):
    planned = planned_for(moved_fleet, kernel)
    check_fresh(planned, read_live(kernel, planned.desired.resources))
    happens(kernel)
    with pytest.raises(PlanStaleError, match=r"front|20\.20\.20\.2"):
        check_fresh(planned, read_live(kernel, planned.desired.resources))


def test_a_neighbour_that_comes_or_goes_meanwhile_is_no_reason_to_plan_again(kernel, moved_fleet):
    planned = planned_for(moved_fleet, kernel)
    kernel.kept.add(Neighbour("10.9.9.9", "front"))
    check_fresh(planned, read_live(kernel, planned.desired.resources))
