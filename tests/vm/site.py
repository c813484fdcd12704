# SPDX-License-Identifier: Apache-2.0
"""A client, a router, a balancer and three endpoints in namespaces; lbctl gives each its part of the manifests.

    client 10.1.0.2 ── router ┬── segment ── lb1 10.2.0.1, ep1 10.2.0.11, ep2 10.2.0.12
                              └── far ────── ep3 10.3.0.13

IPv6 is 2001:db8:1::/64 and so on, with the same last numbers. The balancer has one leg: requests come to it from
the router and go back there, or to a neighbour.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.kernel import xdp
from reconciler.kernel.bpf import closing, load_program
from reconciler.lab import netns
from reconciler.lab.build import await_answer

PREFIX = "lbv"
CLIENT, ROUTER, BALANCER = "client", "router", "lb1"
HOSTS = {CLIENT: (1, 2), BALANCER: (2, 1), "ep1": (2, 11), "ep2": (2, 12), "ep3": (3, 13)}
"""Host → the numbers of its network and of itself in there."""
ENDPOINTS = ("ep1", "ep2", "ep3")

_CHECKOUT = Path(__file__).parents[2]
_PASS = bytes.fromhex("b700000002000000" "9500000000000000")
"""r0 = XDP_PASS; exit"""


def address(host: str, version: int = 4) -> str:
    network, number = HOSTS[host]
    return f"10.{network}.0.{number}" if version == 4 else f"2001:db8:{network}::{number}"


def mac(host: str) -> str:
    network, number = HOSTS[host]
    return f"02:00:00:00:{network:02}:{number:02}"


def port(host: str) -> str:
    """The router's port that a host is behind."""
    return f"{host}-port"


class Site:
    """A hand on what is set up. `manifests` is a directory with a Node for each endpoint, and lb1."""

    def __init__(self, manifests: Path, run_dir: Path) -> None:
        self.manifests, self.run_dir = manifests, run_dir

    def netns(self, host: str) -> str:
        return netns.name(PREFIX, host)

    def ip(self, host: str, *lines: str) -> None:
        netns.ip(lines, self.netns(host))

    def run(self, host: str, *argv: str) -> str:
        """What a command prints. Raises CalledProcessError."""
        command = netns.command(self.netns(host), argv)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def lbctl(self, host: str, *arguments: str, code: int = 0) -> str:
        """What lbctl prints on a host. AssertionError, with all of it, if it ends with another code."""
        argv = [sys.executable, "-m", "reconciler.cli.main", "--netns", self.netns(host)]
        argv += ["--run-dir", str(self.run_dir), *arguments]
        environment = os.environ | {"PYTHONPATH": str(_CHECKOUT)}
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=180, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def apply(self, *hosts: str) -> None:
        """Give hosts (none: lb1 and all endpoints) their part of the manifests."""
        for host in hosts or (BALANCER, *ENDPOINTS):
            self.lbctl(host, "apply", str(self.manifests), "--node", host, "--auto-approve")


@contextmanager
def site(manifests: Path, run_dir: Path) -> Iterator[Site]:
    """A site on which lbctl has done nothing yet. It is gone afterwards."""
    made = Site(manifests, run_dir)
    netns.destroy(PREFIX, run_dir)
    try:
        _build(made)
        yield made
    finally:
        netns.destroy(PREFIX, run_dir)


def _build(made: Site) -> None:
    netns.ip(f"netns add {made.netns(host)}" for host in (*HOSTS, ROUTER))
    for host in (*HOSTS, ROUTER):
        forwards = "1" if host == ROUTER else "0"
        netns.write_sysctls(made.netns(host), {
            "net/ipv4/ip_forward": forwards, "net/ipv6/conf/all/forwarding": forwards,
            "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
            "net/ipv4/conf/all/send_redirects": "0", "net/ipv4/conf/default/send_redirects": "0",
            "net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/default/router_solicitations": "0",
        })  # fmt: skip
    made.ip(
        ROUTER, "link set lo up", "link add segment address 02:00:00:00:02:fe type bridge", "link set segment up",
        *_addresses("segment", 2, 254),
    )  # fmt: skip
    for host, (network, number) in HOSTS.items():
        made.ip(ROUTER, f"link add {port(host)} type veth peer eth0 address {mac(host)} netns {made.netns(host)}")
        if network == 2:
            made.ip(ROUTER, f"link set {port(host)} master segment up")
        else:
            made.ip(ROUTER, f"link set {port(host)} up", *_addresses(port(host), network, 254))
        made.ip(
            host, "link set lo up", "link set eth0 up", *_addresses("eth0", network, number),
            f"route add default via 10.{network}.0.254", f"route add default via 2001:db8:{network}::254",
        )  # fmt: skip
        if host != BALANCER:  # Links of veth leave checksums to the receiver, which others don't.
            made.run(host, "ethtool", "-K", "eth0", "tx", "off", "tx-checksum-sctp", "off")
    made.ip(
        ROUTER, f"route add 20.20.20.0/24 via {address(BALANCER)}",
        f"route add 2001:db8:20::/64 via {address(BALANCER, 6)}",
    )  # fmt: skip
    netns.inside(made.netns(ROUTER), _attach_pass)
    for host in (BALANCER, *ENDPOINTS):
        for version in (4, 6):
            to = address(host, version)
            netns.inside(made.netns(CLIENT), await_answer, f"the client reaches {to}", to, 9)


def _addresses(device: str, network: int, number: int) -> tuple[str, str]:
    return (
        f"address add 10.{network}.0.{number}/24 dev {device}",
        f"address add 2001:db8:{network}::{number}/64 dev {device} nodad",
    )


def _attach_pass() -> None:
    # What the balancer sends by XDP_TX vanishes unless the other end of its veth runs a native program, too.
    with closing(load_program("site_pass", _PASS)) as program:
        xdp.swap(port(BALANCER), "native", program, None)
