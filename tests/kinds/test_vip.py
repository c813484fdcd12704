# SPDX-License-Identifier: Apache-2.0
"""Rows of VIPs read back as they were written, a few of them or thousands."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.vip import VipKind, VipRow
from reconciler.resource import Change, Key


@pytest.mark.parametrize("count", [3, 600])
def test_those_that_are_asked_about_and_no_others(count):
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("NAT", "MAGLEV", "IPV6"))
    first = IPv4Address("20.0.0.0"), IPv6Address("2001:db8::")
    rows = [VipRow(first[n % 2] + n, "drop") for n in range(count)]
    other = VipRow(IPv4Address("30.0.0.1"), "pass")
    kind = VipKind(kernel)
    assert kind.write([Change(row.key, None, row) for row in (*rows, other)]) == [None] * (count + 1)
    asked = {row.key: row for row in rows}
    absent = Key(VipRow.kind, "40.0.0.1")
    found = kind.read(asked, [*asked, absent]).resources
    assert len(found) == count and all(asked[row.key] is row for row in found)
    assert set(kind.read(asked).resources) == {*rows, other}
