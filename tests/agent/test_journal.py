# SPDX-License-Identifier: Apache-2.0
"""What an agent tells of itself: the words of GitOps, the conditions, the last changes; in bounds, and as the schemas
of schema/output/ say."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource

from reconciler.agent import upkeep
from reconciler.agent.event import Event, What
from reconciler.agent.fights import FIGHT, WINDOW_S
from reconciler.agent.journal import MAX_CONDITIONS, MAX_EVENTS, Identity, Journal, State
from reconciler.agent.report import Report, local_time
from reconciler.agent.state import headline, state_of
from reconciler.agent.wake import Wake
from reconciler.reconcile import plan_node
from reconciler.render.status import event_line, status_text
from reconciler.render.style import Style
from reconciler.resource import Concern, Key
from tests.agent.conftest import Node, edit

SCHEMAS = Path(__file__).parents[2] / "schema" / "output"
ME = Identity(1, "0.1.0", "lb1", "host", "default", "/etc/lbctl")


def validator(name):
    contents = {path.name: json.loads(path.read_text()) for path in SCHEMAS.iterdir()}
    registry = Registry().with_resources((n, Resource.from_contents(c)) for n, c in contents.items())
    return jsonschema.Draft202012Validator(contents[name], registry=registry)


@pytest.fixture
def journal():
    return Journal(ME)


@pytest.fixture
def node(manifests, tmp_path, journal):
    found = Node(manifests, tmp_path / "run" / "lba")
    found.agent.report = found.agent.upkeep.report = Report(io.StringIO(), Style(), listeners=[journal.hear])
    return found


def words(node):
    state = state_of(node.agent)
    return state.sync, state.health


def test_an_agent_is_unknown_then_synced_and_healthy(node, journal, manifests):
    assert words(node) == ("Unknown", "Progressing")
    node.agent.round(Wake.TIME)
    assert words(node) == ("Synced", "Healthy")
    state = state_of(node.agent)
    assert state.attempted == state.applied != ""
    assert headline(state).startswith("Synced, Healthy: ")


def test_the_node_is_told_by_its_name_in_the_manifests_though_nobody_gave_one(node, journal):
    journal.identity = replace(ME, node="")
    journal.publish(state_of(node.agent))
    assert journal.status()["agent"]["node"] == ""
    node.agent.round(Wake.TIME)
    journal.publish(state_of(node.agent))
    assert journal.status()["agent"]["node"] == "lb1"


def test_a_round_that_finds_nothing_to_do_begins_no_changes(node, journal, tmp_path):
    node.agent.round(Wake.TIME)
    again = Node(node.directory, tmp_path / "run" / "lba")
    again.share(node.kernel)
    again.agent.report = again.agent.upkeep.report = node.agent.report
    before = journal.count
    again.agent.round(Wake.TIME)
    assert words(again) == ("Synced", "Healthy")
    assert {event.what for event in journal.since(before, 0)[1]} == {What.NOTE}


def test_broken_manifests_are_unknown_and_the_revision_in_force_is_told_apart(node, journal, manifests):
    node.agent.round(Wake.TIME)
    applied = state_of(node.agent).applied
    edit(manifests / "pools.yaml", "weight: 2", "wight: 2")
    node.files_moved()
    state = state_of(node.agent)
    assert (state.sync, state.health, state.applied) == ("Unknown", "Degraded", applied)
    assert state.attempted not in ("", applied)
    (condition,) = journal.status()["conditions"]
    assert condition["about"] == "manifests"
    assert "pools.yaml:6:39: error: unknown key 'wight'" in condition["message"]
    edit(manifests / "pools.yaml", "wight: 2", "weight: 3")
    node.files_moved()
    assert words(node) == ("Synced", "Healthy")
    assert journal.status()["conditions"] == []
    assert state_of(node.agent).applied not in ("", applied)


def test_while_changes_are_made_the_node_is_progressing_and_out_of_sync(node, journal, manifests):
    node.agent.round(Wake.TIME)
    journal.publish(state_of(node.agent))
    seen = []

    def fails():
        status = journal.status()
        seen.append((status["sync"], status["health"]))
        return False

    node.kernel.fails = fails
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    node.files_moved()
    assert set(seen) == {("OutOfSync", "Progressing")}


def test_a_node_that_refuses_is_out_of_sync_and_degraded(node, journal, manifests):
    node.agent.round(Wake.TIME)
    node.kernel.fails = lambda: True
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    node.files_moved()
    assert words(node) == ("OutOfSync", "Degraded")
    assert "injected fault" in journal.status()["conditions"][0]["message"]
    node.kernel.fails = lambda: False
    node.now += 60
    node.agent.round(Wake.TIME)
    assert words(node) == ("Synced", "Healthy")
    assert not journal.status()["conditions"]


def test_a_fight_is_a_condition_with_its_object_and_field_until_nobody_fights(node, journal):
    node.agent.round(Wake.TIME)
    name = "net/ipv4/conf/front/forwarding"
    for _ in range(FIGHT):
        assert journal.status()["conditions"] == []
        node.kernel.sysctls[name] = "0"
        node.tick()
    [condition] = journal.status()["conditions"]
    assert condition["about"] == f"sysctl {name}"
    assert condition["message"].startswith("value was changed by somebody else 5 times in 10 minutes")
    assert condition["hint"]
    node.tick()
    assert len(journal.status()["conditions"]) == 1
    node.now += WINDOW_S
    node.agent.round(Wake.TIME)
    assert journal.status()["conditions"] == []


def test_a_paused_agent_says_what_others_have_made_of_the_node_and_of_the_manifests(node, manifests):
    node.agent.round(Wake.TIME)
    node.agent.held = lambda: "paused"
    node.agent.round(Wake.SETTLED)
    assert words(node) == ("Synced", "Healthy")
    other = Node(manifests, node.agent.instance_dir)  # another process, which puts an older revision in force
    other.share(node.kernel)
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    other.agent.round(Wake.TIME)
    edit(manifests / "pools.yaml", "weight: 3", "weight: 2")
    node.kernel.writes.clear()
    node.agent.round(Wake.SETTLED)
    state = state_of(node.agent, other.agent.upkeep.revision)
    assert (state.sync, state.open, state.applied) == ("OutOfSync", 1, other.agent.upkeep.revision)
    assert state.attempted == node.agent.upkeep.revision != state.applied
    other.agent.round(Wake.FILES)
    node.kernel.writes.clear()
    node.agent.round(Wake.SETTLED)
    assert words(node) == ("Synced", "Healthy")
    edit(manifests / "pools.yaml", "weight: 2", "weight: 4")
    node.agent.round(Wake.FILES)
    assert words(node)[0] == "OutOfSync"
    assert node.kernel.writes == []
    node.agent.held = lambda: ""
    node.agent.round(Wake.SETTLED)
    assert words(node) == ("Synced", "Healthy")


def test_a_paused_agent_looks_at_the_node_when_that_is_due_and_else_only_if_something_has_changed(node, monkeypatch):
    node.agent.round(Wake.TIME)
    node.agent.held = lambda: "paused"
    looked = []
    monkeypatch.setattr(upkeep, "plan_node", lambda *args: looked.append(1) or plan_node(*args))
    for _ in range(5):
        node.agent.round(Wake.KEYS)
    assert len(looked) == 1
    node.now = node.agent.due
    for _ in range(5):
        node.agent.round(Wake.TIME)
    assert len(looked) == 2


def test_changes_name_what_changed_from_what_to_what_and_where(node, journal, manifests):
    node.agent.round(Wake.TIME)
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    node.files_moved()
    (change,) = [c for c in journal.status()["changes"] if c["about"] == "ring web/round-robin"][-1:]
    assert change["action"] == "update" and change["origin"] == "pools.yaml:1"
    assert "10.2.0.1:8080 66.7% -> 75.0%" in change["message"]
    assert change["revision"] == state_of(node.agent).applied
    assert "connections" in change["effect"]


def test_status_and_events_are_as_their_schemas_say(node, journal, manifests):
    edit(manifests / "pools.yaml", "weight: 2", "wight: 2")
    node.agent.round(Wake.TIME)
    validator("status.v1.json").validate(journal.status())
    assert journal.status()["conditions"]
    edit(manifests / "pools.yaml", "wight: 2", "weight: 2")
    node.files_moved()
    node.agent.report.concerns([Concern(Key("vip", "20.20.20.1"), "it may not work", "do this")])
    node.agent.report.command("root, pid 7, asks", user="root, pid 7")
    node.agent.report.alarm("a fight")
    node.agent.report.concerns([])
    journal.publish(state_of(node.agent))
    status = json.loads(json.dumps(journal.status()))
    validator("status.v1.json").validate(status)
    _, events = journal.since(0, 0)
    assert {event.what for event in events} >= {What.CHANGE, What.APPLIED, What.PROBLEM, What.OVER, What.BEGINS}
    for event in events:
        validator("event.v1.json").validate(json.loads(json.dumps(event.to_json())))


def test_the_log_as_json_has_an_event_a_line(node):
    log = io.StringIO()
    node.agent.report = node.agent.upkeep.report = Report(log, Style(), as_json=True)
    node.agent.round(Wake.TIME)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    for line in lines:
        validator("event.v1.json").validate(line)
    assert [line["event"] for line in lines][-1] == "applied"
    assert lines[-1]["changes"] == sum(line["event"] == "change" for line in lines)


def test_colours_of_a_terminal_are_in_no_event(journal):
    report = Report(io.StringIO(), Style(colour=True), listeners=[journal.hear])
    report.problem("manifests", "\x1b[1mweb.yaml:\x1b[0m error", "nothing was changed")
    assert journal.status()["conditions"][0]["message"] == "web.yaml: error"


def test_nothing_grows_without_a_bound(journal):
    now = local_time()
    for number in range(3 * MAX_EVENTS):
        journal.hear(Event(now, What.WARNING, str(number), f"vip {number}"))
        journal.hear(Event(now, What.CHANGE, str(number)))
    status = journal.status()
    assert len(status["conditions"]) == MAX_CONDITIONS
    assert len(status["changes"]) == 20 and status["changes"][-1]["message"] == str(3 * MAX_EVENTS - 1)
    assert len(journal.since(0, 0)[1]) == MAX_EVENTS


def test_status_for_people_has_the_words_the_lines_and_fits(journal):
    journal.publish(State("OutOfSync", "Degraded", "b" * 64, "a" * 64, 12, 3, "", 1.0, 30.0))
    long = "pools.yaml:3:5: error: " + "one word and another " * 20
    journal.hear(Event(local_time(), What.PROBLEM, long, "manifests", "the node is kept"))
    journal.hear(Event(local_time(), What.CHANGE, "+ vip \x1b[2J20.20.20.1", facts={"origin": "a.yaml:1"}))
    shares = "  ".join(f"10.2.0.{n}:8080 25.0% -> 50.0%" for n in range(9))
    journal.hear(Event(local_time(), What.CHANGE, f"~ ring web/round-robin  {shares}"))
    journal.hear(Event(local_time(), What.WARNING, "word " * 40, "node", "a way out " * 12))
    text = status_text(journal.status(), Style(columns=80))
    assert "aaaaaaaaaaaa, attempted: bbbbbbbbbbbb" in text
    assert "12, 3 not as they should be" in text
    assert "a.yaml:1" in text and "\\x1b[2J" in text
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"25\.0% -> 50\.0%  10\.2\.0\.\d:8080\n +25\.0%|\n +10\.2\.0\.\d:8080 25\.0%", text)
    for event in journal.status()["conditions"]:
        assert max(map(len, event_line(event, Style(columns=80)).splitlines())) <= 80
    paused = replace(State(), paused="paused until noon, by ann: " + "a reason that is long " * 6)
    journal.publish(paused)
    text = status_text(journal.status(), Style(colour=True, columns=80))
    assert max(map(len, re.sub(r"\x1b\[[0-9]*m", "", text).splitlines())) <= 80
    assert "paused      \x1b[0m\x1b[33muntil noon, by ann" in text
    assert event_line(journal.status()["conditions"][0], Style()).count("\n") == 1
