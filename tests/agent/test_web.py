# SPDX-License-Identifier: Apache-2.0
"""Metrics: what they say, that they are bounded, and that asking for them costs little."""

import argparse
import contextlib
import re
import socket
import threading
import urllib.error
import urllib.request

import pytest

from reconciler.agent.journal import Identity, Journal, State
from reconciler.agent.metrics import agent_families
from reconciler.agent.web import COSTS, MAX_CONNECTIONS, MIN_AGE_S, Kept, serving
from reconciler.cli.metrics import address, text_of
from reconciler.errors import LbctlError
from reconciler.readings.metrics import Family, Type, exposition, node_families
from tests.agent.conftest import RESYNC_S, Node

PATIENCE_S = 60
_LABEL = r'[a-z_]+="(?:[^"\\\n]|\\.)*"'
SAMPLE = re.compile(rf"([a-z_][a-z0-9_]*)(\{{{_LABEL}(?:,{_LABEL})*\}})? (\S+)")


def samples(text):
    """The samples by name and labels. AssertionError unless each line is as the exposition format says, and each
    family is told of once, before its samples."""
    found, types = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, type_ = line.split(" ")
            assert name not in types and type_ in ("counter", "gauge")
            types[name] = type_
        elif not line.startswith("# HELP "):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert name in types and (types[name] == "counter") == name.endswith("_total"), name
            assert (name, labels) not in found
            found[name, labels] = float(value)
    return found


def get(port, path="/metrics", **options):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S, **options) as answer:
        return answer.read().decode()


@pytest.fixture
def journal():
    return Journal(Identity(1, "0.1.0", 'lb"1\n', "host", "default", "/etc/lbctl"))


def test_an_agent_tells_sync_health_revisions_and_changes(journal):
    journal.publish(State("OutOfSync", "Degraded", "b" * 64, "a" * 64, 12, 3, "", 1.0, RESYNC_S))
    found = samples(exposition(agent_families(journal.status()), 1000))
    assert found["lbctl_sync", '{state="OutOfSync"}'] == 1 and found["lbctl_sync", '{state="Synced"}'] == 0
    assert found["lbctl_health", '{state="Degraded"}'] == 1
    assert found["lbctl_resources_open", None] == 3
    assert found["lbctl_revision_info", f'{{state="applied",revision="{"a" * 64}"}}'] == 1
    assert any(name == "lbctl_agent_info" and r'node="lb\"1\n"' in labels for name, labels in found)


def test_a_node_tells_traffic_by_service_and_by_endpoint_if_asked(manifests, tmp_path):
    node = Node(manifests, tmp_path / "run" / "lba")
    node.start()
    found = samples(exposition(node_families(node.kernel, endpoints=False), 1000))
    assert found["lbctl_service_connections_total", '{service="20.20.20.1:80/tcp"}'] == 0
    assert found["lbctl_map_rows_max", '{map="services"}'] >= found["lbctl_map_rows", '{map="services"}'] == 2
    rows = {labels: value for (name, labels), value in found.items() if name == "lbctl_map_rows"}
    assert rows['{map="endpoints"}'] == 3 and rows['{map="vips"}'] == 2 and rows['{map="rings"}'] == 2
    assert found["lbctl_endpoints", '{state="usable"}'] == 3
    assert not any("lbctl_endpoint_" in name for name, _ in found)
    found = samples(exposition(node_families(node.kernel, endpoints=True), 1000))
    assert '{endpoint="10.2.0.1:8080"}' in {labels for name, labels in found if name.startswith("lbctl_endpoint_")}


def test_series_are_bounded_and_it_is_told_how_many_are_left_out():
    family = Family("lbctl_x", Type.GAUGE, "A sentence", [((("a", str(n)),), float(n)) for n in range(100)])
    found = samples(exposition([family, Family("lbctl_y", Type.GAUGE, "One", [((), 1.5)])], 10))
    assert len(found) == 11 and found["lbctl_series_left_out", None] == 91


def test_a_text_is_kept_longer_the_more_it_costs():
    now, made = 0.0, []

    def make(takes_s):
        nonlocal now
        now += takes_s
        made.append(now)
        return "x"

    cheap, dear = Kept(lambda: make(0.001), lambda: now), Kept(lambda: make(2.0), lambda: now)
    for kept, free_s in ((cheap, MIN_AGE_S), (dear, 2.0 * COSTS - 1)):
        made.clear()
        for _ in range(100):
            kept.text()
        now += free_s * 0.9
        kept.text()
        assert len(made) == 1
        now += free_s * 0.2
        kept.text()
        assert len(made) == 2


def test_nothing_but_the_metrics_is_served_and_nothing_is_changed():
    with serving(("127.0.0.1", 0), lambda: "lbctl_x 1\n") as port:
        assert get(port) == "lbctl_x 1\n"
        for path, options in (("/", {}), ("/../etc/passwd", {}), ("/metrics", {"data": b"x"})):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(port, path, **options)
            assert refused.value.code in (404, 501)
            refused.value.close()
        with pytest.raises(LbctlError, match="can't serve metrics at"), serving(("127.0.0.1", port), str):
            pass
    with serving(None, lambda: pytest.fail("nobody asked")) as port:
        assert port == 0


@pytest.mark.parametrize("request_", [
    b"\r\n\r\n", b"GET /metrics\r\n\r\n", b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"\xff\x00\r\n\r\n",
])  # fmt: skip
def test_what_is_no_request_gets_no_answer_and_the_server_goes_on(request_):
    with serving(("127.0.0.1", 0), lambda: "x 1\n") as port:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):  # it was reset: not all was read
                connection.sendall(request_)
                answer = connection.recv(100)
        assert not answer and get(port) == "x 1\n"


def test_a_fault_is_an_error_of_http_and_the_server_goes_on():
    def fails():
        raise LbctlError("the map is gone")

    with serving(("127.0.0.1", 0), fails) as port:
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(port)
            assert refused.value.code == 503
            refused.value.close()


def test_peers_that_went_away_keep_nobody_out():
    with serving(("127.0.0.1", 0), lambda: "x 1\n") as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * MAX_CONNECTIONS)]
        for connection in silent:
            connection.close()
        for _ in range(600):
            try:
                assert get(port) == "x 1\n"
                break
            except OSError:
                threading.Event().wait(0.05)
        else:
            pytest.fail("nobody is served any more")


def test_who_comes_while_all_threads_are_busy_waits_and_one_who_asks_byte_by_byte_keeps_none(monkeypatch):
    monkeypatch.setattr("reconciler.agent.web.PATIENCE_S", 1.0)
    with serving(("127.0.0.1", 0), lambda: "x 1\n") as port, contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
            slow.sendall(b"GET")
        assert get(port) == "x 1\n"


def test_it_serves_at_an_ipv6_address():
    with serving(address("[::1]:0"), lambda: "x 1\n") as port:
        assert urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=PATIENCE_S).read() == b"x 1\n"


def test_an_address_of_the_loopback_is_the_default():
    assert address("9100") == ("127.0.0.1", 9100) and address("10.0.0.1:9100") == ("10.0.0.1", 9100)
    for text in ("x", "70000", "", ":"):
        with pytest.raises(argparse.ArgumentTypeError):
            address(text)


def test_the_agents_text_has_both_parts_and_tells_how_long_edits_took(journal, manifests, tmp_path):
    node = Node(manifests, tmp_path / "run" / "lba")
    node.start()
    args = argparse.Namespace(
        metrics_endpoints=False, metrics_compat=(), run_dir=str(tmp_path / "run"), instance="lba", netns=None
    )
    names = {name for name, _ in samples(text_of(args, journal.status, node.kernel))}
    assert {"lbctl_agent_info", "lbctl_service_request_packets_total", "lbctl_series_left_out"} <= names
    assert "lbctl_edit_seconds" not in names, "there was none"
    journal.edited(0.25)
    journal.edited(0.5)
    found = samples(text_of(args, journal.status, node.kernel))
    told = [found[f"lbctl_{name}", None] for name in ("edits_total", "edit_seconds_total", "edit_seconds")]
    assert told == [2, 0.75, 0.5]


def test_a_process_of_its_own_lists_flows_for_others_names(journal, monkeypatch, tmp_path):
    """It looks up flows and rings: in a thread of the agent that would hold up its rounds."""
    asked = []
    monkeypatch.setattr("reconciler.agent.reads.said", lambda command: asked.append(command) or b"node_ipvs_x 1\n")
    args = argparse.Namespace(
        metrics_endpoints=True, metrics_compat=("ipvs", "haproxy"), run_dir=str(tmp_path), instance="lba", netns=None,
        state_dir=None,
    )  # fmt: skip
    assert text_of(args, journal.status) == "node_ipvs_x 1\n"
    assert asked[0][-4:] == ["metrics", "--compat", "ipvs,haproxy", "--endpoints"] and "lba" in asked[0]
