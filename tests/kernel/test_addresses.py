# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.kernel import addresses, links
from tests.kernel.conftest import ip

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("inside")]


def test_what_is_missing_is_told_with_what_there_is():
    ip("link", "add", "lan0", "type", "veth", "peer", "name", "far0")
    ip("link", "set", "lan0", "mtu", "1400", "up")
    ip("address", "add", "10.9.0.1/24", "dev", "lan0")
    ip("address", "add", "2001:db8::1/64", "dev", "lan0", "nodad")
    asked = [
        ("lan0", "10.9.0.1/24"), ("lan0", "2001:db8::1/64"), ("(any)", "10.9.0.1"), ("(any)", "2001:db8::1"),
        ("lan0", "10.9.0.1/16"), ("lan1", "10.9.0.1/24"), ("lan0", "10.9.0.2/24"), ("lo", "2001:db8::2/64"),
        ("(any)", "10.9.0.2"),
    ]  # fmt: skip
    assert addresses.missing(asked) == {
        ("lan0", "10.9.0.1/16"): "10.9.0.1/24 is on lan0",
        ("lan1", "10.9.0.1/24"): "10.9.0.1/24 is on lan0",
        ("lan0", "10.9.0.2/24"): "lan0 has 10.9.0.1/24",
        ("lo", "2001:db8::2/64"): "lo has ::1/128",
        ("(any)", "10.9.0.2"): "no interface has it",
    }
    assert {link.mtu_bytes for link in links.read() if link.name == "lan0"} == {1400}
