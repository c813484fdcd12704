# SPDX-License-Identifier: Apache-2.0
"""The verbs as a user calls them, on a real kernel, in a namespace of their own."""

import json
import subprocess

import pytest

from tests.cli.conftest import ip

pytestmark = pytest.mark.kernel


def test_apply_then_plan_says_no_changes(lbctl, manifests):
    assert "to add, 0 to change, 0 to remove." in lbctl("plan", manifests, "--live", "empty")
    lbctl("plan", manifests, "--detailed-exitcode", code=2)
    assert "Applied:" in lbctl("apply", manifests, "--auto-approve")
    assert lbctl("plan", manifests, "--detailed-exitcode").startswith("No changes.")
    assert "20.20.20.1:80/tcp" in lbctl("get", "services")


def test_apply_asks_and_without_anybody_to_answer_changes_nothing(lbctl, manifests):
    assert "--auto-approve" in lbctl("apply", manifests, code=2)
    assert "There are no services" in lbctl("get", "services")


def test_damage_by_hand_is_drift_and_apply_mends_it(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    ip("-n", netns, "route", "del", "local", "20.20.20.1", "dev", "lo", "table", "local")
    text = lbctl("plan", manifests)
    assert "loopback 20.20.20.1" in text
    assert "drift" in text
    assert "Plan: 1 to add, 0 to change, 0 to remove (1 drifted)." in text
    lbctl("apply", manifests, "--auto-approve")
    assert "20.20.20.1" in ip("-n", netns, "route", "show", "table", "local")


def test_a_saved_plan_is_applied_and_refused_once_the_node_has_changed(lbctl, manifests, tmp_path):
    saved = tmp_path / "change.plan"
    lbctl("plan", manifests, "--out", saved)
    lbctl("apply", saved, "--auto-approve")
    assert lbctl("plan", manifests).startswith("No changes.")
    assert "the node has changed since the plan was made" in lbctl("apply", saved, "--auto-approve", code=5)


def test_a_saved_plan_is_bound_to_its_node_and_instance_and_takes_no_environment(lbctl, manifests, tmp_path):
    saved = tmp_path / "change.plan"
    assert lbctl("plan", manifests, "--out", saved).startswith("Plan for node lb1, instance ")
    assert "a plan for node lb1, and this is lb2" in lbctl("apply", saved, "--node", "lb2", code=2)
    assert "has its environment already" in lbctl("apply", saved, "--env", "prod", code=2)
    assert "has its commit already" in lbctl("apply", saved, "--ref", "HEAD", code=2)
    data = json.loads(saved.read_text())
    saved.write_text(json.dumps(data | {"layout": "00000000"}))
    assert "a plan for layout 00000000, and this is" in lbctl("apply", saved, "--auto-approve", code=2)
    saved.write_text(json.dumps(data | {"instance": "other"}))
    assert "a plan for instance other, and this is" in lbctl("apply", saved, "--auto-approve", code=2)
    data["desired"].append({"kind": "sysctl", "name": "kernel/core_pattern", "value": "|/bin/true"})
    saved.write_text(json.dumps(data))
    assert "no manifests ask for sysctl kernel/core_pattern" in lbctl("apply", saved, "--auto-approve", code=1)
    assert "Nothing of lbctl's is on this node." in lbctl("delete", "--auto-approve")


def test_a_target_leaves_the_rest_as_it_is_and_a_saved_plan_remembers_it(lbctl, manifests, tmp_path):
    services = manifests / "services.yaml"
    first = services.read_text().split("\n---\n")[0]
    more = first.replace("name: web", "name: more").replace("20.20.20.1", "20.20.20.9")
    services.write_text(f"{services.read_text().rstrip()}\n---\n{more}")
    saved = tmp_path / "change.plan"
    text = lbctl("plan", manifests, "--target", "service/web", "--out", saved)
    assert "20.20.20.9" not in text
    assert "Only service/web and what that needs; changes left out: 3." in text
    lbctl("apply", saved, "--auto-approve")
    assert "20.20.20.1:80/tcp" in (shown := lbctl("get", "services"))
    assert "20.20.20.9" not in shown
    assert "Only service/web" in lbctl("apply", manifests, "--target", "service/web", "--auto-approve")
    assert "3 to add, 0 to change, 0 to remove." in lbctl("plan", manifests)
    assert "did you mean 'service/more'?" in lbctl("plan", manifests, "--target", "service/mor", code=2)
    assert json.loads(lbctl("history", "--json"))["current"] is None, "no revision is in force as a whole"
    lbctl("apply", manifests, "--auto-approve")
    services.write_text(services.read_text().split("\n---\n")[0])
    one = "service 20.20.20.9:80/tcp"
    lbctl("apply", manifests, "--target", one, "--target", "vip 20.20.20.9", "--auto-approve")
    assert "20.20.20.9" not in lbctl("get", "services")


def test_a_snapshot_plans_like_the_node_itself(lbctl, manifests, tmp_path):
    lbctl("apply", manifests, "--auto-approve")
    snapshot = tmp_path / "node.json"
    snapshot.write_text(lbctl("export", manifests))
    assert lbctl("plan", manifests, "--live", snapshot).startswith("No changes.")
    pools = manifests / "pools.yaml"
    pools.write_text(pools.read_text().replace("weight: 2", "weight: 1"))
    planned = json.loads(lbctl("plan", manifests, "--live", snapshot, "--format", "json"))
    assert [change["address"] for change in planned["resource_changes"]] == ["ring web/round-robin"]


def test_somebody_elses_program_blocks_the_plan_and_is_named(lbctl, manifests, netns, foreign_program):
    foreign_program("front")
    text = lbctl("plan", manifests, code=6)
    assert "! xdp front" in text
    assert "xdp_stranger" in text
    assert "xdp_stranger" in lbctl("apply", manifests, "--auto-approve", code=6)
    assert "xdp" in ip("-n", netns, "link", "show", "front")


def test_explain_asks_the_program_that_apply_loaded(lbctl, manifests):
    assert "no program is loaded" in lbctl("explain", "198.51.100.7:40000", "20.20.20.1:80", code=1)
    lbctl("apply", manifests, "--auto-approve")
    text = lbctl("explain", "198.51.100.7:40000", "20.20.20.1:80")
    assert text.startswith("via kernel:")  # nobody in this namespace answers for an address
    assert "service     20.20.20.1:80/tcp, nat, round-robin" in text
    assert "ring        web/round-robin, slot 0 of 4" in text
    assert "endpoint    10.2.0.11:8080, usable" in text
    assert "not for a VIP" in lbctl("explain", "198.51.100.7:40000", "20.20.20.2:80")


def test_settings_come_back_when_everything_is_deleted(lbctl, manifests, netns):
    names = ["all", "lo", "front", "back"]
    paths = [f"/proc/sys/net/ipv4/conf/{name}/forwarding" for name in names]

    def forwarding():
        argv = ["ip", "netns", "exec", netns, "cat", *paths]
        values = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        return dict(zip(names, values, strict=True))

    before = forwarding()
    lbctl("apply", manifests, "--auto-approve")
    assert forwarding() == before | {"front": "1", "back": "1"}
    assert "Applied" in lbctl("delete", "--auto-approve")
    assert forwarding() == before
    assert "Nothing of lbctl's" in lbctl("delete", "--auto-approve")


def test_invalid_manifests_change_nothing(lbctl, manifests):
    lbctl("apply", manifests, "--auto-approve")
    (manifests / "services.yaml").write_text("apiVersion: lbctl/v1\nkind: Service\n  bad: indentation\n")
    text = lbctl("apply", manifests, "--auto-approve", code=1)
    assert "services.yaml:3" in text
    assert "20.20.20.1:80/tcp" in lbctl("get", "services")


def test_taking_all_services_away_needs_allow_empty(lbctl, manifests):
    lbctl("apply", manifests, "--auto-approve")
    (manifests / "services.yaml").unlink()
    assert "--allow-empty" in lbctl("apply", manifests, "--auto-approve", code=1)
    lbctl("apply", manifests, "--auto-approve", "--allow-empty")
    assert "There are no services" in lbctl("get", "services")


@pytest.mark.parametrize("what", ["services", "endpoints", "health", "checker", "drains", "flows", "verdicts"])
@pytest.mark.parametrize("output", ["table", "wide", "json", "yaml"])
def test_get_works_before_anything_was_applied(lbctl, what, output):
    assert lbctl("get", what, "-o", output)
