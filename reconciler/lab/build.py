# SPDX-License-Identifier: Apache-2.0
"""Making a topology real: namespaces, veth pairs, bridges, addresses, routes.

Links are veth pairs, which hide mistakes that real networks show. So the client and the endpoints compute their
checksums themselves, and the switch runs a native XDP program on each port that faces a balancer: without one,
frames that the balancer sends by XDP_TX vanish and no counter says so.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator

from reconciler.kernel import xdp
from reconciler.kernel.bpf import closing, load_program
from reconciler.lab import LabError, netns
from reconciler.lab.topology import ROUTER, SWITCH, Topology

_READY_WAIT_S = 60.0
_UNUSED_PORT = 9
_PASS = bytes.fromhex("b700000002000000" "9500000000000000")
"""r0 = XDP_PASS; exit"""

_SYSCTLS = {
    # Off, as IPv6 sends packets by itself.
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv6/conf/all/forwarding": "0",
    # A new namespace gets the host's IPv4 settings: go back to those of a plain kernel.
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
_IPV6_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    # Off, as duplicate address detection takes time.
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/router_solicitations": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
}
_ROUTER_SYSCTLS = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
_HOST_SYSCTLS = {
    # A redirect would teach an endpoint a way to the client that bypasses the balancer.
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
}


def build(topology: Topology, prefix: str) -> None:
    """Make everything and wait until each host reaches its balancer. Raises LabError; removes nothing then."""
    plain_hosts = [host for host in topology.hosts if host not in topology.balancers]
    every = (*topology.hosts, SWITCH)
    switch = netns.name(prefix, SWITCH)
    netns.ip(f"netns add {netns.name(prefix, host)}" for host in every)
    for host in every:
        settings = _SYSCTLS | (_HOST_SYSCTLS if host in plain_hosts else {})
        settings |= _IPV6_SYSCTLS if topology.has_ipv6 and host != SWITCH else {}
        settings |= _ROUTER_SYSCTLS if host == ROUTER else {}
        netns.write_sysctls(netns.name(prefix, host), settings)
    netns.ip(
        f"link add {link.device} address {link.mac} netns {netns.name(prefix, link.host)}"
        f" type veth peer name {link.port} netns {switch}"
        for link in topology.links
    )
    netns.inside(switch, _attach_pass, topology)
    netns.ip(_switch_lines(topology), switch)
    for host in topology.hosts:
        netns.ip(_host_lines(topology, host), netns.name(prefix, host))
    for host in plain_hosts:
        for device in (link.device for link in topology.links if link.host == host):
            _checksum_in_software(netns.name(prefix, host), device)
    _await_balancers(topology, prefix)


def _attach_pass(topology: Topology) -> None:
    with closing(load_program("lab_pass", _PASS)) as program:
        for link in topology.links:
            if link.host in topology.balancers:
                xdp.swap(link.port, "native", program, None)


def _switch_lines(topology: Topology) -> Iterator[str]:
    for segment, mtu_bytes in topology.segments.items():
        yield f"link add {segment} mtu {mtu_bytes} type bridge"
        yield f"link set {segment} up"
    for link in topology.links:
        yield f"link set {link.port} alias {link.host}/{link.device}"
        yield f"link set {link.port} mtu {link.segment_mtu_bytes} master {link.segment} up"


def _host_lines(topology: Topology, host: str) -> Iterator[str]:
    yield "link set lo up"
    for link in topology.links:
        if link.host == host:
            yield f"link set {link.device} mtu {link.mtu_bytes} up"
            # The kernel may have made a link-local one already.
            yield from (f"address replace {address} dev {link.device}" for address in link.addresses)
    for route in topology.routes:
        if route.host == host:
            via = f"via {'inet6 ' if route.via.version != route.to.version else ''}{route.via}"
            yield f"route add {route.to} {via} dev {topology.towards(route).device}"


def _checksum_in_software(namespace: str, device: str) -> None:
    argv = ["ethtool", "-K", device, "tx", "off", "tx-checksum-sctp", "off"]
    done = subprocess.run(netns.command(namespace, argv), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise LabError(f"`ethtool` failed in {namespace}: {done.stderr.strip()}")


def _await_balancers(topology: Topology, prefix: str) -> None:
    """Wait until each host reaches its balancer; then remove the neighbours that the balancers learnt from it."""
    for host, gateway in {route.host: str(route.via) for route in topology.routes}.items():
        netns.inside(netns.name(prefix, host), await_answer, f"{host} reaches {gateway}", gateway, _UNUSED_PORT)
    for balancer in topology.balancers:
        netns.ip(["neigh flush all"], netns.name(prefix, balancer))


def await_answer(what: str, address: str, port: int, listening: bool = False) -> None:
    """Wait until a connection to a port is accepted or, unless the port must be `listening`, refused."""

    def answered() -> bool:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except ConnectionRefusedError:
            return not listening
        except OSError:
            return False
        return True

    wait_until(what, answered)


def wait_until(what: str, condition: Callable[[], bool], seconds: float = _READY_WAIT_S) -> None:
    """Wait for a condition. Raises LabError when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.01)
