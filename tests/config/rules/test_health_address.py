# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import node, pool, service
from tests.config.rules.parts import web

THROUGH = "{type: tcp, through: vip}"
IPV6 = {"vip": "'2001:db8:20::1'", "endpoints": "{address: '2001:db8:2::11'}"}
BACK = "{name: back, addresses: [10.2.0.1/24], mtu: 1540}"
FACES = f"{{name: front, addresses: [10.1.0.1/24, '2001:db8:1::1/64']}}, {BACK}"


def balancer(more="", name="lb1"):
    return node(name, interfaces=FACES, more=more)


def from_(address, name="lb1"):
    key = "ipv6" if ":" in address else "ipv4"
    return balancer(f"healthAddress: {{{key}: '{address}'}}", name)


CASES = {
    "health-address-taken": (
        web("dsr-l3", check=THROUGH) + from_("10.2.0.11"),
        web("dsr-l3", check=THROUGH) + from_("10.2.0.9"),
    ),
    "health-address-missing": (
        web("dsr-l3", check=THROUGH) + balancer(),
        web("dsr-l3", check=THROUGH) + from_("10.1.0.9"),
    ),
}


def found(write, text):
    return [(d.rule, d.message) for d in load(write({"all.yaml": text})).diagnostics]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("20.20.20.1", "a VIP"),
        ("10.2.0.11", "the address of an endpoint"),
        ("10.1.0.1", "the address of interface front of Node 'lb1'"),
        ("10.2.0.1", "the address of interface back of Node 'lb1'"),
    ],
)
def test_an_address_of_somebody_else_is_refused(write, address, reason):
    ((rule, message),) = found(write, web("dsr-l3", check=THROUGH) + from_(address))
    assert rule == "health-address-taken"
    assert message.startswith(f"{address} can't be a healthAddress: it is {reason}")


def test_two_balancers_can_not_check_from_one_address(write):
    other = node(
        "lb2", interfaces="{name: front, addresses: [10.1.0.2/24]}, {name: back, addresses: [10.2.0.2/24], mtu: 1540}",
        more="healthAddress: {ipv4: 10.1.0.9}",
    )  # fmt: skip
    ((rule, message),) = [
        item for item in found(write, web("dsr-l3", check=THROUGH) + from_("10.1.0.9") + other) if "health" in item[0]
    ]
    assert rule == "health-address-taken"
    assert "the healthAddress of Node 'lb1' already" in message


def test_an_address_that_nobody_can_have_is_refused(write):
    text = web("dsr-l3", check=THROUGH) + from_("224.0.0.9")
    assert [rule for rule, _ in found(write, text)] == ["address-not-unicast"]


@pytest.mark.parametrize("address", ["10.1.0.9", None])
def test_each_family_of_vips_needs_an_address_to_check_from(write, address):
    text = web("dsr-l3", check=THROUGH, **IPV6)
    ((rule, message),) = found(write, text + (from_(address) if address else balancer()))
    assert rule == "health-address-missing"
    assert "has no IPv6 address to do that from" in message
    assert found(write, text + from_("2001:db8:1::9")) == []


def test_who_checks_no_vip_needs_none(write):
    nat = web(check="{type: tcp}") + balancer()
    assert found(write, nat) == []
    mixed = web("dsr-l3", check="{type: tcp, port: 80, through: vip}") + service("b", ports="[81]") + from_("10.1.0.9")
    assert found(write, mixed) == []


def test_a_fallback_is_checked_for_those_who_fall_back_to_it(write):
    main = service(more="mode: dsr-l3") + pool(more="healthCheck: {type: tcp, through: vip}, fallbackPool: sorry")
    main = main.replace("fallbackPool", "whenNoneHealthy: fallback, fallbackPool")
    plain = main.replace("type: tcp, through: vip", "type: tcp, port: 80")
    sorry = pool("sorry", endpoints="{address: 10.2.0.12}", more=f"healthCheck: {THROUGH}")
    rules = [rule for rule, _ in found(write, plain + sorry + balancer())]
    assert "health-address-missing" in rules
