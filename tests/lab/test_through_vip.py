# SPDX-License-Identifier: Apache-2.0
"""Checks `through: vip` see what checks of the endpoint's own address don't: each way in which direct server return
breaks at an endpoint, one by one, fails the one while the other goes on to pass."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler import children
from reconciler.config.load import load
from reconciler.health import roster, store
from reconciler.health.state import Health
from reconciler.kernel import prober
from reconciler.kernel.port import PROBER_DEVICE
from reconciler.lab import netns, server
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

TUNNEL, PLAIN, FLAT, FULL = (IPv4Address(f"20.20.20.{number}") for number in (1, 2, 3, 4))
POOLS = ("tunnel", "flat", "full", "plain")
FIRST, SECOND = IPv4Address("10.2.0.11"), IPv4Address("10.2.0.12")
CHECKER = "10.1.0.9"
PATIENCE_S = 60
CHECK = "type: http, interval: 400ms, timeout: 300ms, fall: 2, rise: 1"


def manifests() -> str:
    endpoints = f"[{{address: {FIRST}}}, {{address: {SECOND}}}]"
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
spec: {{endpoints: {endpoints}, whenNoneHealthy: drop, healthCheck: {{{CHECK}{way}}}}}
""" for name, vip, mode, way in (
            ("tunnel", TUNNEL, "dsr-l3", ", through: vip"), ("flat", FLAT, "dsr-l2", ", through: vip"),
            ("full", FULL, "dsr-l3", ", through: vip, size: full"), ("plain", PLAIN, "dsr-l3", ""),
        )),
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
""" for address in (FIRST, SECOND)),
    ))  # fmt: skip


class Site:
    """A lab with an agent on its balancer that checks both endpoints in both ways."""

    def __init__(self, lab: Lab, directory: Path, log: Path) -> None:
        self.lab, self.directory, self.log = lab, directory, log
        with log.open("ab") as output:
            self.agent = lab.start_lbctl("run", str(directory), "--node", "lb1", output=output)

    def states(self, pool: str) -> dict[str, tuple[Health, str]]:
        """State and last error of the endpoints of a pool."""
        place = self.lab.run_dir / self.lab.balancer
        listed = roster.read(place / roster.FILE).get(pool)
        entries = store.read(place / store.FILE).entries
        found = {}
        for endpoint in listed.endpoints if listed else ():
            for _, digest in endpoint.targets:
                if digest in entries:
                    found[endpoint.address] = entries[digest].state.health, entries[digest].state.error
        return found

    def await_state(self, pool: str, address: IPv4Address, health: Health) -> None:
        def is_so() -> bool:
            return self.states(pool).get(str(address), (None, ""))[0] is health

        try:
            wait_until(f"{address} of {pool} is {health.name}", is_so, PATIENCE_S)
        except Exception as error:
            raise AssertionError(f"{error}: {self.states(pool)}\n{self.log.read_text()}") from error

    def lbctl(self, *args: str) -> str:
        done = self.lab.lbctl(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def on_first(self, *argv: str) -> None:
        self.lab.run(host_of(FIRST), *argv)

    def answered(self) -> int:
        """How many packets have come back to who checks."""
        found = re.search(r"check answered +([\d,]+)", self.lab.lbctl("get", "verdicts").stdout)
        return int(found[1].replace(",", "")) if found else 0

    def await_answers(self, more: int) -> None:
        wait_until("checks go on", lambda: self.answered() > more, PATIENCE_S)


@pytest.fixture
def site(start_lab: LabMaker, tmp_path: Path) -> Site:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "all.yaml").write_text(manifests())
    fleet = load(directory).fleet
    assert fleet
    lab = start_lab(fleet, node_name="lb1")
    lab.serve_http()
    lab.apply(directory)
    found = Site(lab, directory, tmp_path / "log")
    for pool in POOLS:
        for address in (FIRST, SECOND):
            found.await_state(pool, address, Health.UP)
    return found


@contextmanager
def broken(site: Site, *pools: str) -> Iterator[None]:
    """Within this, the first endpoint is down for these pools, and for nobody else; after it, all is well again."""
    for pool in pools:
        site.await_state(pool, FIRST, Health.DOWN)
    for pool in POOLS:
        for address in (FIRST, SECOND) if pool not in pools else (SECOND,):
            site.await_state(pool, address, Health.UP)
    yield
    for pool in pools:
        site.await_state(pool, FIRST, Health.UP)


def test_each_way_in_which_direct_server_return_breaks_at_an_endpoint(site: Site) -> None:
    lab, host = site.lab, host_of(FIRST)
    vip = ("local", str(TUNNEL), "dev", "lo", "table", "local")
    site.on_first("ip", "route", "del", *vip)
    with broken(site, "tunnel"):  # the VIP is missing
        site.on_first("ip", "route", "add", *vip)

    site.on_first("ip", "link", "set", "eth0", "xdp", "off")
    with broken(site, "tunnel", "full"):  # nobody unpacks tunnels
        lab.lbctl("apply", str(site.directory), "--node", "e11", "--auto-approve", host=host)

    lab.servers[FIRST].kill()
    lab.servers[FIRST].wait(PATIENCE_S)
    bound = lab.start(host, sys.executable, "-m", "http.server", "80", "--bind", str(FIRST))
    with broken(site, "tunnel", "flat", "full"):  # the server is bound to its own address
        assert "refused" in site.states("tunnel")[str(FIRST)][1]
        bound.kill()
        bound.wait(PATIENCE_S)
        lab.servers[FIRST] = lab.start(host, *children.script(str(server.__file__), str(FIRST), "80"))

    router = lab.topology.link("router", "eth1")
    lab.run("lb1", "ip", "neigh", "replace", str(FIRST), "lladdr", router.mac, "dev", "back", "nud", "permanent")
    with broken(site, "flat"):  # frames get to a router, which forwards all but those for the VIP
        own = lab.topology.link(host).mac
        lab.run("lb1", "ip", "neigh", "replace", str(FIRST), "lladdr", own, "dev", "back", "nud", "permanent")

    port, mtu = lab.topology.link(host).port, lab.topology.link(host).segment_mtu_bytes
    lab.run("switch", "ip", "link", "set", port, "mtu", "1400")
    with broken(site, "full"):  # long packets get lost on the way, and nobody says so
        assert "full packets get lost on the way (MTU)" in site.states("full")[str(FIRST)][1]
        lab.run("switch", "ip", "link", "set", port, "mtu", str(mtu))

    # Another way back to who checks, which is no fault by itself.
    switch, segment = lab.netns("switch"), lab.topology.link(host).segment
    lab.run(host, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "second", "netns", switch)
    lab.run("switch", "ip", "link", "set", "second", "master", segment, "up")
    site.on_first("ip", "link", "set", "eth1", "up")
    site.on_first("ethtool", "-K", "eth1", "tx", "off")
    via = ("via", str(router.addresses[0].ip), "dev", "eth1", "onlink")
    site.on_first("ip", "route", "add", CHECKER, *via)
    checks = site.answered()
    site.await_answers(checks + 20)
    assert site.states("tunnel")[str(FIRST)][0] is site.states("flat")[str(FIRST)][0] is Health.UP
    netns.write_sysctls(lab.netns(host), {"net/ipv4/conf/eth0/rp_filter": "1"})
    with broken(site, "tunnel", "flat", "full"):
        netns.write_sysctls(lab.netns(host), {"net/ipv4/conf/eth0/rp_filter": "2"})


def test_the_place_that_checks_come_from_is_mended_and_goes_with_the_instance(site: Site) -> None:
    lab, place = site.lab, site.lab.run_dir / site.lab.balancer
    plan = ("plan", str(site.directory), "--node", "lb1")
    assert "No changes." in site.lbctl(*plan)
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
