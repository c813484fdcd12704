# SPDX-License-Identifier: Apache-2.0
"""A balancer on a VLAN trunk of the kernel's own, with real sockets: in on one tag, out on another. Its interfaces for
VLANs are somebody's, or lbctl makes them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from reconciler.doctor.finding import FOUND
from reconciler.kernel import links, neighbours, offloads, xdp
from reconciler.kernel.bpf import closing, load_program
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.objects import RX_VLAN, Neighbour
from reconciler.lab import netns
from reconciler.lab.build import _PASS
from tests.packets.frames import echo, echoed

T = TypeVar("T")
CHECKOUT = Path(__file__).resolve().parents[2]
LIMIT_S = 30
VIP, CLIENT, SERVER = "20.20.20.1", "10.1.0.2", "10.2.0.11"
BALANCER = "lbs-vlan-lb"
HOSTS = {"lbs-vlan-client": (100, CLIENT, "10.1.0.1"), "lbs-vlan-server": (200, SERVER, "10.2.0.1")}
"""Namespace → tag, address, gateway."""
MANIFESTS = f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: [80], targetPort: 8080, algorithm: source-hash, pool: web}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec: {{endpoints: [{{address: {SERVER}}}]}}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces:
    - {{name: trunk}}
    - {{name: trunk.100, trunk: trunk, addresses: [10.1.0.1/24]}}
    - {{name: trunk.200, trunk: trunk, addresses: [10.2.0.1/24]}}
"""
DECLARED = re.sub(r"(name: trunk\.(\d+), trunk: trunk)", r"\1, tag: \2", MANIFESTS)
"""The same, with interfaces that lbctl makes."""


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, timeout=60)


def in_software(namespace: str, device: str, *features: str) -> None:
    """Turn off what a network card would do to frames, and veth only pretends to do."""
    words = [word for feature in features for word in (feature, "off")]
    subprocess.run(netns.command(namespace, ["ethtool", "-K", device, *words]), check=True, timeout=60)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A trunk with two VLANs between a balancer and a wire; returns how to call lbctl on the balancer."""
    namespaces = (BALANCER, *HOSTS)
    (tmp_path / "fleet.yaml").write_text(MANIFESTS)

    def lbctl(*words: str, code: int = 0) -> str:
        where = ("--netns", BALANCER, "--run-dir", str(tmp_path / "run"))
        done = subprocess.run(
            [sys.executable, "-m", "reconciler.cli.main", *where, *words], cwd=CHECKOUT, capture_output=True,
            text=True, timeout=600, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    try:
        for namespace in namespaces:
            ip(f"netns add {namespace}")
            ip(f"-n {namespace} link set lo up")
        ip("link add wire type veth peer name trunk")
        ip(f"link set trunk netns {BALANCER}")
        in_software(BALANCER, "trunk", "txvlan", "tx")
        subprocess.run(["ethtool", "-K", "wire", "txvlan", "off", "tx", "off"], check=True, timeout=60)
        with closing(load_program("lab_pass", _PASS)) as program:
            xdp.swap("wire", "native", program, None)
        ip("link set wire up")
        ip(f"-n {BALANCER} link set trunk up")
        for namespace, (tag, address, gateway) in HOSTS.items():
            ip(f"link add link wire name vlan{tag} type vlan id {tag}")
            ip(f"link set vlan{tag} netns {namespace}")
            in_software(namespace, f"vlan{tag}", "tx")
            ip(f"-n {namespace} addr add {address}/24 dev vlan{tag}")
            ip(f"-n {namespace} link set vlan{tag} up")
            ip(f"-n {namespace} route add default via {gateway}")
        yield lambda *words, **more: lbctl(*words, **more)
        lbctl("delete", "--auto-approve")
        assert takes_tags_off(), "as before"
    finally:
        for namespace in namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, timeout=60)
        subprocess.run(["ip", "link", "del", "wire"], check=False, timeout=60)


def takes_tags_off() -> bool:
    """Whether the trunk takes the tags off before XDP sees frames."""
    return netns.inside(BALANCER, offloads.read, ["trunk"])["trunk", RX_VLAN].is_on


def make_by_hand() -> None:
    """The balancer's interfaces, as somebody makes them."""
    for tag, _, gateway in HOSTS.values():
        ip(f"-n {BALANCER} link add link trunk name trunk.{tag} type vlan id {tag}")
        ip(f"-n {BALANCER} addr add {gateway}/24 dev trunk.{tag}")
        ip(f"-n {BALANCER} link set trunk.{tag} up")


def held() -> dict[str, dict[str, Any]]:
    """The balancer's interfaces, by name, as `ip` shows them."""
    words = ["ip", "-n", BALANCER, "-json", "-details", "address", "show"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    return {link["ifname"]: link for link in json.loads(shown) if "ifname" in link}


def verdicts(lbctl: Callable[..., str]) -> dict[str, int]:
    found = json.loads(lbctl("get", "verdicts", "-o", "json"))["items"]
    return {row["verdict"]: row["packets"] for row in found}


def connect(times: int) -> None:
    """Connections from the client to the VIP, one after the other, each with an answer of the server's own."""
    with netns.inside("lbs-vlan-server", lambda: socket.create_server((SERVER, 8080))) as listener:
        listener.settimeout(LIMIT_S)
        for number in range(times):
            server = threading.Thread(target=serve, args=(listener,))
            server.start()
            connection = netns.inside("lbs-vlan-client", lambda: socket.create_connection((VIP, 80), LIMIT_S))
            with connection:
                connection.sendall(b"hello %d" % number)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.makefile("rb").read()
            server.join()
            assert answer == (b"hello %d" % number)[::-1] + CLIENT.encode()


def serve(listener: socket.socket) -> None:
    """Answer one connection with what it says, backwards, and whose it is."""
    connection, (client, _) = listener.accept()
    with connection:
        asked = connection.recv(65_536)
        connection.sendall(asked[::-1] + client.encode())


def test_connections_and_pings_cross_from_one_vlan_to_another(site: Callable[..., str], tmp_path: Path) -> None:
    make_by_hand()
    assert takes_tags_off()
    applied = site("apply", str(tmp_path), "--node", "lb1", "--auto-approve")
    assert "~ offload trunk rx-vlan-offload " in applied
    assert not takes_tags_off()
    assert site("plan", str(tmp_path), "--node", "lb1").startswith("No changes.")

    found = {link.name: link for link in netns.inside(BALANCER, links.read)}
    for tag in (100, 200):
        assert (found[f"trunk.{tag}"].trunk, found[f"trunk.{tag}"].tag) == (found["trunk"].index, tag)
    assert netns.inside(BALANCER, neighbours.read, protocol_of(BALANCER))[0] == [Neighbour(SERVER, "trunk.200")]

    connect(5)

    ping, pong = echo(CLIENT, VIP)[34:], echoed(echo(CLIENT, VIP))[34:]
    raw = netns.inside("lbs-vlan-client", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with raw:
        raw.settimeout(LIMIT_S)
        raw.sendto(ping, (VIP, 0))
        assert raw.recv(2048)[20:] == pong

    counted = verdicts(site)
    assert counted["request"] >= 15, counted  # a SYN, data and a FIN each, by XDP and not by the kernel
    assert counted["reply"] >= 15, counted
    assert counted["echo answered"] == 1, counted


def test_those_with_a_tag_are_made_carry_connections_and_go_again(site: Callable[..., str], tmp_path: Path) -> None:
    before = held()
    (tmp_path / "fleet.yaml").write_text(DECLARED)
    applied = site("apply", str(tmp_path), "--node", "lb1", "--auto-approve")
    assert "+ vlan-link trunk.100" in applied and "+ vlan-link trunk.200" in applied
    found = held()
    for tag, _, gateway in HOSTS.values():
        made = found[f"trunk.{tag}"]
        info = made["linkinfo"]
        assert (made["link"], info["info_kind"], info["info_data"]["id"]) == ("trunk", "vlan", tag)
        assert "UP" in made["flags"]
        assert gateway in {address["local"] for address in made["addr_info"]}
    assert site("plan", str(tmp_path), "--node", "lb1").startswith("No changes.")
    connect(5)
    counted = verdicts(site)
    assert counted["request"] >= 15 and counted["reply"] >= 15, counted  # by XDP and not by the kernel

    ip(f"-n {BALANCER} link del trunk.100")  # somebody's slip of the hand
    assert "vlan-missing" in site("doctor", str(tmp_path), "--node", "lb1", code=FOUND)
    assert "+ vlan-link trunk.100" in site("apply", str(tmp_path), "--node", "lb1", "--auto-approve")
    connect(1)
    assert verdicts(site)["request"] > counted["request"]

    site("delete", "--auto-approve")
    assert held().keys() == before.keys()
