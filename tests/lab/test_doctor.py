# SPDX-License-Identifier: Apache-2.0
"""Each misconfiguration that people meet, made by hand one at a time: `doctor` names it, and nothing else; after the
way out, it finds nothing, and traffic flows."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.cli.doctor import FOUND
from reconciler.lab.lab import Lab
from reconciler.lab.topology import ROUTER

from .direct import applied_on, example

pytestmark = pytest.mark.kernel

FIRST = "10.32.0.11"
VIP = "10.21.0.100"  # in the network of balancer and endpoints
IPV4 = "net/ipv4/conf/eth0"


def doctor(lab: Lab, directory: Path, node: str, host: str) -> list[dict[str, object]]:
    """What is found; the exit code must agree."""
    done = lab.lbctl("doctor", str(directory), "--node", node, "--format", "json", host=host)
    assert done.returncode in (0, FOUND), done.stdout + done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)["findings"]
    assert (done.returncode == FOUND) is bool(found)
    for each in found:
        assert all(each[part] for part in ("name", "evidence", "consequence", "way_out")), each
    return found


def names(found: list[dict[str, object]]) -> set[object]:
    return {each["name"] for each in found}


def works(lab: Lab, vip: str, port: int) -> None:
    outcomes = lab.load(IPv4Address(vip), port, count=20, clients=8, timeout_s=30).wait()
    assert [outcome.error for outcome in outcomes if outcome.error] == []


def test_tunnels_and_everything_around_them(start_lab, tmp_path):
    manifests = tmp_path / "manifests"
    lab = start_lab(example("dsr-l3", manifests), node_name="lb4")
    lab.serve_http()
    lab.apply(manifests)
    applied_on(lab, ROUTER, "apply", str(manifests), "--node", "router1", "--auto-approve")
    lab.run(ROUTER, "ip", "route", "replace", "20.20.20.31/32", "via", "10.31.0.1")
    places = {"lb4": "lb4", "portal1": FIRST, "router1": ROUTER}

    def found(node: str) -> list[dict[str, object]]:
        return doctor(lab, manifests, node, places[node])

    assert found("lb4") == []

    # What lbctl mends by itself.
    for node, do, name in (
        ("portal1", ["ip", "route", "del", "table", "local", "20.20.20.31", "dev", "lo"], "vip-missing"),
        ("portal1", ["sysctl", "-qw", f"{IPV4}/rp_filter=1"], "rp-filter"),
        ("portal1", ["sysctl", "-qw", f"{IPV4}/arp_ignore=0"], "arp-ignore"),
        ("lb4", ["sysctl", "-qw", f"{IPV4}/send_redirects=1"], "send-redirects"),
        ("lb4", ["sysctl", "-qw", f"{IPV4}/forwarding=0"], "forwarding"),
        ("lb4", ["ip", "link", "set", "eth0", "xdp", "off"], "program-not-attached"),
        ("router1", ["sysctl", "-qw", "net/ipv4/fib_multipath_hash_policy=0"], "ecmp-hash"),
        ("router1", ["sysctl", "-qw", f"{IPV4}/forwarding=0"], "forwarding"),
    ):  # fmt: skip
        lab.run(places[node], *do)
        told = found(node)
        assert names(told) == {name}, do  # and so nothing is left of the case before
        assert all(each["place"] for each in told)
        applied_on(lab, places[node], "apply", str(manifests), "--node", node, "--auto-approve")
    works(lab, "20.20.20.31", 443)

    # What somebody else has to mend.
    for node, host, do, undo, name in (
        ("portal1", FIRST, "ip route del default", "ip route add default via 10.32.0.254", "no-way-back"),
        ("lb4", ROUTER, "ip link set eth1 mtu 1500", "ip link set eth1 mtu 1520", "mtu"),
        ("router1", ROUTER, "ip route del 20.20.20.31", "ip route add 20.20.20.31 via 10.31.0.1", "vip-unrouted"),
    ):  # fmt: skip
        lab.run(host, *do.split())
        assert names(found(node)) == {name}, do
        lab.run(host, *undo.split())
    assert {node: found(node) for node in places} == {node: [] for node in places}
    works(lab, "20.20.20.31", 443)


def test_who_else_answers_for_a_vip_and_who_does_not_answer_at_all(start_lab, tmp_path):
    manifests = tmp_path / "manifests"
    lab = start_lab(example("dsr-l2", manifests, (r"20\.20\.20\.21", VIP)), node_name="lb3")
    lab.serve_http()
    lab.apply(manifests)
    node, first = "lb3", "10.21.0.11"
    assert doctor(lab, manifests, node, node) == []
    lab.run(first, "sysctl", "-qw", f"{IPV4}/arp_ignore=0", "net/ipv4/conf/all/arp_ignore=0")
    (found,) = doctor(lab, manifests, node, node)
    assert found["name"] == "arp-conflict"
    assert VIP in str(found["evidence"]) and lab.topology.link(first).mac in str(found["evidence"])
    lab.run(first, "sysctl", "-qw", f"{IPV4}/arp_ignore=1")
    lab.run(first, "ip", "link", "set", "eth0", "down")
    lab.run(node, "ip", "neigh", "flush", "to", first)
    applied_on(lab, node, "apply", str(manifests), "--node", node, "--auto-approve")  # it keeps the neighbour
    (found,) = doctor(lab, manifests, node, node)
    assert found["name"] == "neighbour-unresolved"
    assert first in str(found["evidence"])
    lab.run(node, "ip", "link", "set", "eth0", "down")  # nothing can be asked there any more
    down = doctor(lab, manifests, node, node)
    assert "xdp-concern" in names(down)
    assert any("eth0 is down" in str(each["evidence"]) for each in down)
