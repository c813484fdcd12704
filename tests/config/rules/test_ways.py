# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import INTERFACES, node
from tests.config.rules.parts import web

STICK = "{name: eth0, addresses: [10.2.0.1/24], mtu: 1520}"
FAR = web("dsr-l3", endpoints="{address: 10.2.0.11}, {address: 10.9.0.11}, {address: 10.9.0.12}")

CASES = {
    "endpoint-way-unknown": (
        FAR + node(interfaces=STICK),
        FAR + node(interfaces=STICK.replace("mtu", "gateway: 10.2.0.254, mtu")),
    ),
}


@pytest.mark.parametrize(
    ("text", "interfaces"),
    [
        (web("dsr-l3", endpoints="{address: 10.2.0.11}"), STICK),
        (FAR, "{name: eth0, mtu: 1520}"),
        (FAR, INTERFACES),
        (FAR.replace("10.9.0", "10.2.0"), STICK),
    ],
    ids=["near", "addresses unknown", "several interfaces", "all near"],
)
def test_what_may_be_reached_is_no_problem(write, text, interfaces):
    text += node(interfaces=interfaces)
    assert not [d for d in load(write({"all.yaml": text})).diagnostics if d.rule == "endpoint-way-unknown"]
