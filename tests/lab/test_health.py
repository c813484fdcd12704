# SPDX-License-Identifier: Apache-2.0
"""Endpoints that die under load, with an agent that checks them: new connections go elsewhere, open ones stay, and
nobody brings a dead endpoint back."""

import json
import os
import random
import select
import signal
import socket
import time
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.health import store
from reconciler.kernel.real import RealKernel
from reconciler.kinds.rings import RingKind
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, host_of
from tests.nft import DROP, INPUT, IP, chain, nft

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

VIP = IPv4Address("20.20.20.1")
FIRST, SECOND, THIRD = (IPv4Address(f"10.2.0.{number}") for number in (11, 12, 13))
MANY = 60
PATIENCE_S = 60
CHECK = "healthCheck: {type: http, interval: 500ms, timeout: 300ms, fall: 2}"


def write(directory: Path, mode: str, check: str) -> None:
    endpoints = ", ".join(f"{{address: {address}}}" for address in (FIRST, SECOND, THIRD))
    kept = "".join(
        f"---\napiVersion: lbctl/v1\nkind: Node\nmetadata: {{name: e{address.packed[3]}}}\n"
        f"spec: {{role: endpoint, interfaces: [{{name: eth0, addresses: [{address}/24]}}]}}\n"
        for address in (FIRST, SECOND, THIRD)
    )
    directory.mkdir(exist_ok=True)
    (directory / "web.yaml").write_text(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: [80], mode: {mode}, pool: web}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec:
  endpoints: [{endpoints}]
  {check}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
{kept if mode == "dsr-l2" else ""}""")


class Site:
    """A lab with an agent on its balancer."""

    def __init__(self, lab: Lab, directory: Path, log: Path) -> None:
        self.lab, self.directory, self.log = lab, directory, log
        self.kernel = RealKernel(lab.balancer, lab.run_dir)
        self.start_agent()

    def start_agent(self) -> None:
        with self.log.open("ab") as output:
            self.agent = self.lab.start_lbctl("run", str(self.directory), "--node", "lb1", output=output)

    def members(self) -> set[IPv4Address]:
        """Who gets new connections."""
        rings = RingKind(self.kernel).read({}).resources
        return {IPv4Address(member.partition(":")[0]) for ring in rings for member in ring.members}

    def await_members(self, *addresses: IPv4Address) -> None:
        wait_until(f"the ring has {addresses}", lambda: self.members() == set(addresses), PATIENCE_S)

    def await_states(self, up: int) -> None:
        """Until so many endpoints are known to be up."""
        path = self.lab.run_dir / self.lab.balancer / store.FILE

        def found() -> bool:
            return sum(entry.state.health.name == "UP" for entry in store.read(path).entries.values()) == up

        wait_until(f"{up} endpoints are up", found, PATIENCE_S)

    def await_said(self, text: str) -> None:
        wait_until(f"the agent says {text!r}", lambda: text in self.log.read_text(), PATIENCE_S)

    def lbctl(self, *args: str) -> str:
        done = self.lab.lbctl(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def answering(self) -> set[IPv4Address]:
        """Who answers new connections, none of which may fail."""
        outcomes = self.lab.load(VIP, 80, count=MANY, clients=16, timeout_s=10).wait()
        assert not Counter(outcome.error for outcome in outcomes if outcome.error)
        return {IPv4Address(outcome.endpoint.rpartition(":")[0]) for outcome in outcomes}


@pytest.fixture
def start_site(start_lab: LabMaker, tmp_path):
    def start(mode: str, check: str = CHECK) -> Site:
        directory = tmp_path / "manifests"
        write(directory, mode, check)
        lab = start_lab(load(directory).fleet, node_name="lb1")
        lab.serve_http()
        if mode != "nat":
            lab.apply(directory)
        site = Site(lab, directory, tmp_path / "log")
        site.await_members(FIRST, SECOND, THIRD)
        if check == CHECK:
            site.await_states(3)
        return site

    return start


def kill(site: Site) -> None:
    site.lab.servers[FIRST].kill()


@pytest.mark.parametrize("mode", ["nat", "dsr-l2"])
def test_an_endpoint_that_dies_gets_nothing_new_and_the_others_keep_what_they_have(start_site, mode):
    site = start_site(mode)
    kept = site.lab.load(VIP, 80, requests_per_connection=0, concurrency=12, rate=60, clients=12, timeout_s=2)
    wait_until("all are open", lambda: len({o.source for o in kept.outcomes() if o.endpoint}) == 12, PATIENCE_S)
    kill(site)
    site.await_members(SECOND, THIRD)
    assert site.answering() == {SECOND, THIRD}
    site.lbctl("apply", str(site.directory), "--node", "lb1", "--auto-approve")  # beside the agent
    assert site.members() == {SECOND, THIRD}
    plan = ("plan", str(site.directory), "--node", "lb1")
    assert "No changes." in site.lbctl(*plan)
    snapshot = site.log.with_name("snapshot.json")
    snapshot.write_text(site.lbctl("export", *plan[1:]))
    assert "No changes." in site.lbctl(*plan, "--live", str(snapshot))  # elsewhere, too
    outcomes = kept.stop()
    homes: dict[str, set[str]] = {}
    for outcome in outcomes:
        if outcome.endpoint:
            homes.setdefault(outcome.source, set()).add(outcome.endpoint)
    broken = {outcome.source for outcome in outcomes if outcome.error}
    firsts = {source for source, ends in homes.items() if any(end.startswith(f"{FIRST}:") for end in ends)}
    assert broken <= firsts  # nothing but the connections of the dead one
    site.await_said(f"because: {FIRST} is down: http check: refused")
    restarted(site)
    site.await_members(FIRST, SECOND, THIRD)
    site.await_said(f"because: {FIRST} is up again")


def test_open_connections_of_an_endpoint_that_is_unplugged_end_where_the_pool_says_so(start_site):
    """Their clients learn it by a reset, long before they would have given up, and the others notice nothing."""
    site = start_site("nat", CHECK + "\n  onUnhealthy: reset")
    kept = site.lab.load(VIP, 80, requests_per_connection=0, concurrency=12, rate=60, clients=12, timeout_s=60)
    wait_until("all are open", lambda: len({o.source for o in kept.outcomes() if o.endpoint}) == 12, PATIENCE_S)
    firsts = {o.source for o in kept.outcomes() if o.endpoint.startswith(f"{FIRST}:")}
    assert firsts  # by turns, so chance leaves nobody out
    site.lab.run(host_of(FIRST), "ip", "link", "set", "eth0", "down")
    site.await_members(SECOND, THIRD)
    site.await_said(f"~ endpoint {FIRST}")
    wait_until("clients know", lambda: {o.source for o in kept.outcomes() if o.error} == firsts, PATIENCE_S)
    errors = [outcome for outcome in kept.stop() if outcome.error]
    assert {outcome.source for outcome in errors} == firsts
    assert {outcome.error.partition(":")[0] for outcome in errors} == {"ConnectionResetError"}
    assert site.answering() == {SECOND, THIRD}


def test_clients_that_wait_in_silence_for_a_dead_endpoint_learn_it_too(start_site):
    """They have sent half a request, which the server's kernel has acknowledged, and nothing would ever come."""
    site = start_site("nat, algorithm: maglev", CHECK + "\n  onUnhealthy: reset")
    clients = [netns.inside(site.lab.netns(CLIENT), half_a_request) for _ in range(36)]
    try:
        flows = json.loads(site.lbctl("get", "flows", "-o", "json"))["items"]
        dead = sum(flow["endpoint"] == str(FIRST) for flow in flows)
        assert dead  # 36 ports leave out a third of the ring with odds of 5e-7
        site.lab.servers[FIRST].send_signal(signal.SIGSTOP)
        site.await_members(SECOND, THIRD)
        wait_until("clients know", lambda: sum(map(is_reset, clients)) == dead, PATIENCE_S)
    finally:
        for client in clients:
            client.close()


def half_a_request() -> socket.socket:
    client = socket.create_connection((str(VIP), 80), PATIENCE_S)
    client.sendall(b"GET / HTTP/1.1\r\n")
    return client


def is_reset(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def test_a_server_that_falls_silent_is_found_by_its_clients_long_before_its_next_check(start_site):
    site = start_site("nat", "healthCheck: {type: tcp, interval: 1h}")
    netns.inside(site.lab.netns(host_of(FIRST)), nft, *chain(IP, b"wall", b"input", INPUT, DROP))
    clients = site.lab.load(VIP, 80, concurrency=6, rate=20, clients=16, timeout_s=10)
    site.await_members(SECOND, THIRD)
    clients.stop()
    assert site.answering() == {SECOND, THIRD}
    site.await_said(f"because: {FIRST} is down: tcp check: no answer within 1 s")


def test_a_dead_endpoint_stays_out_while_nobody_checks_and_when_somebody_does_again(start_site):
    site = start_site("nat")
    kill(site)
    site.await_members(SECOND, THIRD)
    site.agent.kill()
    site.agent.wait(PATIENCE_S)
    write(site.directory, "nat", CHECK.replace("fall: 2", "fall: 4"))
    assert "No changes." in site.lbctl("plan", str(site.directory), "--node", "lb1")
    site.lbctl("apply", str(site.directory), "--node", "lb1", "--auto-approve")
    assert site.members() == {SECOND, THIRD}
    rings = site.log.read_text().count("ring web")
    site.start_agent()
    site.await_states(2)
    wait_until("the agent is back", lambda: site.log.read_text().count("Watching") == 2, PATIENCE_S)
    site.await_said("No changes.")
    assert site.log.read_text().count("ring web") == rings  # not one write to a ring
    assert site.members() == {SECOND, THIRD}


def test_a_checker_that_is_killed_is_started_again_and_nothing_changes_meanwhile(start_site):
    site = start_site("nat")
    kill(site)
    site.await_members(SECOND, THIRD)
    path = site.lab.run_dir / site.lab.balancer / store.FILE
    wait_until("it says who it is", lambda: store.read(path).progress.checks > 0, PATIENCE_S)
    former = store.read(path).progress.pid
    assert str(former) in site.lbctl("get", "checker")
    os.kill(former, signal.SIGKILL)
    wait_until("it is back", lambda: store.read(path).progress.pid not in (0, former), PATIENCE_S)
    assert site.members() == {SECOND, THIRD}
    restarted(site)
    site.await_members(FIRST, SECOND, THIRD)


def restarted(site: Site) -> None:
    """The servers as they were."""
    from reconciler import children
    from reconciler.lab import server

    site.lab.servers[FIRST] = site.lab.start(host_of(FIRST), *children.script(str(server.__file__), str(FIRST), "80"))


def test_an_agent_that_is_killed_again_and_again_while_servers_flap_never_serves_a_dead_one(start_site):
    """Killed in the middle of whatever it did; in the end the node holds what is true, and a plan finds nothing."""
    site = start_site("nat")
    chance = random.Random(5)
    for number in range(6):
        server = site.lab.servers[FIRST]
        server.send_signal(signal.SIGSTOP if number % 2 else signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 1.2))  # anywhere: before, within or after what follows from that
        site.agent.kill()
        site.agent.wait(PATIENCE_S)
        site.start_agent()
    site.lab.servers[FIRST].send_signal(signal.SIGSTOP)
    site.await_members(SECOND, THIRD)
    assert site.answering() == {SECOND, THIRD}
    assert "No changes." in site.lbctl("plan", str(site.directory), "--node", "lb1")
