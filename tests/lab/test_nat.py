# SPDX-License-Identifier: Apache-2.0
"""A NAT service from YAML to packets, through the command line, with real requests; and what must not pass for one."""

from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from reconciler.config.load import load
from reconciler.dataplane.layout import SERVICES
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.prove import prove_service
from reconciler.model import Mode, Protocol, Role
from reconciler.ring_names import RingNames
from reconciler.ring_store import Rings
from reconciler.support import unsupported
from reconciler.view import view
from tests.rings import read_ring, write_rings

from .conftest import LabMaker
from .datagrams import prove_datagrams
from .direct import forget_services

pytestmark = pytest.mark.kernel

EXAMPLES = Path(__file__).parents[2] / "examples/configs"
VIP = IPv4Address("20.20.20.1")
ARMS = {
    "one-arm": "[{name: eth0, addresses: [10.2.0.1/24]}]",
    "two-arm": "[{name: front, addresses: [10.1.0.1/24]}, {name: back, addresses: [10.2.0.1/24]}]",
}
ENDPOINTS = ("{address: 10.2.0.11, weight: 2}", "{address: 10.2.0.12}", "{address: 10.2.0.13, port: 9090}")
FIRST, SECOND, THIRD = "10.2.0.11:8080", "10.2.0.12:8080", "10.2.0.13:9090"


def write(directory: Path, arms: str, algorithm: str, *endpoints: str) -> None:
    """One service on port 80 with these endpoints."""
    directory.mkdir(exist_ok=True)
    (directory / "web.yaml").write_text(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: [80], targetPort: 8080, algorithm: {algorithm}, pool: web}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec:
  endpoints: [{", ".join(endpoints)}]
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: {ARMS[arms]}
""")


class Site:
    """A lab, the manifests that it was built from, and a hand on its maps."""

    def __init__(self, lab: Lab, directory: Path, arms: str, algorithm: str) -> None:
        self.lab, self.directory, self.arms, self.algorithm = lab, directory, arms, algorithm
        self.kernel = RealKernel(lab.balancer, lab.run_dir)

    def apply(self, *endpoints: str) -> None:
        """Rewrite the pool and apply it."""
        write(self.directory, self.arms, self.algorithm, *endpoints)
        done = self.lab.lbctl("apply", str(self.directory), "--auto-approve")
        assert done.returncode == 0, done.stdout + done.stderr

    def prove(self) -> None:
        prove_service(self.lab, "web")


@pytest.fixture
def site(start_lab: LabMaker, tmp_path):
    def start(arms: str = "two-arm", algorithm: str = "round-robin") -> Site:
        write(tmp_path / "manifests", arms, algorithm, *ENDPOINTS)
        lab = start_lab(load(tmp_path / "manifests").fleet, spares=[IPv4Address("10.2.0.14")])
        lab.serve_http()
        made = Site(lab, tmp_path / "manifests", arms, algorithm)
        made.apply(*ENDPOINTS)
        return made

    return start


def runnable_examples():
    for example in sorted(EXAMPLES.iterdir()):
        fleet = load(example).fleet
        if any(node.bgp for node in fleet.nodes):
            continue  # needs a routing daemon beside it: test_dsr_l3_ha.py
        if not any(unsupported(view(fleet, node.name, "")) for node in fleet.nodes if node.role is not Role.ROUTER):
            yield example


def test_there_are_examples_that_run():
    assert {example.name for example in runnable_examples()} >= {"nat-tcp", "nat-one-arm"}


@pytest.mark.parametrize("example", list(runnable_examples()), ids=lambda path: path.name)
def test_every_example_that_can_run_works(start_lab: LabMaker, example):
    fleet = load(example).fleet
    for node in (node for node in fleet.nodes if node.role is Role.BALANCER):
        lab = start_lab(fleet, node_name=node.name)
        services = view(fleet, node.name, "").services
        if any(service.protocol is Protocol.TCP for service in services):
            lab.serve_http()
        lab.apply(example)
        assert {service.protocol for service in services} <= {Protocol.TCP, Protocol.UDP}  # others aren't proved here
        for service in services:
            if service.protocol is Protocol.TCP:
                prove_service(lab, service.name)
            else:
                assert prove_datagrams(lab, service) >= 64
        lab.close()


def test_dead_vips_of_datagrams_are_noticed(start_lab: LabMaker):
    """The example of a fleet of UDP, in both modes that it has."""
    fleet = load(EXAMPLES / "udp-fleet").fleet
    lab = start_lab(fleet, node_name="lb7")
    lab.apply(EXAMPLES / "udp-fleet")
    services = view(fleet, "lb7", "").services
    forget_services(lab)
    assert {service.mode for service in services} == {Mode.NAT, Mode.DSR_L2}
    for service in services:
        with pytest.raises(AssertionError, match="nobody answers"):
            prove_datagrams(lab, service)


@pytest.mark.parametrize("algorithm", ["round-robin", "source-hash", "maglev"])
@pytest.mark.parametrize("arms", list(ARMS))
def test_a_service_works_from_yaml_to_packets(site, arms, algorithm):
    site(arms, algorithm).prove()


# --- the proof fails where the service does --------------------------------------------------------------
def test_a_vip_without_its_service_row_is_noticed(site):
    made = site()
    made.kernel.delete(SERVICES.name, [key for key, _ in made.kernel.dump(SERVICES.name)])
    with pytest.raises(AssertionError, match="24 of 24 requests failed: 24 × TimeoutError"):
        made.prove()


@pytest.mark.parametrize("algorithm", ["round-robin", "source-hash", "maglev"])
def test_a_ring_with_one_endpoint_is_noticed(site, algorithm):
    made = site(algorithm=algorithm)
    (index,) = RingNames(made.kernel).numbers
    rings = Rings(made.kernel)
    place = rings.place(index)
    rings.write_slots(place, np.full(place.slots, rings.slots(place)[0]))
    unfair = r"answered (24 of 24 requests, its share is 12|0 of|none of 128 requests)"
    with pytest.raises(AssertionError, match=unfair):
        made.prove()


def test_weights_that_are_ignored_are_noticed(site):
    made = site()
    (index,) = RingNames(made.kernel).numbers
    ids = np.unique(read_ring(made.kernel, index).endpoints)
    assert write_rings(made.kernel, {index: ids}, known=()) == {index: None}
    with pytest.raises(AssertionError, match=f"{FIRST} answered 8 of 24 requests, its share is 12"):
        made.prove()


def test_clients_that_do_not_keep_their_endpoint_are_noticed(site):
    made = site(algorithm="source-hash")
    made.algorithm = "round-robin"
    made.apply(*ENDPOINTS)
    with pytest.raises(AssertionError, match=r"the connections of .* went to \["):
        made.prove()


def test_endpoints_that_reply_past_the_balancer_are_noticed(site):
    made = site("one-arm")
    for client in made.lab.topology.client:
        made.lab.run("10.2.0.11", "ip", "route", "del", f"{client}/32")
    with pytest.raises(AssertionError, match=r"10\.2\.0\.11 got \d+ packets .*, but replies past it"):
        made.prove()


# --- changes under traffic --------------------------------------------------------------------------------
def test_no_request_fails_while_the_pool_changes(site):
    made = site()
    kept = made.lab.load(VIP, 80, rate=100, concurrency=8, requests_per_connection=0)
    wait_until("all connections are open", lambda: sum(o.new_connection for o in kept.outcomes()) == 8)
    fresh = made.lab.load(VIP, 80, rate=200)
    wait_until("new ones are being opened", lambda: len(fresh.outcomes()) > 0)
    made.apply("{address: 10.2.0.11, weight: 4}", "{address: 10.2.0.12}", "{address: 10.2.0.14}")
    before = len(fresh.outcomes())
    changed = max(o.started_s + o.duration_s for o in fresh.outcomes())
    wait_until("traffic goes on", lambda: len(fresh.outcomes()) > before + 200)
    outcomes, kept_outcomes = fresh.stop(), kept.stop()

    assert [o.error for o in outcomes + kept_outcomes if o.error] == []
    after = [o.endpoint for o in outcomes if o.started_s > changed]
    assert set(after) == {FIRST, SECOND, "10.2.0.14:8080"}
    assert after.count(FIRST) == pytest.approx(len(after) * 4 / 6, abs=2)
    # Connections to the endpoint that was removed go on, each with the endpoint that it had.
    assert any(o.endpoint == THIRD and o.started_s > changed for o in kept_outcomes)
    assert sum(o.new_connection for o in kept_outcomes) == 8


def test_a_draining_endpoint_keeps_its_connections_and_gets_no_new_ones(site):
    made = site()
    kept = made.lab.load(VIP, 80, rate=100, concurrency=8, requests_per_connection=0)
    wait_until("all connections are open", lambda: sum(o.new_connection for o in kept.outcomes()) == 8)
    made.apply("{address: 10.2.0.11, state: draining}", *ENDPOINTS[1:])
    assert {o.endpoint for o in made.lab.load(VIP, 80, count=24).wait()} == {SECOND, THIRD}
    drained = len(kept.outcomes())
    wait_until("connections go on", lambda: len(kept.outcomes()) > drained + 16)
    outcomes = kept.stop()
    assert FIRST in {o.endpoint for o in outcomes[drained:]}
    assert [o.error for o in outcomes if o.error] == []


def test_a_disabled_endpoint_loses_its_connections(site):
    made = site()
    kept = made.lab.load(VIP, 80, rate=100, concurrency=8, requests_per_connection=0, timeout_s=1)
    wait_until("all connections are open", lambda: sum(o.new_connection for o in kept.outcomes()) == 8)
    held = sum(o.endpoint == FIRST for o in kept.outcomes() if o.new_connection)
    made.apply("{address: 10.2.0.11, state: disabled}", *ENDPOINTS[1:])
    wait_until("its connections have ended", lambda: sum(bool(o.error) for o in kept.outcomes()) == held)
    assert FIRST not in {o.endpoint for o in made.lab.load(VIP, 80, count=24).wait()}
    ended = len(kept.outcomes())
    wait_until("the others go on", lambda: len(kept.outcomes()) > ended + 16)
    outcomes = kept.stop()
    assert held == 4
    assert sum(bool(o.error) for o in outcomes) == held
    assert {o.endpoint for o in outcomes[ended:]} == {SECOND, THIRD}


def test_delete_takes_everything_off_the_balancer(site):
    made = site()
    done = made.lab.lbctl("delete", "--auto-approve")
    assert done.returncode == 0, done.stdout + done.stderr
    assert netns.mounts(made.lab.prefix, made.lab.run_dir) == []
    assert netns.instance_dirs(made.lab.prefix, made.lab.run_dir) == []
    assert "xdp" not in made.lab.run("lb1", "ip", "link")
    assert str(VIP) not in made.lab.run("lb1", "ip", "route", "show", "table", "all")
    assert made.lab.run("lb1", "cat", "/proc/sys/net/ipv4/conf/front/forwarding") == "0\n"
