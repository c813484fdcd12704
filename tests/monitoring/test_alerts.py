# SPDX-License-Identifier: Apache-2.0
"""Each alert fires for its cause and not without it, is about metrics that a node tells, and says what to do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reconciler.agent.journal import Identity, Journal, State
from reconciler.agent.metrics import agent_families
from reconciler.dataplane.layout import Verdict
from reconciler.readings import metrics
from reconciler.readings.health import STATES, Checker
from tests.agent.conftest import Node

CHECKOUT = Path(__file__).resolve().parents[2]
MONITORING = CHECKOUT / "examples" / "monitoring"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
          for rule in group["rules"]}  # fmt: skip
PROMTOOL = Path(sys.executable).parent / "promtool"
STEP_M = 1
UP = 'up{job="lbctl",instance="lb1"}'


def of(name, instance="lb1", **labels):
    """A series of a node."""
    pairs = [("instance", instance), *labels.items()]
    return f"lbctl_{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in pairs)}}}"


CASES = {
    "LbctlAgentDown": ({UP: "0x60"}, {UP: "1x60"}),
    "LbctlUnknown": ({of("sync", state="Unknown"): "1x60"}, {of("sync", state="Unknown"): "0x60"}),
    "LbctlOutOfSync": (
        {of("sync", state="OutOfSync"): "1x60", of("paused"): "0x60"},
        {of("sync", state="OutOfSync"): "1x60", of("paused"): "1x60"},
    ),
    "LbctlDegraded": (
        {of("health", state="Degraded"): "1x60"},
        {of("health", state="Degraded"): "1x5 0x3 1x5 0x45"},
    ),
    "LbctlPaused": ({of("paused"): "1x300"}, {of("paused"): "1x200 0x100"}),
    "LbctlDrift": (
        {of("changes_total", reason="drift"): "0+1x60"},
        {of("changes_total", reason="drift"): "0x20 1x40", of("changes_total", reason="config"): "0+9x60"},
    ),
    "LbctlNoEndpoint": (
        {of("packets_total", verdict="no_endpoint"): "0+10x60"},
        {of("packets_total", verdict="no_endpoint"): "7x60", of("packets_total", verdict="request"): "0+9x60"},
    ),
    "LbctlNoWayOut": (
        {of("packets_total", verdict="no_route"): "0+50x60", of("packets_total", verdict="off_link"): "0+50x60"},
        {of("packets_total", verdict="no_route"): "0+50x60", of("packets_total", verdict="undefined"): "0+900x60"},
    ),
    "LbctlConnectionsNearlyFull": (
        {of("connections", state="open"): "80x60", of("connections", state="opening"): "15x60",
         of("connections_max"): "100x60"},
        {of("connections", state="open"): "80x60", of("connections_max"): "100x60",
         of("connections", instance="lb2", state="open"): "80x60",
         of("connections", "lb3", state="open", mode="nat"): "60x60",
         of("connections_max", "lb3", mode="nat"): "100x60",
         of("connections", "lb3", state="open", mode="fullnat"): "60x60",
         of("connections_max", "lb3", mode="fullnat"): "100x60"},
    ),
    "LbctlConnectionsRefused": (
        {of("packets_total", verdict="table_full"): "0+1x60"},
        {of("packets_total", verdict="table_full"): "7x60", of("packets_total", verdict="no_endpoint"): "0+9x60"},
    ),
    "LbctlPortsExhausted": (
        {of("packets_total", verdict="address_clash"): "0+1x60"},
        {of("packets_total", verdict="address_clash"): "5x60"},
    ),
    "LbctlSourcePortsExhausted": (
        {of("packets_total", verdict="no_port"): "0+1x60"},
        {of("packets_total", verdict="no_port"): "5x60", of("packets_total", verdict="address_clash"): "0+9x60"},
    ),
    "LbctlProgramMissing": (
        {of("packets_total", verdict="stage_missing"): "0+1x60"},
        {of("packets_total", verdict="stage_missing"): "5x60", of("packets_total", verdict="no_route"): "0+9x60"},
    ),
    "LbctlEndpointsDown": (
        {of("endpoints_checked", state="down"): "4x60", of("endpoints_checked", state="up"): "6x60"},
        {of("endpoints_checked", state="down"): "3x60", of("endpoints_checked", state="up"): "7x60"},
    ),
    "LbctlSuspectsItself": (
        {of("endpoints_checked", state="held up"): "4x60"},
        {of("endpoints_checked", state="held up"): "0x60", of("endpoints_checked", state="down"): "4x60"},
    ),
    "LbctlNobodyChecks": ({of("checker_up"): "0x60"}, {of("checker_up"): "1x60"}),
    "LbctlChecksLate": ({of("checker_late_p99_seconds"): "1.5x60"}, {of("checker_late_p99_seconds"): "0.2x60"}),
    "LbctlTransitionLasts": (
        {of("ring_slots_in_transition", ring="web/maglev"): "5x1600"},
        {of("ring_slots_in_transition", ring="web/maglev"): "5x1300 0x300"},
    ),
    "LbctlRevisionsDiffer": (
        {
            of("revision_info", state="applied", revision="a"): "1x60",
            of("revision_info", "lb2", state="applied", revision="b"): "1x60",
        },
        {
            of("revision_info", state="applied", revision="a"): "1x60",
            of("revision_info", state="attempted", revision="b"): "1x60",
            of("revision_info", "lb2", state="applied", revision="a"): "1x60",
        },
    ),
    "LbctlSeriesLeftOut": ({of("series_left_out"): "5x60"}, {of("series_left_out"): "0x60"}),
}
"""By alert: series with which it fires in the end, and series with which it never does."""


def promtool(*words):
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def minutes(series):
    """How long the longest of these series is: each group `axN` or `a+bxN` has N + 1 samples."""
    counts = [[int(part.rpartition("x")[2]) + 1 for part in values.split()] for values in series.values()]
    return max(map(sum, counts)) - 1


def test_every_alert_has_its_cases():
    assert set(CASES) == set(ALERTS)


def test_each_alert_fires_for_its_cause_only(tmp_path):
    tests = []
    for name, (cause, calm) in CASES.items():
        for series, count in ((cause, 1), (calm, 0)):
            query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
            samples = [{"labels": "{}", "value": count}] if count else []
            tests.append({
                "interval": f"{STEP_M}m",
                "input_series": [{"series": each, "values": values} for each, values in series.items()],
                "promql_expr_test": [{"expr": query, "eval_time": f"{minutes(series)}m", "exp_samples": samples}],
            })  # fmt: skip
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({
        "rule_files": [str(MONITORING / "alerts.yaml")], "evaluation_interval": f"{STEP_M}m", "tests": tests,
    }))  # fmt: skip
    promtool("test", "rules", path)


def test_each_alert_says_what_is_wrong_and_what_to_do_and_the_page_says_the_same():
    page = (CHECKOUT / "docs" / "alerts.md").read_text()
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert rule["annotations"]["summary"].endswith(".") and rule["annotations"]["action"] in page, name


def test_the_page_of_metrics_has_each_that_a_node_tells_and_no_other(told):
    """Braces after a name are labels, but for those that stand in the name for one of several."""
    table = (CHECKOUT / "docs" / "operate.md").read_text().partition("| metric | |")[2].partition("\n\n")[0]
    listed = set()
    for cell in re.findall(r"^\| (`lbctl.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`(lbctl_[^`]*)`", cell):
            name = re.sub(r"\{[^{}]*\}$", "", name)
            first, inside, last = re.fullmatch(r"([^{]*)(?:\{(.*)\}(.*))?", name).groups()
            listed |= {f"{first}{each}{last}" for each in inside.split(",")} if inside else {first}
    traffic = {name.removeprefix("lbctl_endpoint_") for name in told if name.startswith("lbctl_endpoint_")}
    listed |= {f"lbctl_endpoint_{name}" for name in traffic} if "lbctl_endpoint_…_total" in listed else set()
    after_an_edit = {f"lbctl_edit{name}" for name in ("s_total", "_seconds_total", "_seconds")}
    of_fullnat = {f"lbctl_ports_{name}" for name in ("used", "max", "unrested_total", "refused_total")}
    always = set(told) - {"up", "lbctl_series_left_out"}  # the latter stands above the table
    assert listed - {"lbctl_endpoint_…_total"} == always | after_an_edit | of_fullnat


def expressions():
    yield from (rule["expr"] for rule in ALERTS.values())
    for panel in json.loads((MONITORING / "grafana.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


@pytest.fixture
def told(manifests, tmp_path, monkeypatch):
    """The labels of each metric that a node can tell, with their values."""
    node = Node(manifests, tmp_path / "run" / "lba")
    node.start()
    journal = Journal(Identity(1, "0.1.0", "lb1", "host", "default", "/etc/lbctl"))
    journal.publish(State("Synced", "Healthy", "b" * 64, "a" * 64))
    monkeypatch.setattr(metrics, "health", lambda _: [type("Row", (), {"state": state}) for state in STATES])
    monkeypatch.setattr(metrics, "checker", lambda _: [Checker("1", 1, 0, 0.0, 1, None)])
    found = {}
    families = (
        *agent_families(journal.status()), *metrics.node_families(node.kernel, endpoints=True),
        *metrics.health_families(tmp_path),
    )  # fmt: skip
    for family in families:
        labels = found.setdefault(family.name, {})
        for pairs, _ in family.samples:
            for name, value in pairs:
                labels.setdefault(name, set()).add(value)
    found["lbctl_packets_total"]["verdict"] = {verdict.name.lower() for verdict in Verdict}
    found["lbctl_changes_total"]["reason"] = {"drift", "config"}
    found["lbctl_ring_slots_in_transition"]["ring"] = {"web/maglev"}
    return found | {"lbctl_series_left_out": {}, "up": {"job": {"lbctl"}}}


def test_dashboard_and_alerts_ask_for_what_a_node_tells(told):
    count = 0
    for expression in expressions():
        for name, selector in re.findall(r"\b(lbctl_\w+|up)\b(?:\{(.*?)\})?", expression):
            count += 1
            assert name in told, expression
            for label, sign, value in re.findall(r'(\w+)(=~?)"([^"]*)"', selector):
                if label == "instance":
                    continue
                for each in value.split("|") if sign == "=~" else [value]:
                    assert each in told[name][label], f"{name} has no {label} {each}"
        for labels in re.findall(r"\bby \((.*?)\)", expression):
            names = re.findall(r"\b(lbctl_\w+)\b", expression)
            known = {"instance"}.union(*(told[name] for name in names))
            assert set(re.split(r",\s*", labels)) <= known, expression
    assert count > 25


def test_the_dashboard_is_one_and_its_expressions_are_ones_of_prometheus(tmp_path):
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    rules = [
        {"record": f"lbctl:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, expression in enumerate(expressions())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")
