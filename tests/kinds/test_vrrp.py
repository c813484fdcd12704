# SPDX-License-Identifier: Apache-2.0
"""VRRP as live objects: what keepalived is configured with, and when it may have the shared addresses."""

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.concerns import concerns_of
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.vrrp import STOPPED, VRRP, VrrpConfiguration
from reconciler.kinds.vrrp_state import VrrpState
from reconciler.live import read_live
from reconciler.model import Announce, Vrrp
from reconciler.plan import plan
from reconciler.resource import Desired
from reconciler.telling import Form, Telling, told
from reconciler.view import view
from tests.strategies import fake_source

STATE = VrrpState(0).key


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def fleet(web_fleet):
    (node,) = web_fleet.nodes
    faces = tuple(
        replace(face, addresses=(ip_interface(f"10.{n}.0.1/24"),)) for n, face in enumerate(node.interfaces, 1)
    )
    shared = tuple(map(ip_interface, ("10.1.0.100/24", "10.2.0.100/24")))
    return replace(web_fleet, nodes=(replace(node, interfaces=faces, announce=Announce(vrrp=Vrrp(51, shared, 150))),))


def desired(fleet, telling=None):
    asked = view(fleet, None, "")
    if telling is not None:
        asked = replace(asked, services=tuple(told(service, telling) for service in asked.services))
    return compile_node(asked)


def bring(kernel, wanted):
    planned = plan(wanted, read_live(kernel, wanted.resources))
    apply(planned, kernel).raise_if_failed()
    left = plan(wanted, read_live(kernel, wanted.resources))
    assert not left.changes and not left.blocked
    return planned


def test_shared_addresses_are_on_the_interfaces_of_their_networks_and_wait_for_everything_else(fleet):
    kernel = FakeKernel()
    bring(kernel, desired(fleet))
    for line in ("virtual_router_id 51", "priority 150", "10.1.0.100/24 dev front", "10.2.0.100/24 dev back",
                 f"init_file {STOPPED}"):  # fmt: skip
        assert f"{line}\n" in kernel.vrrp
    assert kernel.vrrp.count("{") == kernel.vrrp.count("}\n")
    assert kernel.writes[-1] == ("set_vrrp_weight", 0)
    kernel.writes.clear()
    bring(kernel, Desired())
    gone = [name for name, _ in kernel.writes if "vrrp" in name or name == "remove_vip"]
    assert gone == ["set_vrrp_weight", "load_vrrp", "remove_vip"]
    assert (kernel.vrrp, kernel.weight) == (None, STOPPED)


def test_what_speaks_against_the_vips_makes_another_balancer_take_over(fleet):
    kernel = FakeKernel()
    bring(kernel, desired(fleet))
    planned = bring(kernel, desired(fleet, Telling(Form.WITHDRAWN, ("the gateway does not answer",))))
    assert kernel.weight == STOPPED
    assert {change.cause for change in planned.changes} == {"the gateway does not answer"}
    bring(kernel, desired(fleet, Telling(Form.DEGRADED, ("too few",))))
    assert kernel.weight == STOPPED + 1
    bring(kernel, desired(fleet))
    assert kernel.weight == 0


def test_while_something_that_vips_need_is_missing_the_addresses_stay_away(fleet):
    kernel = FakeKernel(foreign_vips={str(vip): "somebody" for service in fleet.services for vip in service.vips})
    wanted = desired(fleet)
    planned = plan(wanted, read_live(kernel, wanted.resources))
    apply(planned, kernel)
    assert kernel.weight is None
    assert STATE in {held.change.key for held in planned.held}


def test_somebody_elses_configuration_is_left_alone_unless_it_is_to_be_taken_over(fleet):
    kernel = FakeKernel(others_vrrp="the file /etc/keepalived/keepalived.conf")
    wanted = desired(fleet)
    planned = plan(wanted, read_live(kernel, wanted.resources))
    assert planned.blocked[VRRP] == "in the way: the file /etc/keepalived/keepalived.conf, which is not lbctl's"
    apply(planned, kernel)
    assert kernel.vrrp is None and kernel.weight is None
    kernel.adopts = True
    bring(kernel, wanted)
    assert "virtual_router_id 51" in kernel.vrrp and kernel.weight == 0


def test_a_line_changed_by_hand_is_set_back_and_a_daemon_that_does_not_run_is_told_of(fleet):
    kernel, wanted = FakeKernel(runs_vrrp=False), desired(fleet)
    bring(kernel, wanted)
    kernel.vrrp = kernel.vrrp.replace("priority 150", "priority 10")
    (change,) = bring(kernel, wanted).changes
    assert (change.before.describe()["priority"], change.after.describe()["priority"]) == ("10", "150")
    assert any(concern.key == VRRP for concern in concerns_of(kernel, wanted))


def test_a_saved_plan_can_name_no_program(fleet):
    resource = desired(fleet).resources[VRRP]
    assert resource.flaw == ""
    for line in ('notify "/bin/sh"', "interface eth0\nnotify x", "include /tmp/x", "interface eth0 notify"):
        assert VrrpConfiguration((*resource.lines, line)).flaw, line
    assert VrrpState(5).flaw and not VrrpState(0).flaw
