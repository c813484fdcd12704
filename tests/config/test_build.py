# SPDX-License-Identifier: Apache-2.0
"""Documents become the model, field by field."""

import json
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.config import schema
from reconciler.config.build import build, count_ports
from reconciler.config.document import parse
from reconciler.model import Algorithm, HealthCheck, Mode, Role
from reconciler.resource import Span
from tests.config.manifests import as_document, node, pool, service
from tests.strategies import any_nodes, any_pools, any_services


def document_of(text):
    (document,) = parse("all.yaml", text)
    assert document.diagnostics == []
    assert schema.check(document) == []
    return document


def built(text):
    return build(document_of(text))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.one_of(any_services(), any_pools, any_nodes()))
def test_whatever_the_model_holds_can_be_written_and_is_read_again(item):
    assert built(json.dumps(as_document(item))) == item


@pytest.mark.parametrize(
    ("mode", "usual"),
    [("nat", "round-robin"), ("fullnat", "round-robin"), ("dsr-l2", "maglev"), ("dsr-l3", "maglev")],
)
def test_the_usual_algorithm_depends_on_the_mode(mode, usual):
    assert built(service(more=f"mode: {mode}")).algorithm is Algorithm(usual)
    assert built(service(more=f"mode: {mode}, algorithm: source-hash")).algorithm is Algorithm.SOURCE_HASH


def test_direct_server_return_is_a_property_of_two_modes():
    assert [mode for mode in Mode if mode.is_dsr] == [Mode.DSR_L2, Mode.DSR_L3]


def test_one_vip_is_a_list_of_one():
    assert built(service(vip="2001:DB8::0:1")).vips == (IPv6Address("2001:db8::1"),)


def test_what_a_health_check_leaves_out_is_usual():
    assert built(pool(more="healthCheck: {type: tcp}")).health_check == HealthCheck(type="tcp")
    assert built(pool()).health_check == HealthCheck()


def test_each_key_of_a_spec_knows_its_place():
    text = "# a comment\napiVersion: lbctl/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  vip: 20.20.20.1\n"
    found = built(text + "  ports: [80]\n  pool: web\n")
    assert found.span == Span("all.yaml", 2)
    assert found.places == {
        "vip": Span("all.yaml", 6, 3), "ports": Span("all.yaml", 7, 3), "pool": Span("all.yaml", 8, 3),
    }  # fmt: skip


def test_ports_are_counted_for_each_vip():
    ports = "ports: [80, 8000-8009]"
    assert count_ports(document_of(service(ports="[80, 8000-8009]"))) == 11
    assert count_ports(document_of(f"{{apiVersion: lbctl/v1, kind: Service, metadata: {{name: web}}, spec: {{"
                                   f"vips: [20.20.20.1, 20.20.20.2], {ports}, pool: web}}}}")) == 22  # fmt: skip
    assert count_ports(document_of(pool())) == count_ports(document_of(node())) == 0


def test_a_service_runs_on_balancers_with_all_of_its_labels():
    chosen = built(service(more="nodeSelector: {site: north, tier: front}"))
    labels = "labels: {site: north, tier: front, rack: '7'}"
    fitting = built(node().replace("{name: lb1}", f"{{name: lb1, {labels}}}"))
    assert chosen.runs_on(fitting)
    assert built(service()).runs_on(fitting)
    assert not chosen.runs_on(built(node().replace("{name: lb1}", "{name: lb1, labels: {site: north}}")))
    router = built(node(more="role: router").replace("{name: lb1}", f"{{name: lb1, {labels}}}"))
    assert router.role is Role.ROUTER
    assert not built(service()).runs_on(router)
