# SPDX-License-Identifier: Apache-2.0
"""From one mode of XDP to the other: what the kernel may do meanwhile, and what is left when it doesn't work."""

from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.apply import apply
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.model import Interface, XdpMode
from reconciler.reconcile import desired_of, plan_node


def plan_for(fleet, kernel):
    return plan_node(desired_of(fleet, None, kernel), kernel, Path("/nonexistent"))


def forwarding(kernel: FakeKernel) -> dict[str, str]:
    return {name: kernel.sysctls[f"net/ipv4/conf/{name}/forwarding"] for name in ("front", "front.5", "back")}


@pytest.fixture
def generic(web_fleet):
    faces = (Interface("front", XdpMode.GENERIC), Interface("front.5", trunk="front"), Interface("back"))
    return replace(web_fleet, nodes=(replace(web_fleet.nodes[0], interfaces=faces),))


@pytest.fixture
def native(generic):
    front, *others = generic.nodes[0].interfaces
    faces = (replace(front, xdp=XdpMode.NATIVE), *others)
    return replace(generic, nodes=(replace(generic.nodes[0], interfaces=faces),))


@pytest.fixture
def kernel(generic) -> FakeKernel:
    made = FakeKernel(vlans={"front.5": ("front", 5)})
    apply(plan_for(generic, made), made).raise_if_failed()
    made.writes.clear()
    return made


def test_while_no_program_runs_the_node_answers_nothing_and_forwards_nothing(native, kernel):
    seen = []

    def look():
        if kernel.writes[-1] == ("detach", "front"):
            seen.append((kernel.silent, forwarding(kernel)))

    kernel.on_write = look
    planned = plan_for(native, kernel)
    assert list(planned.effects().values()) == ["packets are lost for some milliseconds; open connections stay"]
    apply(planned, kernel).raise_if_failed()
    assert seen == [({("tcp", "20.20.20.1", 80)}, {"front": "0", "front.5": "0", "back": "1"})]
    assert kernel.silent is None
    assert set(forwarding(kernel).values()) == {"1"}
    assert kernel.attached["front"].mode == "native"


def test_a_mode_that_the_driver_can_not_leaves_the_former_one(native, kernel):
    attach = kernel.attach

    def refuse(interface, mode, replaces):
        if mode == "native":
            raise KernelError("the driver can't")
        attach(interface, mode, replaces)

    kernel.attach = refuse
    result = apply(plan_for(native, kernel), kernel)
    assert [str(key) for key in result.failed] == ["xdp front"]
    assert kernel.attached["front"].mode == "generic"
    assert set(forwarding(kernel).values()) == {"1"}
    assert kernel.silent is None
