# SPDX-License-Identifier: Apache-2.0
"""The end of settings that lbctl changed, in places where it can't be reached in the usual way."""

from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.sysctl import GONE, SysctlKind
from reconciler.resource import Change

FORWARD = "net/ipv4/ip_forward"
FILTER = "net/ipv4/conf/front/rp_filter"


class ReadOnly(FakeKernel):
    def write_sysctl(self, name, value):
        raise KernelError(f"can't set {name}: Read-only file system")


def removals(kernel):
    """What is left to be taken back."""
    return [Change(held.key, held, None) for held in SysctlKind(kernel).read({}).resources]


def test_a_value_that_is_the_former_one_already_needs_no_write():
    kernel = ReadOnly(former={FORWARD: "0"})
    assert SysctlKind(kernel).write(removals(kernel)) == [None]
    assert kernel.former == {}


def test_a_value_that_can_not_be_set_back_stays_noted():
    kernel = ReadOnly(former={FORWARD: "1"})
    (outcome,) = SysctlKind(kernel).write(removals(kernel))
    assert "Read-only" in str(outcome)
    assert kernel.former == {FORWARD: "1"}


def test_a_setting_that_went_with_its_interface_is_forgotten():
    kernel = FakeKernel(former={FILTER: "0"})
    del kernel.sysctls[FILTER]
    (change,) = removals(kernel)
    assert change.before.value == GONE
    assert SysctlKind(kernel).write([change]) == [None]
    assert (kernel.former, removals(kernel)) == ({}, [])
