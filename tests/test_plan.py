# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.errors import LbctlError, UsageError
from reconciler.kernel.fake import FakeKernel
from reconciler.live import read_live
from reconciler.model import Algorithm, Endpoint, EndpointState
from reconciler.plan import fingerprint, guard, plan
from reconciler.render.markdown import plan_markdown
from reconciler.render.style import Style
from reconciler.render.text import plan_text, summary
from reconciler.resource import Action, Desired, Key, Live, Reason
from reconciler.snapshot import live_from_json, live_to_json, plan_from_json, plan_to_json
from reconciler.target import Target
from reconciler.view import view


@pytest.fixture
def desired(web_fleet):
    return compile_node(view(web_fleet, None, "host"))


@pytest.fixture
def node(desired):
    """A node that holds what the fleet asks for, and what was applied to it."""
    kernel = FakeKernel()
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    return kernel


def with_pool(fleet, change):
    pool = fleet.pools[0]
    return replace(fleet, pools=(replace(pool, endpoints=change(pool.endpoints)),))


def plan_edit(node, fleet):
    wanted = compile_node(view(fleet, None, "host"))
    return plan(wanted, read_live(node, wanted.resources))


def addresses(plan_):
    return [(c.action.value, str(c.key)) for c in plan_.changes]


def test_an_added_endpoint_changes_its_row_and_its_ring_only(node, web_fleet):
    new = replace(web_fleet.pools[0].endpoints[0], address=IPv4Address("10.2.0.3"))
    planned = plan_edit(node, with_pool(web_fleet, lambda e: (*e, new)))
    assert addresses(planned) == [("create", "endpoint 10.2.0.3:8080"), ("update", "ring web/round-robin")]


def test_a_changed_weight_changes_the_ring_only_and_says_what_moves(node, web_fleet):
    planned = plan_edit(node, with_pool(web_fleet, lambda e: (replace(e[0], weight=1), *e[1:])))
    assert addresses(planned) == [("update", "ring web/round-robin")]
    text = plan_text(planned, Style())
    assert "10.2.0.1:8080  66.7% -> 50.0%" in text
    assert "16.7% of new connections move; open connections stay" in text


def test_a_removed_endpoint_leaves_the_ring_before_its_row_goes(node, web_fleet):
    planned = plan_edit(node, with_pool(web_fleet, lambda e: e[:1]))
    assert addresses(planned) == [("update", "ring web/round-robin"), ("delete", "endpoint 10.2.0.2:8080")]


def test_disabling_says_how_many_connections_end(node, web_fleet):
    edited = with_pool(web_fleet, lambda e: (e[0], replace(e[1], state=EndpointState.DISABLED)))
    planned = plan_edit(node, edited)
    live = replace(planned.live, connections={("20.20.20.1:80/tcp", "10.2.0.2:8080"): 3})
    assert "3 connections end" in plan_text(replace(planned, live=live), Style())


def test_another_algorithm_adds_a_ring_switches_the_service_and_removes_the_old_ring(node, web_fleet):
    service = replace(web_fleet.services[0], algorithm=Algorithm.SOURCE_HASH)
    planned = plan_edit(node, replace(web_fleet, services=(service,)))
    kinds = [key for _, key in addresses(planned)]
    ring, row = kinds.index("ring web/source-hash"), kinds.index("service 20.20.20.1:80/tcp")
    assert ring < row < kinds.index("ring web/round-robin")


def test_a_program_that_changes_says_its_features_before_and_after(node, web_fleet):
    service = replace(web_fleet.services[0], algorithm=Algorithm.SOURCE_HASH)
    text = plan_text(plan_edit(node, replace(web_fleet, services=(service,))), Style())
    assert "features  echo, nat, round-robin -> echo, nat, source-hash" in text


def test_the_reason_is_drift_where_the_wish_stands_still(node, desired):
    applied = {key: fingerprint(r) for key, r in desired.resources.items()}
    node.vips.clear()
    node.maps["services"].clear()
    planned = plan(desired, read_live(node, desired.resources), applied)
    assert [(str(c.key), c.reason) for c in planned.changes] == [
        ("service 20.20.20.1:80/tcp", Reason.DRIFT),
        ("loopback 20.20.20.1", Reason.DRIFT),
    ]
    assert summary(planned) == "Plan: 2 to add, 0 to change, 0 to remove (2 drifted)."


def test_what_nobody_asked_for_is_drift_and_what_was_asked_for_once_is_removed(node, desired):
    live = read_live(node, desired.resources)
    vip = Key("vip", "20.20.20.1")
    less = Desired({key: r for key, r in desired.resources.items() if key != vip})
    applied = {key: fingerprint(r) for key, r in desired.resources.items()}
    assert plan(less, live, applied).changes[0].reason is Reason.REMOVED
    del applied[vip]
    assert plan(less, live, applied).changes[0].reason is Reason.DRIFT


def test_taking_every_service_off_a_node_needs_a_word(node, web_fleet):
    planned = plan_edit(node, replace(web_fleet, services=()))
    with pytest.raises(LbctlError, match="no service at all"):
        guard(planned, allow_empty=False)
    guard(planned, allow_empty=True)


def test_no_changes_reads_so(node, desired):
    assert plan_text(plan(desired, read_live(node, desired.resources)), Style()).startswith("No changes.")


def test_a_plan_from_nothing_needs_no_kernel_and_reads_in_order(desired):
    planned = plan(desired, Live())
    kinds = list(dict.fromkeys(change.key.kind for change in planned.changes))
    assert kinds == ["sysctl", "program", "xdp", "routers", "endpoint", "ring", "service", "vip", "loopback"]
    assert planned.count(Action.CREATE) == sum(not r.is_given for r in desired.resources.values())


def test_snapshots_and_saved_plans_read_back_equal(node, desired):
    live = read_live(node, desired.resources)
    live = replace(live, connections={("s", "e"): 2}, foreign={Key("xdp", "eth9"): "them"})
    assert live_from_json(live_to_json(live)) == live
    planned = plan(desired, Live())
    target = Target("lb1", "default", "host")
    saved = plan_from_json(json.loads(json.dumps(plan_to_json(planned, target))))
    assert (saved.target, saved.changes, saved.desired.resources) == (target, planned.changes, desired.resources)


@pytest.mark.parametrize(
    "damage", [{}, {"format_version": 99}, {"format_version": 1, "resources": [{"kind": "vip"}]}, []]
)
def test_a_damaged_snapshot_is_an_error_with_a_way_out(damage):
    with pytest.raises(LbctlError) as caught:
        live_from_json(damage)
    assert "make a new one" in caught.value.hint


def test_markdown_folds_the_details(node, web_fleet):
    text = plan_markdown(plan_edit(node, with_pool(web_fleet, lambda e: e[:1])), "lb1")
    assert text.startswith("**lb1**: Plan: 0 to add, 1 to change, 1 to remove.")
    assert "<details>" in text
    assert "\n! ring web/round-robin" in text
    assert "\n- endpoint 10.2.0.2:8080" in text


def test_an_unknown_node_is_named_with_what_there_is(web_fleet):
    with pytest.raises(UsageError) as caught:
        view(web_fleet, "lb2", "host")
    assert "did you mean 'lb1'?" in caught.value.hint


def test_an_endpoint_whose_share_is_less_than_a_slot_does_no_harm(web_fleet):
    pool, service = web_fleet.pools[0], web_fleet.services[0]
    heavy = [Endpoint(IPv4Address(f"10.2.1.{i}"), 80, weight=1000) for i in range(30)]
    fleet = replace(
        web_fleet,
        pools=(replace(pool, endpoints=(Endpoint(IPv4Address("10.2.1.200"), 80), *heavy)),),
        services=(replace(service, algorithm=Algorithm.SOURCE_HASH),),
    )
    kernel = FakeKernel()
    apply(plan_edit(kernel, fleet), kernel).raise_if_failed()
    assert plan_edit(kernel, fleet).changes == ()
