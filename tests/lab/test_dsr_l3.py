# SPDX-License-Identifier: Apache-2.0
"""dsr-l3 from YAML to packets on its own example, endpoints set up by lbctl, and what must not pass for it.

Endpoints unpack by devices of the kernel where it has them, else by our program: the same is asked of both.
"""

import re
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from reconciler.doctor.finding import FOUND
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.real import RealKernel
from reconciler.kinds.tunnel import Tunnel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.prove import prove_service
from reconciler.lab.topology import CLIENT, ROUTER, host_of

from .conftest import LabMaker
from .direct import applied_on, check_spread, example, forget_services, udp_answers, udp_servers

pytestmark = pytest.mark.kernel

VIP = IPv4Address("20.20.20.31")
FIRST, SECOND, THIRD = "10.32.0.11", "10.32.0.12", "10.33.0.11"
KEPT = 48
"""Connections kept open: that chance leaves one of three endpoints without any has odds of 3 (2/3)^48, about 1e-8."""
STRICT = {f"net/ipv4/conf/{name}/rp_filter": "1" for name in ("all", "default", "eth0")}
IN_FRAGMENTS = bytes(9_000)
SMALL = (r"mtu: 1520", "mtu: 1500")


@pytest.fixture
def site(start_lab: LabMaker, tmp_path: Path) -> Callable[..., Lab]:
    """The example, applied on one of its balancers and its endpoints, which begin with strict settings."""

    def start(*changes: tuple[str, str], name: str = "dsr-l3", balancer: str = "lb4") -> Lab:
        lab = start_lab(example(name, tmp_path / "manifests", *changes), node_name=balancer)
        for address in lab.topology.endpoints:
            netns.write_sysctls(lab.netns(host_of(address)), STRICT)
        lab.serve_http()
        lab.apply(tmp_path / "manifests")
        return lab

    return start


def by_program(lab: Lab) -> bool:
    """Whether endpoints unpack by our program."""
    return RealKernel(lab.netns(FIRST), lab.run_dir).loaded_program() is not None


def stop_unpacking(lab: Lab, endpoint: str) -> None:
    """Take away what unpacks, behind lbctl's back."""
    if by_program(lab):
        lab.run(endpoint, "ip", "link", "set", "dev", "eth0", "xdp", "off")
    else:
        lab.run(endpoint, "ip", "link", "del", Tunnel("ipip", endpoint, 0).device)


def test_the_example_works_and_spreads_by_weight(site):
    lab = site()
    prove_service(lab, "portal")
    check_spread(lab, VIP, 443)


def test_udp_is_answered_by_the_endpoint_that_keeps_the_client(site):
    lab = site((r"ports: \[80, 443\]", "protocol: udp\n  ports: [53]"))
    with lab.capture("eth0") as tap, udp_servers(lab, VIP, 53):
        answers = udp_answers(lab, VIP, 53) + udp_answers(lab, VIP, 53, question=IN_FRAGMENTS)
        packets = tap.packets()
    assert {name for names in answers for name in names} == {FIRST, SECOND, THIRD}
    assert all(len(set(names)) == 1 for names in answers)
    assert [packet for packet in packets if packet.source == VIP] == []
    assert {str(packet.tunnel) for packet in packets if packet.tunnel} == {FIRST, SECOND, THIRD}


def test_ipv6_endpoints_take_both_families(site):
    lab = site(name="dsr-l3-ipv6", balancer="lb9")
    prove_service(lab, "library")
    for vip in map(ip_address, ("20.20.20.61", "2001:db8:20::61")):
        check_spread(lab, vip, 443)
        with udp_servers(lab, vip, 443):
            answers = udp_answers(lab, vip, 443)
            in_fragments = udp_answers(lab, vip, 443, question=IN_FRAGMENTS)
        for names_of_clients in (answers, in_fragments):
            assert {name for names in names_of_clients for name in names} == set(map(str, lab.topology.endpoints))
            assert all(len(set(names)) == 1 for names in names_of_clients)


def test_a_link_local_gateway_is_a_way_to_endpoints(site, tmp_path):
    """The lab's router has no such address by itself, and the kernel's routes lead nowhere."""
    gateway = "fe80::1:fe"
    lab = site((r"mtu: 1540\n  tunnelSource", f"mtu: 1540\n      gateway: {gateway}\n  tunnelSource"),
               name="dsr-l3-ipv6", balancer="lb9")  # fmt: skip
    lab.run("lb9", "ip", "-6", "route", "del", "default")
    prove_service(lab, "library")
    check_spread(lab, ip_address("2001:db8:20::61"), 443)
    again = (str(tmp_path / "manifests"), "--node", "lb9")
    applied_on(lab, "lb9", "apply", *again, "--auto-approve")  # the router of the route that went is kept no longer
    assert "No changes" in applied_on(lab, "lb9", "plan", *again)
    mark = str(protocol_of(lab.netns("lb9")))
    lab.run("lb9", "ip", "-6", "route", "flush", "proto", mark)  # by somebody
    found = lab.lbctl("doctor", *again, host="lb9")
    assert found.returncode == FOUND and "gateway-route-missing" in found.stdout
    applied_on(lab, "lb9", "apply", *again, "--auto-approve")
    prove_service(lab, "library")
    applied_on(lab, "lb9", "delete", "--auto-approve")
    left = lab.run("lb9", "ip", "-d", "-6", "route", "show", "table", "all")
    assert f"proto {mark}" not in left


def test_packets_to_the_source_of_tunnels_go_round_no_loop(site):
    lab = site((r"(addresses: \[10.31.0.1/24\].*\n)", r"\1  tunnelSource: {ipv4: 10.200.0.0/24}\n"))
    lab.run(ROUTER, "ip", "route", "add", "10.200.0.0/24", "via", "10.31.0.1")
    lab.run("lb4", "ip", "address", "add", "10.200.0.9/28", "dev", "lo")
    prove_service(lab, "portal")

    def ask(address: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(10)
            sender.connect((address, 9))
            sender.send(b"?")
            if address.endswith(".9"):
                with pytest.raises(ConnectionRefusedError):  # so the one before has come to its end as well
                    sender.recv(1)

    with lab.capture("eth0") as tap:
        for address in ("10.200.0.77", "10.200.0.9"):
            netns.inside(lab.netns(CLIENT), ask, address)
        packets = tap.packets()
    seen = [str(p.destination) for p in packets if str(p.destination).startswith("10.200")]
    assert seen == ["10.200.0.77", "10.200.0.9"]
    applied_on(lab, "lb4", "delete", "--auto-approve")
    assert "blackhole" not in lab.run("lb4", "ip", "route", "show", "table", "all")


def test_another_balancer_takes_over_without_breaking_a_connection(site, tmp_path):
    lab = site()
    applied_on(lab, "lb5", "apply", str(tmp_path / "manifests"), "--node", "lb5", "--auto-approve")
    kept = lab.load(VIP, 80, rate=200, concurrency=KEPT, requests_per_connection=0, clients=KEPT)
    wait_until("all connections are open", lambda: sum(o.new_connection for o in kept.outcomes()) == KEPT)
    lab.run(CLIENT, "ip", "route", "replace", f"{VIP}/32", "via", "10.31.0.2")
    forget_services(lab)
    before = len(kept.outcomes())
    wait_until("connections go on", lambda: len(kept.outcomes()) > before + 2 * KEPT)
    outcomes = kept.stop()
    assert [o.error for o in outcomes if o.error] == []
    assert sum(o.new_connection for o in outcomes) == KEPT
    assert {o.endpoint for o in outcomes} == {f"{endpoint}:80" for endpoint in (FIRST, SECOND, THIRD)}


def who_answers(lab: Lab, ports: range) -> list[str]:
    """The endpoint that each new connection from one of these ports of the client gets; all end with a reset."""
    client = str(lab.topology.client[0])

    def ask(port: int) -> str:
        with socket.create_connection((str(VIP), 80), 5, (client, port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n")
            return re.findall(rb"X-Endpoint: ([\d.]+):", connection.recv(1_000))[0].decode()

    return [netns.inside(lab.netns(CLIENT), ask, port) for port in ports]


def test_an_edit_under_load_moves_as_many_new_connections_as_announced_and_no_open_one(site, tmp_path):
    lab = site()
    manifests, ports = tmp_path / "manifests", range(20_000, 20_400)
    kept = lab.load(VIP, 80, rate=200, concurrency=KEPT, requests_per_connection=0, clients=KEPT)
    wait_until("all connections are open", lambda: sum(o.new_connection for o in kept.outcomes()) == KEPT)
    before = who_answers(lab, ports)
    third = f"    - {{address: {THIRD}}}\n"
    pool = manifests / "pools.yaml"
    text = pool.read_text()
    for edited in (text.replace(third, ""), text):
        assert edited != pool.read_text()
        pool.write_text(edited)
        plan = applied_on(lab, "lb4", "plan", str(manifests), "--node", "lb4")
        announced = float(re.findall(r"([\d.]+)% of new connections move; open connections stay", plan)[0]) / 100
        applied_on(lab, "lb4", "apply", str(manifests), "--node", "lb4", "--auto-approve")
        after = who_answers(lab, ports)
        moved = sum(one != other for one, other in zip(before, after, strict=True))
        deviation = (len(ports) * announced * (1 - announced)) ** 0.5
        assert abs(moved - len(ports) * announced) < 5 * deviation, (announced, moved)
        assert (THIRD in after) == (edited == text)
        assert "portal/maglev" in applied_on(lab, "lb4", "get", "transitions")
        seen = len(kept.outcomes())
        wait_until("open connections go on", lambda seen=seen: len(kept.outcomes()) > seen + 2 * KEPT)
        before = after
    outcomes = kept.stop()
    assert [o.error for o in outcomes if o.error] == []
    assert sum(o.new_connection for o in outcomes) == KEPT
    assert {o.endpoint for o in outcomes[-2 * KEPT :]} == {f"{endpoint}:80" for endpoint in (FIRST, SECOND, THIRD)}


# --- full packets ---------------------------------------------------------------------------------------------
def upload_errors(lab: Lab) -> list[str]:
    return [o.error for o in lab.load(VIP, 80, count=6, payload_bytes=200_000, timeout_s=4).wait() if o.error]


def learned_mtu(lab: Lab) -> bool:
    """Whether the client knows a smaller MTU towards the VIP: that of the network without the outer header."""
    return "mtu 1480" in lab.run(CLIENT, "ip", "route", "get", str(VIP), "from", str(lab.topology.client[0]))


def test_where_the_network_carries_them_full_packets_pass(site):
    lab = site()
    assert upload_errors(lab) == []
    assert not learned_mtu(lab)


def test_where_it_does_not_clients_are_told_and_go_on_with_smaller_ones(site):
    lab = site(SMALL)
    assert upload_errors(lab) == []
    assert learned_mtu(lab)
    assert "too big answered" in applied_on(lab, "lb4", "get", "verdicts")


def test_where_nobody_tells_them_uploads_hang(site):
    """Were clients to find out by themselves, the test above would prove nothing."""
    lab = site(SMALL, (r"undefinedTraffic: reject", "undefinedTraffic: reject\n  packetTooBig: drop"))
    assert len(upload_errors(lab)) == 6
    assert not learned_mtu(lab)


# --- what else comes in tunnels ---------------------------------------------------------------------------------
def udp_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """An IPv4 packet."""
    total = 28 + len(payload)
    addresses = map(socket.inet_aton, (source, destination))
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 1, 0, 64, 17, 0, *addresses)
    words = sum(struct.unpack("!10H", header))
    words = (words & 0xFFFF) + (words >> 16)
    header = header[:10] + struct.pack("!H", ~(words + (words >> 16)) & 0xFFFF) + header[12:]
    return header + struct.pack("!4H", 9999, port, 8 + len(payload), 0) + payload


def tunnel_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 4)


def listener_at(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 7777))
    made.settimeout(5)
    return made


def test_an_endpoint_unpacks_for_its_vip_and_sends_on_nothing(site):
    """Even one that forwards: a tunnel must not lead strangers into the networks behind it."""
    lab = site()
    netns.write_sysctls(lab.netns(FIRST), {"net/ipv4/ip_forward": "1"})
    lab.lbctl("apply", str(lab.run_dir.parent / "manifests"), "--node", "portal1", "--auto-approve", host=FIRST)
    client = str(lab.topology.client[0])
    with (
        netns.inside(lab.netns(ROUTER), tunnel_socket) as sender,
        netns.inside(lab.netns(FIRST), listener_at, str(VIP)) as at_vip,
        netns.inside(lab.netns(SECOND), listener_at, SECOND) as behind,
        netns.inside(lab.netns(SECOND), listener_at, str(VIP)) as other,
    ):
        for destination in (SECOND, str(VIP)):
            sender.sendto(udp_packet(client, destination, 7777, destination.encode()), (FIRST, 0))
        assert at_vip.recv(100) == str(VIP).encode()
        # What came first could have been sent on by now; what follows it on the same way arrives.
        with netns.inside(lab.netns(FIRST), socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as barrier:
            barrier.sendto(b"barrier", (SECOND, 7777))
        assert behind.recv(100) == b"barrier"
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(100)


# --- the proof fails where the service does ---------------------------------------------------------------------
def test_a_dead_vip_is_noticed(site):
    lab = site()
    forget_services(lab)
    with pytest.raises(AssertionError, match=f"a reply from {VIP}:80 went from the balancer"):  # which rejects
        prove_service(lab, "portal")


@pytest.mark.parametrize("lost", ["vip", "tunnel"])
def test_an_endpoint_that_lost_its_vip_or_its_tunnel_is_noticed_and_mended(site, tmp_path, lost):
    lab = site()
    if lost == "vip":
        lab.run(FIRST, "ip", "route", "del", "local", str(VIP), "dev", "lo")
    else:
        stop_unpacking(lab, FIRST)
    with pytest.raises(AssertionError, match=r"\d+ of 128 requests failed: \d+ × "):
        prove_service(lab, "portal")
    args = (str(tmp_path / "manifests"), "--node", "portal1")
    assert "drift" in applied_on(lab, FIRST, "plan", *args)
    applied_on(lab, FIRST, "apply", *args, "--auto-approve")
    prove_service(lab, "portal")


def test_an_endpoint_that_replies_through_the_balancer_is_noticed(site):
    lab = site()
    lab.run(ROUTER, "ip", "rule", "add", "from", str(VIP), "lookup", "77")
    lab.run(ROUTER, "ip", "route", "add", "default", "via", "10.31.0.1", "table", "77")
    with pytest.raises(AssertionError, match=f"a reply from {VIP}:80 went to the balancer"):
        prove_service(lab, "portal")


# --- taken away -------------------------------------------------------------------------------------------------
def test_delete_gives_an_endpoint_back_as_it_was(site):
    lab = site()
    applied_on(lab, FIRST, "delete", "--auto-approve")
    links = lab.run(FIRST, "ip", "link")
    assert "xdp" not in links and Tunnel("ipip", FIRST, 0).device not in links
    assert str(VIP) not in lab.run(FIRST, "ip", "route", "show", "table", "all")
    for name, value in {"arp_ignore": "0", "arp_announce": "0", "rp_filter": "1"}.items():
        held = lab.run(FIRST, "cat", *(f"/proc/sys/net/ipv4/conf/{of}/{name}" for of in ("all", "eth0")))
        assert held.split() == [value, value]
    assert netns.instance_dirs(lab.netns(FIRST), lab.run_dir) == []
    assert netns.mounts(lab.netns(FIRST), lab.run_dir) == []
