# SPDX-License-Identifier: Apache-2.0
"""A saved plan is input: what no manifests can ask for is refused before anything is written."""

import base64
import json
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings

from reconciler.compile import compile_node
from reconciler.errors import LbctlError, SnapshotError
from reconciler.kinds import RESOURCES
from reconciler.kinds.ring import Ring
from reconciler.plan import plan
from reconciler.render.style import Style
from reconciler.render.text import change_lines, concern_lines
from reconciler.resource import Change, Concern, Key, Live, Reason, Span
from reconciler.snapshot import live_from_json, plan_from_json, plan_to_json, read
from reconciler.target import Target
from reconciler.view import view
from tests.strategies import fleets

TARGET = Target("lb1", "default", "rack7")


def slots(*numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}I", *numbers)).decode()


def saved(*desired):
    return {
        "format_version": 2, "node": "lb1", "instance": None, "host": None, "resource_changes": [],
        "desired": desired,
    }  # fmt: skip


SERVICE = {
    "kind": "service", "vip": "20.20.20.1", "protocol": "tcp", "port": 80, "mode": "nat", "algorithm": "maglev",
    "ring": "web/maglev",
}  # fmt: skip
RING = {"kind": "ring", "name": "web/maglev", "members": ["10.2.0.1"], "slots": slots(0, 0)}
TUNNEL = {"kind": "tunnel", "form": "ipip", "address": "10.2.0.1", "mtu_bytes": 1480}

FLAWED = {
    "ring-of-strangers": RING | {"slots": slots(0, 2**32 - 1)},
    "ring-without-algorithm": RING | {"name": "web"},
    "ring-of-half-a-slot": RING | {"slots": base64.b64encode(b"\0" * 6).decode()},
    "ring-with-a-member-twice": RING | {"members": ["10.2.0.1", "10.2.0.1"], "slots": slots(0, 1)},
    "service-port": SERVICE | {"port": 65_536},
    "service-target-port": SERVICE | {"target_port": -1},
    "service-mode": SERVICE | {"mode": "unknown 7"},
    "service-protocol": SERVICE | {"protocol": "255"},
    "service-damaged": SERVICE | {"damage": "no counters of its own"},
    "service-sources": SERVICE | {"sources": "lost list 7"},
    "sources-of-nobody": {"kind": "sources", "networks": []},
    "sources-that-overlap": {"kind": "sources", "networks": ["10.0.0.0/8", "10.1.0.0/16"]},
    "sources-with-host-bits": {"kind": "sources", "networks": ["10.0.0.1/8"]},
    "sources-of-another-name": {"kind": "sources", "networks": ["10.0.0.0/8"], "name": "0123456789abcdef"},
    "sources-without-name": {"kind": "sources", "networks": ["10.0.0.0/8"], "lost": 7},
    "endpoint-port": {"kind": "endpoint", "address": "10.2.0.1", "port": 99_999},
    "endpoint-copy": {"kind": "endpoint", "address": "10.2.0.1", "copy": 7},
    "vip-traffic": {"kind": "vip", "address": "20.20.20.1", "undefined_traffic": "answer"},
    "settings-source": {"kind": "settings", "tunnel_source": "2001:db8::/64"},
    "loopback-form": {"kind": "loopback", "address": "20.20.20.1", "form": "address and route"},
    "xdp-mode": {"kind": "xdp", "interface": "eth0", "mode": "offloaded", "program": "lbctl_3f9a12bc0"},
    "xdp-interface": {"kind": "xdp", "interface": "../eth0", "mode": "native", "program": "lbctl_3f9a12bc0"},
    "program-of-flags": {"kind": "program", "name": "lbctl_3f9a12bc0", "features": ["NAT=1 -include /etc/shadow"]},
    "program-of-others": {"kind": "program", "name": "lbctl_3f9a12bc0", "features": ["NAT"]},
    "announcement": {"kind": "announcement", "address": "20.20.20.1", "table": 255, "metric": 100},
    "routing": {"kind": "routing", "lines": ["router bgp 65001 / log file /etc/passwd"]},
    "routing-prefix": {"kind": "routing-prefix", "address": "20.20.20.0/24"},
    "hop-group": {"kind": "hop-group", "name": "ipv4 all", "hops": [["10.1.0.1", "eth0"]], "buckets": 0, "idle_s": 9},
    "vip-route": {"kind": "vip-route", "address": "20.20.20.1", "number": 0},
    "vrrp": {"kind": "vrrp", "lines": ["vrrp_instance lbctl {", "notify /tmp/x", "}"]},
    "vrrp-state": {"kind": "vrrp-state", "weight": 100},
    "gateway-interface": {"kind": "gateway", "interface": "", "address": "10.1.0.254"},
    "gateway-route": {"kind": "gateway-route", "interface": "eth0", "address": "10.1.0.254"},
    "blackhole": {"kind": "blackhole", "network": "0.0.0.0/0"},
    "neighbour-interface": {"kind": "neighbour", "address": "10.1.0.254", "interface": "a b"},
    "neighbour-kept": {"kind": "neighbour", "address": "10.1.0.254", "interface": "eth0", "kept": "for ever"},
    "neighbour-proxy": {"kind": "neighbour-proxy", "address": "20.20.20.1", "interface": "a b"},
    "prober": {"kind": "prober", "addresses": ["10.1.0.9"], "wrong": "it is gone"},
    "routers-kept": {"kind": "routers", "kept": "all but 10.1.0.254 eth0"},
    "vlan-trunk": {"kind": "vlan", "interface": "eth0.5", "trunk": "x" * 16},
    "vlan-tag": {"kind": "vlan-link", "interface": "eth0.5", "trunk": "eth0", "tag": 4095, "mtu_bytes": 1500},
    "tunnel-mtu": TUNNEL | {"mtu_bytes": 10**9},
    "tunnel-address": TUNNEL | {"address": "::1"},
    "interface-mtu": {"kind": "interface", "name": "eth0", "has": "mtu ten"},
    "interface-name": {"kind": "interface", "name": "../eth0"},
    "foundation": {"kind": "foundation", "family": "IPv4", "parts": [{"kind": "foundation", "id": "IPv4"}]},
    "sysctl": {"kind": "sysctl", "name": "kernel/core_pattern", "value": "|/tmp/x"},
    "sysctl-value": {"kind": "sysctl", "name": "net/ipv4/ip_forward", "value": "1\n"},
    "offload-on": {"kind": "offload", "interface": "eth0", "name": "generic-receive-offload", "state": "on"},
    "offload-of-others": {"kind": "offload", "interface": "eth0", "name": "tx-checksumming"},
    "weight": {"kind": "weight", "endpoint": "10.2.0.1:80", "weight": 0},
    "members": {"kind": "members", "ring": "web/no-such", "endpoints": []},
    "snat": {"kind": "snat", "sources": ["10.2.0.9"], "damage": "a strange row"},
    "source": {"kind": "source", "address": "10.2.0.1", "port": 70000, "protocol": "tcp", "vip": "20.20.20.1",
               "vip_port": 80, "endpoint": "10.2.0.1:80"},
    "unpacked": {"kind": "unpacked", "address": "20.20.20.1", "damage": base64.b64encode(b"x" * 20).decode()},
}


@pytest.mark.parametrize("item", FLAWED.values(), ids=FLAWED.keys())
def test_a_plan_that_leads_to_what_nobody_can_ask_for_is_refused(item):
    with pytest.raises(SnapshotError):
        plan_from_json(saved(item))


def test_every_kind_is_among_the_refused():
    assert {item["kind"] for item in FLAWED.values()} == RESOURCES.keys()


@given(fleets())
@settings(max_examples=100, deadline=None)
def test_what_manifests_ask_for_comes_back_from_a_file(fleet):
    desired = compile_node(view(fleet, None, "host"))
    planned = plan(desired, Live())
    back = plan_from_json(json.loads(json.dumps(plan_to_json(planned, TARGET))))
    assert (back.target, back.changes, back.desired.resources) == (TARGET, planned.changes, desired.resources)


@pytest.mark.parametrize("text", ["[" * 200_000, "", "[1", "\x00", '{"format_version": 1e999}'])
def test_a_file_that_is_no_json_of_ours_is_an_error_with_a_way_out(tmp_path, text):
    file = tmp_path / "plan.json"
    file.write_text(text, encoding="utf-8")
    for parse in (plan_from_json, live_from_json):
        with pytest.raises(LbctlError) as caught:
            parse(read(file))
        assert caught.value.hint


def test_a_snapshot_whose_ring_names_a_member_that_is_none_takes_no_memory():
    ring = RING | {"slots": slots(2**32 - 1)}
    with pytest.raises(SnapshotError):
        live_from_json({"format_version": 1, "resources": [ring], "foreign": []})


def test_a_plan_is_for_a_node_an_instance_and_a_host():
    assert not TARGET.difference(Target("", "default", "rack7"))
    assert not Target("lb1").difference(TARGET)
    assert TARGET.difference(Target("lb2", "default", "rack7")) == "node lb1, and this is lb2"
    assert TARGET.difference(Target("", "other", "rack7")) == "instance default, and this is other"
    assert TARGET.difference(Target("", "default", "rack8")) == "host rack7, and this is rack8"


def test_no_text_of_a_snapshot_begins_a_line_of_its_own():
    """Names of fields and effects hold names that were read, as those of the members of a ring."""
    live = live_from_json({
        "format_version": 1, "resources": [RING | {"members": ["a\nb\x1b[31m"]}], "foreign": [],
    })  # fmt: skip
    change = Change(Key("ring", "web/maglev"), live.resources[Key("ring", "web/maglev")], None, Reason.CONFIG,
                    Span("x\ny", 3))  # fmt: skip
    updated = replace(change, after=Ring("web/maglev", ("10.2.0.1",), bytes(8)))
    told = [*change_lines(change, "a\nb", Style()), *change_lines(updated, "a\nb", Style())]
    told += concern_lines([Concern(change.key, "a\nb", "c\nd")], Style())
    assert told
    assert not [text for text in told if "\n" in text or "\x1b" in text]
