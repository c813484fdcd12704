# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from dataclasses import fields, replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.health.target import DIGEST_BYTES, Target, Use, uses_of
from reconciler.model import (
    CheckType,
    Endpoint,
    EndpointState,
    HealthCheck,
    Mode,
    Node,
    Pool,
    Protocol,
    Service,
    Through,
)
from reconciler.view import NodeView
from reconciler.wish.wish import Wish
from tests.strategies import health_checks

A, B = ip_address("10.2.0.11"), ip_address("10.2.0.12")
VIP, VIP2 = ip_address("20.20.20.1"), ip_address("20.20.20.2")
TCP = HealthCheck(CheckType.TCP)


def pool(*endpoints, name="web", check=TCP, **more):
    return Pool(name, endpoints or (Endpoint(A), Endpoint(B)), check, **more)


def service(name="web", *, vips=(VIP,), protocol=Protocol.TCP, ports=(80,), pool="web", **more):
    return Service(name, vips, protocol, ports, pool, **more)


def targets(*services, pools):
    """What a node with these services checks."""
    used = {item.pool for item in services}
    own = {item.name: item for item in pools if item.name in used}
    wish = Wish()
    wish.of(NodeView(Node("lb1", ()), services, own, {item.name: item for item in pools if item.name not in used}))
    return wish.targets


def test_fifty_services_on_one_pool_are_one_check_of_each_endpoint():
    services = [service(f"s{i}", vips=(ip_address("20.20.21.0") + i,)) for i in range(50)]
    found = targets(*services, pools=[pool()])
    assert set(found.values()) == {Target(A, 80, TCP), Target(B, 80, TCP)}
    assert set(found) == {Use("web", A, 80), Use("web", B, 80)}


def test_two_pools_share_the_check_of_a_server():
    pools = [pool(Endpoint(A)), pool(Endpoint(A), Endpoint(B), name="other")]
    found = targets(service(), service("other", pool="other"), pools=pools)
    assert found[Use("web", A, 80)] is not None
    assert found[Use("web", A, 80)] == found[Use("other", A, 80)]
    assert len(set(found.values())) == 2


def test_other_parameters_are_another_check():
    pools = [pool(Endpoint(A)), pool(Endpoint(A), name="other", check=replace(TCP, fall=4))]
    assert len(set(targets(service(), service("other", pool="other"), pools=pools).values())) == 2


@pytest.mark.parametrize(("check", "endpoint", "more", "port"), [
    (TCP, Endpoint(A), {}, 80),
    (TCP, Endpoint(A), {"target_port": 8080}, 8080),
    (TCP, Endpoint(A, 9090), {"target_port": 8080}, 9090),
    (replace(TCP, port=7), Endpoint(A, 9090), {"target_port": 8080}, 7),
    (TCP, Endpoint(A, 80), {"mode": Mode.DSR_L3}, 80),
    (TCP, Endpoint(A), {"ports": (80, 443)}, 80),
    (replace(TCP, type=CheckType.PING), Endpoint(A, 9090), {}, 0),
    (replace(TCP, type=CheckType.PING), Endpoint(A), {"protocol": Protocol.ICMP, "ports": ()}, 0),
])  # fmt: skip
def test_port(check, endpoint, more, port):
    (target,) = targets(service(**more), pools=[pool(endpoint, check=check)]).values()
    assert target.port == port


@pytest.mark.parametrize("endpoint", [Endpoint(A, state=EndpointState.DRAINING), Endpoint(A, weight=0)])
def test_who_drains_is_still_checked(endpoint):
    assert len(targets(service(), pools=[pool(endpoint)])) == 1


def test_who_is_disabled_is_not_checked_and_nobody_without_a_check():
    assert not targets(service(), pools=[pool(Endpoint(A, state=EndpointState.DISABLED))])
    assert not targets(service(), pools=[pool(check=HealthCheck())])


def test_services_of_another_protocol_do_not_choose_the_port():
    """A UDP service on port 53 beside a TCP service on port 853, checked by TCP."""
    services = [service("udp", protocol=Protocol.UDP, ports=(53,)), service("tcp", ports=(853,))]
    for order in (services, services[::-1]):
        found = targets(*order, pools=[pool(Endpoint(A))])
        assert {target.port for target in found.values()} == {853}
        assert set(found) == {Use("web", A, 53), Use("web", A, 853)}


def test_through_the_vip_each_vip_is_a_target():
    check = replace(TCP, through=Through.VIP)
    found = targets(service(vips=(VIP, VIP2), mode=Mode.DSR_L3), pools=[pool(Endpoint(A), check=check)])
    assert found == {
        Use("web", A, 80, vip): Target(A, 80, check, vip, Mode.DSR_L3) for vip in (VIP, VIP2)
    }  # fmt: skip
    assert [target.asked for target in found.values()] == [VIP, VIP2]
    assert [target.place for target in found.values()] == [(str(VIP), 80), (str(VIP2), 80)]


def test_through_the_vip_of_a_mode_without_it_is_direct():
    """The rules refuse that, unless another service of the pool has a mode with it."""
    check = replace(TCP, through=Through.VIP)
    services = (service(), service("direct", vips=(VIP2,), mode=Mode.DSR_L3))
    found = targets(*services, pools=[pool(Endpoint(A), check=check)])
    assert {target.vip for target in found.values()} == {None, VIP2}


def test_a_fallback_is_checked():
    pools = [pool(Endpoint(A), fallback_pool="sorry"), pool(Endpoint(B), name="sorry")]
    assert set(targets(service(), pools=pools)) == {Use("web", A, 80), Use("sorry", B, 80)}


def test_uses_of_an_endpoint():
    assert list(uses_of(pool(), service(), Endpoint(B, 8080))) == [(Use("web", B, 8080), Target(B, 8080, TCP))]


@given(health_checks(), health_checks())
def test_digests_tell_targets_apart(one, other):
    first, second = Target(A, 80, one), Target(A, 80, other)
    assert len(first.digest) == DIGEST_BYTES
    assert (first == second) == (first.digest == second.digest) == (one == other)
    assert hash(first) == hash(Target(A, 80, replace(one)))
    assert Target(A, 80, one, VIP).digest != first.digest != Target(B, 80, one).digest


@pytest.mark.parametrize("name", [field.name for field in fields(HealthCheck)])
def test_every_parameter_counts(name):
    """A parameter that is left out of the digest would let two checks take each other's state."""
    check = replace(TCP, **{name: {"status": (201,), "headers": (("X", "y"),)}.get(name, 77)})
    assert Target(A, 80, check).digest != Target(A, 80, TCP).digest


def test_digests_are_the_same_in_every_process():
    """They are keys of tables that outlive a process; hash() is not."""
    code = (
        "from tests.health.test_target import *\n"
        "print(Target(A, 80, TCP, VIP).digest.hex(), Use('web', A, 80).digest.hex())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8", timeout=60,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {f"{Target(A, 80, TCP, VIP).digest.hex()} {Use('web', A, 80).digest.hex()}\n"}


@given(st.sampled_from([4, 6]))
def test_equal_addresses_of_two_families_are_two_targets(version):
    address = ip_address("::a02:b") if version == 6 else A
    assert Target(address, 80, TCP).asked.version == version
