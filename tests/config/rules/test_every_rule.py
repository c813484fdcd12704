# SPDX-License-Identifier: Apache-2.0
"""Each rule finds what it is for, says it in the words of expected/<rule>.txt, and lets the nearest sound
manifests pass.

After a change of messages: LBCTL_WRITE_EXPECTED=1 pytest tests/config/rules/test_every_rule.py, and read the diff.
"""

import os
from pathlib import Path

import pytest

from reconciler.config.diagnostic import Severity, render_text
from reconciler.config.load import load
from reconciler.config.rules import RULES
from tests.config.manifests import pool
from tests.config.rules import (
    test_addresses,
    test_bgp,
    test_capacity,
    test_dsr,
    test_echo,
    test_fallback,
    test_families,
    test_fullnat,
    test_health,
    test_health_address,
    test_names,
    test_nodes,
    test_pools,
    test_ports,
    test_sources,
    test_timeouts,
    test_topology,
    test_tunnels,
    test_vrrp,
    test_ways,
)

EXPECTED = Path(__file__).parent / "expected"
MODULES = (
    test_addresses, test_bgp, test_capacity, test_dsr, test_echo, test_fallback, test_families, test_fullnat,
    test_health, test_health_address, test_names, test_nodes, test_pools, test_ports, test_sources, test_timeouts,
    test_topology, test_tunnels, test_vrrp, test_ways,
)  # fmt: skip
CASES = {rule: case for module in MODULES for rule, case in module.CASES.items()}


def test_every_rule_is_tried():
    assert CASES.keys() == RULES.keys()
    assert {path.stem for path in EXPECTED.iterdir()} == RULES.keys()


@pytest.mark.parametrize("rule", CASES)
def test_rule_finds_what_breaks_it_and_nothing_else(write, rule):
    loaded = load(write({"all.yaml": CASES[rule][0]}))
    assert {diagnostic.rule for diagnostic in loaded.diagnostics} == {rule}
    assert {diagnostic.severity for diagnostic in loaded.diagnostics} == {RULES[rule].severity}
    assert (loaded.fleet is None) == (RULES[rule].severity is Severity.ERROR)


@pytest.mark.parametrize("rule", CASES)
def test_rule_lets_pass_what_does_not_break_it(write, rule):
    loaded = load(write({"all.yaml": CASES[rule][1]}))
    assert loaded.diagnostics == ()
    assert loaded.fleet is not None


@pytest.mark.parametrize("rule", CASES)
def test_message_is_as_expected(write, rule):
    loaded = load(write({"all.yaml": CASES[rule][0]}))
    text = render_text(loaded.diagnostics, loaded.texts) + "\n"
    expected = EXPECTED / f"{rule}.txt"
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        EXPECTED.mkdir(exist_ok=True)
        expected.write_text(text)
    assert text == expected.read_text()


@pytest.mark.parametrize("rule", CASES)
def test_message_tells_the_way_out(write, rule):
    loaded = load(write({"all.yaml": CASES[rule][0]}))
    assert all(diagnostic.hint for diagnostic in loaded.diagnostics)


@pytest.mark.parametrize("rule", CASES)
def test_documentation_says_what_why_and_the_way_out(rule):
    what, *why, way_out = RULES[rule].text.split("\n\n")
    assert len(" ".join(what.split())) < 320
    assert why
    assert way_out.startswith("The way out: ")


def test_only_warnings_leave_a_fleet(write):
    loaded = load(write({"all.yaml": pool(endpoints="")}))
    assert {d.severity for d in loaded.diagnostics} == {Severity.WARNING}
    assert [p.name for p in loaded.fleet.pools] == ["web"]
