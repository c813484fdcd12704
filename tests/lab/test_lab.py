# SPDX-License-Identifier: Apache-2.0
"""The lab on the real kernel, without a balancer: where VIP and endpoint are the same address, routing will do."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.lab import LabError, netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.prove import prove_service

from .conftest import ONE_ARM, PREFIX, TWO_ARMS, LabMaker, fleet_of

pytestmark = pytest.mark.kernel

ROUTED = fleet_of("10.2.0.11", ["10.2.0.11"], *TWO_ARMS)
ROUTED_ONE_ARM = fleet_of("10.3.0.11", ["10.3.0.11"], *ONE_ARM)
ENDPOINT = IPv4Address("10.2.0.11")


@pytest.fixture
def routed(start_lab: LabMaker):
    """Labs whose balancer is a plain router, with the servers running."""

    def start(fleet=ROUTED, **options) -> Lab:
        lab = start_lab(fleet, **options)
        netns.write_sysctls(lab.balancer, {"net/ipv4/ip_forward": "1"})
        lab.serve_http()
        return lab

    return start


# --- proving a service -----------------------------------------------------------------------------------
def test_a_routed_service_is_proved_with_two_arms(routed):
    prove_service(routed(), "web")


def test_a_routed_service_is_proved_with_one_arm(routed):
    prove_service(routed(ROUTED_ONE_ARM), "web")


def test_endpoints_do_not_let_redirects_lead_them_past_the_balancer(routed):
    lab = routed(ROUTED_ONE_ARM)
    client = lab.topology.client[0]
    # A redirect counts at once only where the new way's MAC is known.
    lab.run("10.3.0.11", "ip", "neigh", "add", str(client), "lladdr", lab.topology.link("client").mac, "dev", "eth0")

    def is_redirected() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", (str(client), 9))
        counters = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in counters if line.startswith("Icmp:"))
        return int(dict(zip(names, values, strict=True))["InRedirects"]) > 0

    netns.inside(lab.netns("10.3.0.11"), wait_until, "the balancer sends a redirect", is_redirected)
    prove_service(lab, "web")


def test_replies_past_the_balancer_are_noticed_although_every_request_is_answered(routed):
    lab = routed(ROUTED_ONE_ARM)
    for client in lab.topology.client:
        lab.run("10.3.0.11", "ip", "route", "del", f"{client}/32")
    assert not any(o.error for o in lab.load(IPv4Address("10.3.0.11"), 80, count=4).wait())
    with pytest.raises(AssertionError, match=r"10\.3\.0\.11 got \d+ packets through the balancer, but replies past"):
        prove_service(lab, "web")


def test_a_dead_server_is_noticed(routed):
    lab = routed()
    lab.servers[ENDPOINT].kill()
    lab.servers[ENDPOINT].wait()
    with pytest.raises(AssertionError, match="24 of 24 requests failed: 24 × ConnectionRefusedError"):
        prove_service(lab, "web")


def test_an_endpoint_without_its_share_is_noticed(routed):
    lab = routed(fleet_of("10.2.0.11", ["10.2.0.11", "10.2.0.12"], *TWO_ARMS))
    with pytest.raises(AssertionError, match=r"10\.2\.0\.11:80 answered 24 of 24 requests, its share is 12"):
        prove_service(lab, "web")


# --- traffic -----------------------------------------------------------------------------------------------
def test_senders_write_their_checksums_themselves(start_lab: LabMaker):
    lab = start_lab(ROUTED)
    for host in ("client", "10.2.0.11"):
        features = lab.run(host, "ethtool", "-k", "eth0")
        for feature in ("tx-checksum-ip-generic", "tx-checksum-sctp", "tx-tcp-segmentation"):
            assert f"{feature}: off" in features


def test_ports_that_face_the_balancer_run_a_native_program_and_the_others_none(start_lab: LabMaker):
    lab = start_lab(ROUTED)
    for link in lab.topology.links:
        shown = lab.run("switch", "ip", "link", "show", link.port)
        assert ("xdp" in shown) == (link.host == "lb1")
        assert "xdpgeneric" not in shown


def test_kept_connections_are_told_from_new_ones(routed):
    lab = routed()
    outcomes = lab.load(ENDPOINT, 80, count=12, concurrency=1, requests_per_connection=4).wait()
    assert [o.new_connection for o in outcomes] == [True, False, False, False] * 3
    outcomes = lab.load(ENDPOINT, 80, count=12, concurrency=1, requests_per_connection=0).wait()
    assert [o.new_connection for o in outcomes] == [True] + [False] * 11


def test_connections_come_from_many_addresses_in_turn(routed):
    lab = routed()
    outcomes = lab.load(ENDPOINT, 80, count=10, concurrency=1, clients=5).wait()
    assert [o.source for o in outcomes] == [str(address) for address in lab.topology.client[:5]] * 2


def test_a_load_runs_until_it_is_stopped_and_reports_every_failure(routed):
    lab = routed()
    load = lab.load(ENDPOINT, 80, rate=200)
    wait_until("the first requests are done", lambda: len(load.outcomes()) > 10)
    killed = time.monotonic()
    lab.servers[ENDPOINT].kill()
    wait_until("requests fail", lambda: any(o.error for o in load.outcomes()))
    outcomes = load.stop()
    assert all(o.endpoint == "10.2.0.11:80" for o in outcomes if not o.error)
    failed = [o for o in outcomes if o.error]
    assert min(o.started_s + o.duration_s for o in failed) > killed
    assert outcomes == load.outcomes()


def test_what_is_posted_comes_back_whole(routed):
    outcomes = routed().load(ENDPOINT, 80, count=8, payload_bytes=1_000_000).wait()
    assert [o.error for o in outcomes] == [""] * 8


# --- taking away --------------------------------------------------------------------------------------------
def test_nothing_is_left_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), Lab(ROUTED, prefix=PREFIX, run_dir=tmp_path) as lab:
        lab.serve_http()
        lab.load(ENDPOINT, 80)
        mount_pins(tmp_path, lab.balancer)
        (tmp_path / ".state" / lab.balancer).mkdir(parents=True)
        assert len([each for each in netns.leftovers(PREFIX, tmp_path) if each.startswith("directory")]) == 2
        assert {each.split()[0] for each in netns.leftovers(PREFIX, tmp_path)} == {
            "process", "namespace", "mount", "directory",
        }  # fmt: skip
        raise ZeroDivisionError
    assert netns.leftovers(PREFIX, tmp_path) == []
    assert lab.servers[ENDPOINT].returncode == -signal.SIGKILL


def mount_pins(run_dir: Path, instance: str) -> None:
    pins = run_dir / instance / "bpf"
    pins.mkdir(parents=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", pins], check=True)


SCRIPT = """
    import sys, time
    from pathlib import Path
    from reconciler.lab.lab import Lab
    from tests.lab.conftest import TWO_ARMS, fleet_of
    with Lab(fleet_of("10.2.0.11", ["10.2.0.11"], *TWO_ARMS), prefix=sys.argv[1], run_dir=Path(sys.argv[2])) as lab:
        lab.serve_http()
        print("up", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def other_lab(tmp_path):
    """A lab in another process, that is ready."""
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-c", textwrap.dedent(SCRIPT), PREFIX, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root, env=environment) as other:
        try:
            assert other.stdout.readline() == b"up\n"
            yield other
        finally:
            other.kill()
            netns.destroy(PREFIX, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(other_lab, tmp_path, number):
    other_lab.send_signal(number)
    assert other_lab.wait(30) in (128 + number, -number)
    assert netns.leftovers(PREFIX, tmp_path) == []


def test_what_a_killed_lab_has_left_is_removed_by_the_next(other_lab, start_lab: LabMaker, tmp_path):
    other_lab.kill()
    other_lab.wait()
    left = {each.split()[0] for each in netns.leftovers(PREFIX, tmp_path)}
    assert left == {"process", "namespace"}
    start_lab(ROUTED).close()
    assert netns.leftovers(PREFIX, tmp_path) == []
    netns.destroy(PREFIX, tmp_path)


def test_a_lab_that_runs_is_left_alone_by_another_of_its_name(other_lab, start_lab: LabMaker, tmp_path):
    with pytest.raises(LabError, match="is running already"):
        start_lab(ROUTED)
    assert other_lab.poll() is None
    assert any(each.startswith("process") for each in netns.leftovers(PREFIX, tmp_path))
