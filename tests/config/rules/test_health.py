# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import pool, service
from tests.config.rules.parts import web

CASES = {
    "check-through-vip": (
        web(check="{type: tcp, through: vip}"),
        web("dsr-l3", check="{type: tcp, through: vip}"),
    ),
    "check-bypasses-vip": (
        web("dsr-l3", check="{type: tcp}"),
        web("fullnat", check="{type: tcp}"),
    ),
    "check-protocol": (
        web(more="protocol: udp", check="{type: tcp}"),
        web(more="protocol: udp", check="{type: tcp, port: 8081}"),
    ),
    "check-port-unknown": (
        web(ports="[8000-8010]", check="{type: http}"),
        web(ports="[8000-8010]", check="{type: http, port: 8000}"),
    ),
    "check-timeout": (
        web(check="{type: tcp, timeout: 2s}"),
        web(check="{type: tcp, timeout: 1999ms}"),
    ),
    "check-slow": (
        web(check="{type: tcp, interval: 20s}"),
        web(check="{type: tcp, interval: 19s}"),
    ),
    "check-silent": (
        web(more="protocol: udp", check="{type: udp, send: PING}"),
        web(more="protocol: udp", check="{type: udp, send: PING, expect: PONG}"),
    ),
}


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


def test_pool_of_nat_and_dsr_is_checked_through_the_vip(write):
    """Its endpoints have the VIP of the DSR service, which such a check proves."""
    text = web("dsr-l3", check="{type: tcp, port: 80, through: vip}") + service("b", ports="[81]")
    assert load(write({"all.yaml": text})).diagnostics == ()


@pytest.mark.parametrize("check", ["{type: none, through: vip}", "{type: none, interval: 1s, timeout: 5s}"])
def test_no_check_is_no_mistake(write, check):
    assert load(write({"all.yaml": web(check=check)})).diagnostics == ()


def test_one_service_of_the_right_protocol_is_enough(write):
    text = web(more="protocol: udp", ports="[53]", check="{type: tcp}") + service("tcp", ports="[53]")
    assert load(write({"all.yaml": text})).diagnostics == ()


@pytest.mark.parametrize("endpoints", ["{address: 10.2.0.11, port: 8080}", "{address: 10.2.0.11}"])
def test_port_of_the_check_is_known_if_connections_go_to_one(write, endpoints):
    other = "[81]" if "port" in endpoints else "[80]"
    text = web(endpoints=endpoints, check="{type: tcp}") + service("b", vip="20.20.20.2", ports=other)
    assert load(write({"all.yaml": text})).diagnostics == ()


def test_two_target_ports_leave_the_port_of_the_check_open(write):
    text = web(more="targetPort: 8080", check="{type: tcp}") + service("b", ports="[81]", more="targetPort: 8081")
    assert rules_of(load(write({"all.yaml": text}))) == ["check-port-unknown"]


def test_service_in_a_broken_document_may_be_the_one_that_fits(write):
    """A broken service may be in mode dsr-l3, or of the protocol of the check."""
    files = {
        "pools.yaml": pool(more="healthCheck: {type: udp, expect: x, through: vip}") + service(),
        "broken.yaml": service("b", ports="[0]"),
    }
    assert rules_of(load(write(files))) == ["out-of-range"]


@pytest.mark.parametrize("written", ["interval: 1s", "timeout: 2s"])
def test_finding_is_on_the_duration_that_was_written(write, written):
    text = web(check=f"{{type: tcp, {written}}}")
    (found,) = load(write({"all.yaml": text})).diagnostics
    assert found.rule == "check-timeout"
    assert text.split("\n")[found.span.line - 1][found.span.column - 1 :].startswith(written.split()[1])
