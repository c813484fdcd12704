# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import service
from tests.config.rules.parts import endpoint, web

CASES = {
    "vip-families": (
        web().replace("vip: 20.20.20.1", "vips: [20.20.20.1, '2001:db8::1']"),
        web("dsr-l3", endpoints="{address: '2001:db8::11'}").replace(
            "vip: 20.20.20.1", "vips: [20.20.20.1, '2001:db8::1']"
        ),
    ),
    "family-mismatch": (
        web(endpoints="{address: 10.2.0.11}, {address: '2001:db8::11'}"),
        web("dsr-l3", endpoints="{address: 10.2.0.11}, {address: '2001:db8::11'}"),
    ),
}


@pytest.mark.parametrize("mode", ["nat", "fullnat", "dsr-l2"])
@pytest.mark.parametrize(("vip", "address"), [("20.20.20.1", "2001:db8::11"), ("2001:db8::1", "10.2.0.11")])
def test_only_a_tunnel_changes_the_family(write, mode, vip, address):
    parts = {"vip": f"'{vip}'", "endpoints": f"{{address: '{address}'}}"}
    assert [d.rule for d in load(write({"all.yaml": web(mode, **parts)})).diagnostics] == ["family-mismatch"]


@pytest.mark.parametrize(
    ("vips", "endpoints", "found"),
    [
        ("20.20.20.1", "{address: '2001:db8::11'}", []),
        ("20.20.20.1", "{address: '2001:db8::11'}, {address: 10.2.0.11}", []),
        ("20.20.20.1, '2001:db8::1'", "{address: '2001:db8::11'}", []),
        ("'2001:db8::1'", "{address: 10.2.0.11}",
         ["dsr-l3 can't bring packets for 2001:db8::1 to the IPv4 endpoint 10.2.0.11 (all.yaml:10)"]),
        ("20.20.20.1, '2001:db8::1'", "{address: '2001:db8::11'}, {address: 10.2.0.11}, {address: 10.2.0.12}",
         ["dsr-l3 can't bring packets for 2001:db8::1 to the IPv4 endpoint 10.2.0.11 (all.yaml:10) "
          "(and 1 more endpoint)"]),
    ],
)  # fmt: skip
def test_a_tunnel_takes_both_families_to_ipv6_endpoints_only(write, vips, endpoints, found):
    text = web("dsr-l3", endpoints=endpoints).replace("vip: 20.20.20.1", f"vips: [{vips}]")
    assert [d.message for d in load(write({"all.yaml": text})).diagnostics] == found


def test_pool_of_the_other_family_is_told_of_at_each_service_that_uses_it(write):
    text = web(vip="'2001:db8::1'") + service("b", ports="[81]", more="mode: fullnat") + endpoint("ep1", "10.2.0.11")
    loaded = load(write({"all.yaml": text}))
    assert [(d.rule, d.span.line) for d in loaded.diagnostics] == [("family-mismatch", 5)]
