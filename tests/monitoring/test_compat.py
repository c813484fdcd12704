# SPDX-License-Identifier: Apache-2.0
"""The metrics of others: the names and labels that their dashboards ask for, and numbers that agree with ours."""

import argparse

import pytest

from reconciler.cli.metrics import compat
from reconciler.dataplane.layout import ConnectionState
from reconciler.kinds.endpoint import numbered_rows
from reconciler.kinds.service import indexed_rows
from reconciler.readings import compat as module
from reconciler.readings.compat import COMPAT, compat_families
from reconciler.readings.counters import Traffic
from reconciler.readings.health import Drained, EndpointHealth
from reconciler.readings.metrics import exposition
from tests.agent.conftest import Node
from tests.agent.test_web import samples
from tests.connections import connection, put

WEB, MAIL = "20.20.20.1:80/tcp", "20.20.20.2:25/tcp"
BACKEND = ('{{local_address="20.20.20.1",local_port="80",remote_address="{0}",remote_port="8080",proto="TCP",'
           'local_mark=""}}')  # fmt: skip


@pytest.fixture
def told(manifests, tmp_path, monkeypatch):
    """What a node with traffic tells; `out` are the endpoints of web that are down and drained."""
    node = Node(manifests, tmp_path / "run" / "lba")
    node.start()
    traffic = {WEB: Traffic(10, 100, 1000, 90, 9000), MAIL: Traffic(1, 2, 3, 4, 5)}
    monkeypatch.setattr(module, "service_traffic", lambda _: traffic)
    monkeypatch.setattr(module, "endpoint_traffic", lambda _: {"10.2.0.1:8080": Traffic(7, 70, 700, 60, 6000)})
    (index,) = (held.index for held in indexed_rows(node.kernel) if held.row.id == WEB)
    one, two = (held.number for held in numbered_rows(node.kernel) if held.row.port == 8080)
    put(node.kernel, [
        connection(1, endpoint=one, service=index), connection(2, endpoint=one, service=index),
        connection(3, ConnectionState.OPENING, endpoint=two, service=index),
        connection(4, endpoint=two, service=index, silence=900),
    ])  # fmt: skip

    def call(*names, health=(), drains=()):
        monkeypatch.setattr(module, "health", lambda _: health)
        monkeypatch.setattr(module, "drained", lambda _: drains)
        return samples(exposition(compat_families(node.kernel, tmp_path, names), 10_000))

    call.node = node
    return call


def test_ipvs_totals_and_backends_have_the_collectors_labels(told):
    found = told("ipvs")
    totals = {name: found[f"node_ipvs_{name}_total", None] for name in (
        "connections", "incoming_packets", "incoming_bytes", "outgoing_packets", "outgoing_bytes")}  # fmt: skip
    assert list(totals.values()) == [11, 102, 1003, 94, 9005]
    for name, first, second in (("connections_active", 2, 0), ("connections_inactive", 0, 1), ("weight", 667, 333)):
        assert found[f"node_ipvs_backend_{name}", BACKEND.format("10.2.0.1")] == first
        assert found[f"node_ipvs_backend_{name}", BACKEND.format("10.2.0.2")] == second
    assert not any(name.startswith("haproxy") for name, _ in found)


def test_haproxy_has_services_in_front_rings_behind_and_endpoints_as_servers(told):
    found = told("haproxy")
    for what, proxy in (("frontend", WEB), ("backend", "web/round-robin")):
        labels = f'{{proxy="{proxy}"}}'
        names = ("sessions_total", "current_sessions", "bytes_in_total", "bytes_out_total")
        assert [found[f"haproxy_{what}_{name}", labels] for name in names] == [10, 2, 1000, 9000]
        assert found[f"haproxy_{what}_status", f'{{proxy="{proxy}",state="UP"}}'] == 1
        assert found[f"haproxy_{what}_status", f'{{proxy="{proxy}",state="DOWN"}}'] == 0
    server = 'proxy="web/round-robin",server="10.2.0.1:8080"'
    assert found["haproxy_server_bytes_in_total", f"{{{server}}}"] == 700
    assert found["haproxy_server_weight", f"{{{server}}}"] == 667
    assert found["haproxy_backend_active_servers", '{proxy="web/round-robin"}'] == 2
    states = {labels: value for (name, labels), value in found.items() if name == "haproxy_server_status"}
    assert [value for labels, value in states.items() if server in labels] == [0, 1, 0, 0, 0]


def test_a_server_that_is_out_is_told_as_down_or_drained(told):
    """It is in no ring then, and a dashboard must not lose it."""
    down = EndpointHealth("10.2.0.3:2525", "web", "down", 1, 0, None, "refused", None, "tcp", 1.0, 0, 1, None, ())
    drain = Drained("10.2.0.3:2525", "mail", 1, None, None, "root", "a test")
    found = told("haproxy", health=[down], drains=[drain])
    server = '{{proxy="{0}",server="10.2.0.3:2525",state="{1}"}}'
    assert found["haproxy_server_status", server.format("web/round-robin", "DOWN")] == 1
    assert found["haproxy_server_status", server.format("web/round-robin", "UP")] == 0
    assert found["haproxy_server_status", server.format("mail/source-hash", "UP")] == 1, "it is in that ring still"
    assert found["haproxy_backend_active_servers", '{proxy="web/round-robin"}'] == 2


def test_nothing_is_read_unless_somebody_asks(told, monkeypatch):
    monkeypatch.setattr(module, "numbered_rows", lambda _: pytest.fail("read"))
    assert told() == {("lbctl_series_left_out", None): 0}


def test_both_are_told_together_and_unknown_names_are_refused(told):
    assert compat("ipvs,haproxy") == ("ipvs", "haproxy") == tuple(COMPAT)
    assert told("ipvs", "haproxy")
    assert len(list(numbered_rows(told.node.kernel))) == 3
    for text in ("", "nginx", "ipvs,", "ipvs haproxy"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected ipvs or haproxy"):
            compat(text)
