# SPDX-License-Identifier: Apache-2.0
"""Checks `through: vip` see what checks of the endpoint's own address don't: each way in which direct server return
breaks fails the one while the other goes on to pass. Of seven endpoints, six are broken in ways of their own."""

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.dataplane.layout import Verdict
from reconciler.health import roster, store
from reconciler.health.state import Health
from reconciler.kernel import prober
from reconciler.kernel.objects import PROBER_DEVICE
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of
from reconciler.readings.counters import verdicts

from .conftest import PREFIX

pytestmark = pytest.mark.kernel

TUNNEL, PLAIN, FLAT, FULL = (IPv4Address(f"20.20.20.{number}") for number in (1, 2, 3, 4))
WAYS = {
    "tunnel": (TUNNEL, "dsr-l3", ", through: vip"), "flat": (FLAT, "dsr-l2", ", through: vip"),
    "full": (FULL, "dsr-l3", ", through: vip, size: full"), "plain": (PLAIN, "dsr-l3", ""),
}  # fmt: skip
VIPLESS, PACKED, BOUND, STRAYING, NARROW, FILTERED, WELL = ENDPOINTS = tuple(
    IPv4Address(f"10.2.0.{number}") for number in range(11, 18)
)
BROKEN = {
    VIPLESS: {"tunnel"}, PACKED: {"tunnel", "full"}, BOUND: {"tunnel", "flat", "full"}, STRAYING: {"flat"},
    NARROW: {"full"}, FILTERED: {"tunnel", "flat", "full"}, WELL: set(),
}  # fmt: skip
"""The pools for which each endpoint is down."""
NOBODY: dict[IPv4Address, set[str]] = {address: set() for address in ENDPOINTS}
CHECKER = "10.1.0.9"
PATIENCE_S = 240.0
CHECK = "type: http, interval: 1200ms, timeout: 1s, fall: 2, rise: 1"


def manifests() -> str:
    endpoints = ", ".join(f"{{address: {address}}}" for address in ENDPOINTS)
    return "---\n".join((
        *(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: {name}}}
spec: {{vip: {vip}, ports: [80], mode: {mode}, pool: {name}}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: {name}}}
spec: {{endpoints: [{endpoints}], healthCheck: {{{CHECK}{way}}}}}
""" for name, (vip, mode, way) in WAYS.items()),
        f"""\
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  healthAddress: {{ipv4: {CHECKER}}}
  interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
""",
        *(f"""\
apiVersion: lbctl/v1
kind: Node
metadata: {{name: e{address.packed[3]}}}
spec: {{role: endpoint, interfaces: [{{name: eth0, addresses: [{address}/24]}}]}}
""" for address in ENDPOINTS),
    ))  # fmt: skip


class Site:
    """A lab with an agent on its balancer that checks all endpoints in all ways."""

    def __init__(self, lab: Lab, directory: Path, log: Path) -> None:
        self.lab, self.directory, self.log = lab, directory, log
        with log.open("ab") as output:
            self.agent = lab.start_lbctl("run", str(directory), "--node", "lb1", output=output)

    def states(self) -> dict[tuple[str, str], tuple[Health, str]]:
        """State and last error of each endpoint, by pool and address."""
        place = self.lab.run_dir / self.lab.balancer
        entries = store.read(place / store.FILE).entries
        return {
            (pool, endpoint.address): (entries[digest].state.health, entries[digest].state.error)
            for pool, listed in roster.read(place / roster.FILE).items() for endpoint in listed.endpoints
            for _, digest in endpoint.targets if digest in entries
        }  # fmt: skip

    def await_broken(self, broken: dict[IPv4Address, set[str]]) -> None:
        """Until each endpoint is down for these pools, and up for the others."""
        wanted = {
            (pool, str(address)): Health.DOWN if pool in broken[address] else Health.UP
            for address in ENDPOINTS for pool in WAYS
        }  # fmt: skip

        def is_so() -> bool:
            return {key: health for key, (health, _) in self.states().items()} == wanted

        try:
            wait_until("all are up or down as they should be", is_so, PATIENCE_S)
        except Exception as error:
            others = {key: found for key, found in self.states().items() if found[0] is not wanted[key]}
            raise AssertionError(f"{error}: {others}\n{self.log.read_text()}") from error

    def lbctl(self, *args: str) -> str:
        done = self.lab.lbctl(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def answered(self) -> int:
        """How many packets have come back to who checks."""
        kernel = RealKernel(self.lab.balancer, self.lab.run_dir)
        return verdicts(kernel).get(Verdict.CHECK_ANSWERED, 0)

    def await_answers(self, more: int) -> None:
        wait_until("checks go on", lambda: self.answered() > more, PATIENCE_S)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path = tmp_path_factory.mktemp("site")
    directory = path / "manifests"
    directory.mkdir()
    (directory / "all.yaml").write_text(manifests())
    fleet = load(directory).fleet
    assert fleet
    with Lab(fleet, node_name="lb1", prefix=PREFIX, run_dir=path / "run") as lab:
        lab.serve_http()
        lab.apply(directory)
        found = Site(lab, directory, path / "log")
        found.await_broken(NOBODY)
        yield found


def test_each_way_in_which_direct_server_return_breaks_at_an_endpoint(site: Site) -> None:
    lab = site.lab
    # Another way back to who checks, which is no fault by itself.
    host, router = host_of(FILTERED), lab.topology.link("router", "eth1")
    switch, segment = lab.netns("switch"), lab.topology.link(host).segment
    lab.run(host, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "second", "netns", switch)
    lab.run("switch", "ip", "link", "set", "second", "master", segment, "up")
    lab.run(host, "ip", "link", "set", "eth1", "up")
    lab.run(host, "ethtool", "-K", "eth1", "tx", "off")
    lab.run(host, "ip", "route", "add", CHECKER, "via", str(router.addresses[0].ip), "dev", "eth1", "onlink")
    site.await_answers(site.answered() + 200)
    site.await_broken(NOBODY)

    netns.write_sysctls(lab.netns(host), {"net/ipv4/conf/eth0/rp_filter": "1"})
    # The VIP is missing.
    lab.run(host_of(VIPLESS), "ip", "route", "del", "local", str(TUNNEL), "dev", "lo", "table", "local")
    # Nobody unpacks tunnels.
    lab.run(host_of(PACKED), "ip", "link", "set", "eth0", "xdp", "off")
    # The server is bound to its own address.
    lab.servers[BOUND].kill()
    lab.servers[BOUND].wait(PATIENCE_S)
    lab.start(host_of(BOUND), sys.executable, "-m", "http.server", "80", "--bind", str(BOUND))
    # Frames get to a router, which forwards all but those for the VIP.
    neighbour = ("ip", "neigh", "replace", str(STRAYING), "lladdr", router.mac, "dev", "back", "nud", "permanent")
    lab.run("lb1", *neighbour)
    # Long packets get lost on the way, and nobody says so.
    lab.run("switch", "ip", "link", "set", lab.topology.link(host_of(NARROW)).port, "mtu", "1400")

    site.await_broken(BROKEN)
    site.await_answers(site.answered() + 200)  # and so it stays
    site.await_broken(BROKEN)
    states = site.states()
    assert "full packets get lost on the way (MTU)" in states["full", str(NARROW)][1]
    assert "refused" in states["tunnel", str(BOUND)][1]
    lab.run("lb1", *neighbour[:5], lab.topology.link(host_of(STRAYING)).mac, *neighbour[6:])


def test_the_place_that_checks_come_from_is_mended_and_goes_with_the_instance(site: Site) -> None:
    lab, place = site.lab, site.lab.run_dir / site.lab.balancer
    plan = ("plan", str(site.directory), "--node", "lb1")
    wait_until("all is as it should be", lambda: "No changes." in lab.lbctl(*plan).stdout, PATIENCE_S)
    inside = ["nsenter", f"--net={place / prober.FILE}"]
    for damage in (
        ["ip", "link", "del", PROBER_DEVICE],
        [*inside, "tc", "qdisc", "del", "dev", prober.INNER, "clsact"],
        [*inside, "ip", "address", "flush", "dev", prober.INNER],
        ["umount", "--lazy", str(place / prober.FILE)],
    ):
        checks = site.answered()
        lab.run("lb1", *damage)
        lab.lbctl("apply", *plan[1:], "--auto-approve")  # unless the agent was faster
        site.await_answers(checks + 8)
        wait_until("all is as it should be", lambda: "No changes." in lab.lbctl(*plan).stdout, PATIENCE_S)
    site.agent.kill()
    site.agent.wait(PATIENCE_S)
    site.lbctl("delete", "--auto-approve")
    assert not place.exists()
    assert PROBER_DEVICE not in lab.run("lb1", "ip", "-br", "link")
