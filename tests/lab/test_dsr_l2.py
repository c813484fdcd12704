# SPDX-License-Identifier: Apache-2.0
"""dsr-l2 from YAML to packets on its own example, endpoints set up by lbctl, and what must not pass for it."""

import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from reconciler.dataplane.layout import REMEMBERED
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.load import Load
from reconciler.lab.prove import prove_service
from reconciler.lab.topology import CLIENT

from .conftest import LabMaker
from .direct import applied_on, check_spread, example, forget_services, udp_answers, udp_servers

pytestmark = pytest.mark.kernel

VIP = IPv4Address("20.20.20.21")
FIRST, SECOND = "10.21.0.11", "10.21.0.12"


@pytest.fixture
def site(start_lab: LabMaker, tmp_path: Path):
    """The example, applied on its balancer and its endpoints."""

    def start(*changes: tuple[str, str]) -> Lab:
        lab = start_lab(example("dsr-l2", tmp_path / "manifests", *changes), node_name="lb3")
        lab.serve_http()
        lab.apply(tmp_path / "manifests")
        return lab

    return start


def test_the_example_works_and_spreads_by_weight(site):
    lab = site()
    prove_service(lab, "downloads")
    check_spread(lab, VIP, 80)


def test_udp_is_answered_by_the_endpoint_that_keeps_the_client(site):
    lab = site((r"ports: \[80, 443\]", "protocol: udp\n  ports: [53]"))
    with lab.capture("eth0") as tap, udp_servers(lab, VIP, 53):
        answers = udp_answers(lab, VIP, 53)
        packets = tap.packets()
    assert {name for names in answers for name in names} == {str(address) for address in lab.topology.endpoints}
    assert all(len(set(names)) == 1 for names in answers)
    assert [packet for packet in packets if packet.source == VIP] == []
    assert sum(packet.to_balancer for packet in packets) >= 3 * len(answers)


DRAINING = "{address: 10.21.0.%d, state: draining}"


def test_connections_of_a_transition_go_on_while_the_table_that_remembers_them_changes_its_size(site, tmp_path):
    """All of the ring passes from the first endpoint to the second. Connections of the first are unknown to the table,
    those of the second are known to it alone."""
    lab = site((r"\{address: 10\.21\.0\.12\}", DRAINING % 12), (r"\{address: 10\.21\.0\.13\}", DRAINING % 13))
    pools, nodes = tmp_path / "manifests/pools.yaml", tmp_path / "manifests/nodes.yaml"
    before = kept(lab)
    pools.write_text(re.sub(r"\{address: 10\.21\.0\.11.*\}", DRAINING % 11, pools.read_text()).replace(
        DRAINING % 12, "{address: 10.21.0.12}"))  # fmt: skip
    applied_on(lab, "lb3", "apply", str(tmp_path / "manifests"), "--node", "lb3", "--auto-approve")
    after = kept(lab)
    text, kernel = nodes.read_text(), RealKernel(lab.balancer, lab.run_dir)
    buckets = kernel.capacity(REMEMBERED.name)
    for flows, times in ((300_000, 2), (100_000, 1)):
        nodes.write_text(text.replace("\nspec:", f"\nspec:\n  capacity: {{flows: {flows}}}", 1))
        applied_on(lab, "lb3", "apply", str(tmp_path / "manifests"), "--node", "lb3", "--auto-approve")
        assert kernel.capacity(REMEMBERED.name) == times * buckets
        seen = len(before.outcomes()), len(after.outcomes())
        wait_until("they go on", lambda seen=seen: all(len(one.outcomes()) > n + 24 for one, n in (
            (before, seen[0]), (after, seen[1]))))  # fmt: skip
    for one, endpoint in ((before, FIRST), (after, SECOND)):
        outcomes = one.stop()
        assert {outcome.error for outcome in outcomes} == {""}
        assert {outcome.endpoint for outcome in outcomes} == {f"{endpoint}:80"}
        assert sum(outcome.new_connection for outcome in outcomes) == 8


def kept(lab: Lab) -> Load:
    """Eight connections that stay open."""
    load = lab.load(VIP, 80, rate=100, concurrency=8, requests_per_connection=0, timeout_s=30)
    wait_until("all connections are open", lambda: sum(one.new_connection for one in load.outcomes()) == 8)
    return load


IPV6 = (
    (r"20\.20\.20\.21", "2001:db8:20::21"), (r"10\.21\.0\.(\d+)/24", r"2001:db8:21::\1/64"),
    (r"address: 10\.21\.0\.", "address: 2001:db8:21::"),
)  # fmt: skip
VIP6 = IPv6Address("2001:db8:20::21")


def test_ipv6_works_and_nobody_on_the_segment_speaks_for_the_vip(site):
    lab = site(*IPV6)
    prove_service(lab, "downloads")
    check_spread(lab, VIP6, 443)
    lab.run(CLIENT, "ip", "route", "replace", f"{VIP6}/128", "dev", "eth0")
    assert {outcome.error for outcome in lab.load(VIP6, 80, count=2, timeout_s=8).wait()} == {
        "OSError: [Errno 113] No route to host"
    }  # fmt: skip


# --- who speaks for the VIP ----------------------------------------------------------------------------------
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETHERTYPE = 0x0806


def arp_frame(sender: bytes, sender_address: IPv4Address, asked: IPv4Address) -> bytes:
    body = _ARP.pack(1, 0x0800, 6, 4, 1, sender, sender_address.packed, bytes(6), asked.packed)
    return b"\xff" * 6 + sender + struct.pack("!H", _ETHERTYPE) + body


def arp_socket() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE))
    made.bind(("eth0", _ETHERTYPE))
    made.settimeout(5)
    return made


def heard(listener: socket.socket, operation: int) -> Iterator[tuple[IPv4Address, str, IPv4Address]]:
    """Sender address, sender MAC and target address of each ARP packet of an operation: 1 asks, 2 answers."""
    while True:
        found = _ARP.unpack_from(listener.recv(100), 14)
        if found[4] == operation:
            yield IPv4Address(found[6]), found[5].hex(":"), IPv4Address(found[8])


def who_has_the_vip(lab: Lab) -> set[str]:
    """The MACs that answer an ARP request for the VIP. Each host is asked for its own address as well, later: when
    it has answered that, it will not answer the other."""
    mac, address = bytes.fromhex(lab.topology.link(CLIENT).mac.replace(":", "")), lab.topology.client[0]
    waited_for = {*lab.topology.endpoints, IPv4Address("10.21.0.1")}
    holders = set()
    with netns.inside(lab.netns(CLIENT), arp_socket) as listener:
        for asked in (VIP, *waited_for):
            listener.send(arp_frame(mac, address, asked))
        for answering, holder, _ in heard(listener, 2):
            waited_for.discard(answering)
            if answering == VIP:
                holders.add(holder)
            if not waited_for:
                return holders
    raise AssertionError("unreachable")


def senders_that_ask(lab: Lab, endpoint: str) -> IPv4Address:
    """By which address of its own an endpoint asks for the client, whom it has forgotten, to answer a request."""
    client = lab.topology.client[0]
    with netns.inside(lab.netns(CLIENT), arp_socket) as listener:
        lab.run(endpoint, "ip", "neigh", "flush", "all")
        lab.run(CLIENT, "ip", "neigh", "replace", str(VIP), "lladdr", lab.topology.link(endpoint).mac, "dev", "eth0")
        lab.run(CLIENT, "ip", "route", "replace", f"{VIP}/32", "dev", "eth0", "src", str(client))
        with netns.inside(lab.netns(CLIENT), socket.create_connection, (str(VIP), 80), 5, (str(client), 0)):
            return next(sender for sender, mac, asked in heard(listener, 1)
                        if asked == client and mac == lab.topology.link(endpoint).mac)  # fmt: skip


@pytest.mark.parametrize("binding", ["route", "address"])
def test_endpoints_never_answer_for_the_vip_and_ask_by_addresses_of_their_own(site, binding):
    lab = site((r"  role: endpoint\n", f"  role: endpoint\n  vipBinding: {binding}\n"))
    assert senders_that_ask(lab, FIRST) == IPv4Address(FIRST)
    assert who_has_the_vip(lab) == {lab.topology.link("lb3").mac}


@pytest.mark.parametrize("binding", ["route", "address"])
def test_without_the_settings_an_endpoint_does_speak_for_the_vip(site, binding):
    """Were it silent anyway, the tests above would prove nothing."""
    lab = site((r"  role: endpoint\n", f"  role: endpoint\n  vipBinding: {binding}\n"))
    settings = {"net/ipv4/conf/eth0/arp_ignore": "0", "net/ipv4/conf/eth0/arp_announce": "0"}
    netns.write_sysctls(lab.netns(FIRST), settings)
    assert who_has_the_vip(lab) == {lab.topology.link("lb3").mac, lab.topology.link(FIRST).mac}
    assert senders_that_ask(lab, FIRST) == VIP


def test_the_agent_of_an_endpoint_silences_it_again(site, tmp_path):
    lab = site()
    argv = ("run", str(tmp_path / "manifests"), "--node", "file1", "--resync", "1s")
    lab.start_lbctl(*argv, host=FIRST)
    netns.write_sysctls(lab.netns(FIRST), {"net/ipv4/conf/eth0/arp_ignore": "0"})
    wait_until("the setting is back", lambda: setting(lab, "arp_ignore") == "1")
    lab.run(FIRST, "ip", "route", "del", "local", str(VIP), "dev", "lo")
    wait_until("the VIP is back", lambda: str(VIP) in lab.run(FIRST, "ip", "route", "show", "table", "local"))
    prove_service(lab, "downloads")


def setting(lab: Lab, name: str) -> str:
    return lab.run(FIRST, "cat", f"/proc/sys/net/ipv4/conf/eth0/{name}").strip()


# --- the proof fails where the service does -------------------------------------------------------------------
def test_a_dead_vip_is_noticed(site):
    lab = site()
    forget_services(lab)
    with pytest.raises(AssertionError, match="128 of 128 requests failed: 128 × TimeoutError"):
        prove_service(lab, "downloads")


def test_an_endpoint_without_the_vip_is_noticed(site):
    lab = site()
    lab.run(FIRST, "ip", "route", "del", "local", str(VIP), "dev", "lo")
    with pytest.raises(AssertionError, match=r"\d+ of 128 requests failed: \d+ × TimeoutError"):
        prove_service(lab, "downloads")


def test_an_endpoint_that_replies_through_the_balancer_is_noticed(site):
    lab = site()
    for client in lab.topology.client:
        lab.run(SECOND, "ip", "route", "add", f"{client}/32", "via", "10.21.0.1")
    with pytest.raises(AssertionError, match=f"a reply from {VIP}:80 went to the balancer"):
        prove_service(lab, "downloads")


def test_an_endpoint_that_clients_reach_past_the_balancer_is_noticed(site):
    lab = site()
    mac = lab.topology.link(SECOND).mac
    lab.run(CLIENT, "ip", "route", "replace", f"{VIP}/32", "dev", "eth0")
    lab.run(CLIENT, "ip", "neigh", "replace", str(VIP), "lladdr", mac, "dev", "eth0", "nud", "permanent")
    with pytest.raises(AssertionError, match=f"{SECOND}:80 answered what the balancer did not send it"):
        prove_service(lab, "downloads")


# --- taken away -----------------------------------------------------------------------------------------------
def test_delete_gives_an_endpoint_back_as_it_was(site):
    lab = site()
    held = {name: setting(lab, name) for name in ("arp_ignore", "arp_announce", "rp_filter")}
    assert held == {"arp_ignore": "1", "arp_announce": "2", "rp_filter": "2"}
    applied_on(lab, FIRST, "delete", "--auto-approve")
    assert {setting(lab, name) for name in held} == {"0"}
    assert str(VIP) not in lab.run(FIRST, "ip", "route", "show", "table", "all")
    assert netns.instance_dirs(lab.netns(FIRST), lab.run_dir) == []


# --- VIPs inside the segment ------------------------------------------------------------------------------------
ON_LINK = {"IPv4": (r"20\.20\.20\.21", "10.21.0.99"), "IPv6": (r"2001:db8:20::21", "2001:db8:21::99")}


@pytest.mark.parametrize("family", ON_LINK)
def test_who_is_on_the_segment_finds_a_vip_in_it_and_hears_where_it_is_now(site, tmp_path, family):
    """The client believes in another machine, as it does where that one had the VIP until now."""
    vip = ON_LINK[family][1]
    lab = site(*(IPV6 if family == "IPv6" else ()), ON_LINK[family])
    lab.run(CLIENT, "ip", "route", "del", f"{vip}/{128 if family == 'IPv6' else 32}")
    prove_service(lab, "downloads")
    applied_on(lab, "lb3", "delete", "--auto-approve")
    believed = ("lladdr", "02:00:00:00:99:99", "dev", "eth0", "nud", "reachable")
    lab.run(CLIENT, "ip", "neigh", "replace", vip, *believed)
    applied_on(lab, "lb3", "apply", str(tmp_path / "manifests"), "--node", "lb3", "--auto-approve")
    assert "02:00:00:00:99:99" not in lab.run(CLIENT, "ip", "neigh", "show", vip)
    prove_service(lab, "downloads")
    assert "No changes" in applied_on(lab, "lb3", "plan", str(tmp_path / "manifests"), "--node", "lb3")
