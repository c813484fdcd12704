# SPDX-License-Identifier: Apache-2.0
"""`lbctl explain` as people read it. After a change of words: LBCTL_WRITE_EXPECTED=1 pytest, and read the diff."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.l2 import Ether
from scapy.utils import PcapWriter, wrpcap

from reconciler.cli.explain import _ingress, _likely
from reconciler.cli.main import main
from reconciler.dataplane.layout import RING_NAMES, AlgorithmCode, ModeCode, UndefinedCode
from reconciler.errors import KernelError
from reconciler.explain.capture import Captured
from reconciler.kernel.fake import FakeKernel
from tests.explain.conftest import Explain, snapshot
from tests.explain.test_trial import OWN, WEB6, behind, connected, moving, nat
from tests.packets import balancer as lab
from tests.packets.balancer import CLIENT, CLIENT6, ENDPOINTS_AT, NO_WAY, VIP, WEB, Balancer, inside
from tests.packets.frames import At, tcp
from tests.rings import write_rings

CHECKOUT = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).parent / "expected"
ASKED = (f"{CLIENT.address}:{CLIENT.port}", f"{VIP}:80")

kernel = pytest.mark.kernel


def compare(name: str, text: str) -> None:
    path = EXPECTED / name
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.fixture
def node(balancer: Balancer) -> Balancer:
    """Services of all modes; every reason that people ask about."""
    for id in (1, 2, 3, 5):
        balancer.endpoint(id)
    nat(balancer)
    moving(balancer, lab.UDP)
    balancer.serve(At(VIP, 443), index=3, ring=[1, 2], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)
    balancer.serve(At(VIP, 9), index=4, ring=[])
    balancer.serve(WEB6, index=5, ring=[5], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    balancer.settings(OWN, source6="2001:db8:2::1")
    balancer.kernel.update(RING_NAMES.name, [(b"web/round-robin".ljust(128, b"\0"), b"\1".ljust(24, b"\0"))])
    return balancer


QUESTIONS = {
    "nat": ASKED,
    "udp-in-transition": ("--proto", "udp", ASKED[0], f"{VIP}:53"),
    "dsr-l2": ("--flags", "syn", ASKED[0], f"{VIP}:443"),
    "ipv6": ("--flags", "syn", f"[{CLIENT6}]:40000", f"[{WEB6.address}]:80"),
    "no-endpoint": ("--flags", "syn", ASKED[0], f"{VIP}:9"),
    "undefined": (ASKED[0], f"{VIP}:81"),
    "ping": ("--proto", "icmp", CLIENT.address, VIP),
    "stranger": ("--proto", "sctp", ASKED[0], "192.0.2.1:80"),
    "too-big": ("--flags", "ack", "--bytes", "1490", f"[{CLIENT6}]:40000", f"[{WEB6.address}]:80"),
}


@kernel
@pytest.mark.parametrize("name", QUESTIONS)
def test_text_is_as_expected(node: Balancer, explain: Explain, name: str) -> None:
    compare(f"{name}.txt", explain(*QUESTIONS[name]))


@kernel
def test_json_is_as_expected(node: Balancer, explain: Explain) -> None:
    compare("nat.json", explain(*QUESTIONS["nat"], "--format", "json"))


@kernel
def test_a_known_connection_is_told_by_its_state(balancer: Balancer, explain: Explain) -> None:
    balancer.endpoint(1)
    connected(balancer)
    (ack,) = explain("--flags", "ack", *ASKED, as_json=True)
    assert ack["connection"] == {"state": "opening"}
    assert ack["slot"] is None
    assert ack["endpoint"]["endpoint"] == ENDPOINTS_AT[1]


@kernel
def test_a_pool_without_endpoints_keeps_its_connections_and_says_so(balancer: Balancer, explain: Explain) -> None:
    for id in (2, 3):
        balancer.endpoint(id)
    moving(balancer, lab.TCP, At(VIP, 443))
    assert write_rings(balancer.kernel, {2: np.zeros(0, np.uint32)}, known={2}) == {2: None}
    syn, ack = (explain("--flags", flags, ASKED[0], f"{VIP}:443", as_json=True)[0] for flags in ("syn", "ack"))
    assert (syn["verdict"], syn["endpoint"], syn["transition"]["current"]) == ("no-endpoint", None, "nobody")
    assert ack["endpoint"]["endpoint"] == ENDPOINTS_AT[2]
    assert "no endpoint for new ones; the slot belongs to nobody now" in explain(ASKED[0], f"{VIP}:443")


@kernel
@pytest.mark.parametrize("kind", NO_WAY)
def test_a_route_that_forwards_nothing_is_named(balancer: Balancer, explain: Explain, kind: str) -> None:
    behind(NO_WAY[kind].replace(".0/24", ".7"), ModeCode.DSR_L3)(balancer)
    text = explain("--flags", "syn", *ASKED)
    assert text.startswith("no route: dropped")
    words = {"blackhole": "a blackhole route", "unreachable": "an unreachable route", "prohibit": "a prohibit route"}
    assert words.get(kind, "no route that forwards") in text


@kernel
def test_a_tunnel_without_a_source_is_no_matter_of_routes(balancer: Balancer, explain: Explain) -> None:
    balancer.endpoint(1)
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    assert "found, but there is no source for the tunnel" in explain("--flags", "syn", *ASKED)


@kernel
def test_frames_of_a_capture_follow_each_other(balancer: Balancer, explain: Explain, tmp_path: Path) -> None:
    balancer.endpoint(1)
    nat(balancer)
    before = snapshot(balancer)
    path = tmp_path / "some.pcap"
    server = At(ENDPOINTS_AT[1], 80)
    wrpcap(str(path), [Ether(tcp(CLIENT, WEB, "A")), Ether(tcp(CLIENT, WEB, "S")), Ether(tcp(CLIENT, WEB, "A")),
                       Ether(tcp(server, CLIENT, "SA"))])  # fmt: skip
    told = explain(path, as_json=True)
    assert [one["verdict"] for one in told] == ["connection-unknown", "request", "request", "reply"]
    assert [one["connection"] for one in told] == [None, None, {"state": "opening"}, {"state": "open"}]
    assert told[3]["out"][1]["source"] == VIP
    text = explain(path)
    assert [line.split()[0] for line in text.splitlines() if line.startswith("#")] == ["#1", "#2", "#3", "#4"]
    assert snapshot(balancer) == before


@kernel
def test_what_a_capture_lacks_is_said(balancer: Balancer, explain: Explain, tmp_path: Path) -> None:
    balancer.endpoint(1)
    nat(balancer)
    frame = tcp(CLIENT, WEB, "A", b"x" * 100)
    path = tmp_path / "some.pcap"
    with PcapWriter(str(path), snaplen=60, linktype=1) as writer:
        writer.write_header(None)
        writer.write_packet(frame[:60], caplen=60, wirelen=len(frame))
    text = explain(path)
    assert text.startswith("#1 malformed: dropped")
    assert f"{len(frame) - 60} bytes of it were not captured" in text


@kernel
def test_frames_that_are_too_long_for_a_trial_are_left_out_of_it(
    balancer: Balancer, explain: Explain, tmp_path: Path
) -> None:
    balancer.endpoint(1)
    nat(balancer)
    path = tmp_path / "some.pcap"
    wrpcap(str(path), [Ether(tcp(CLIENT, WEB, "S", bytes(9_000))), Ether(tcp(CLIENT, WEB, "S"))])
    text = explain(path)
    assert text.startswith("#1 not explained: a trial takes frames of at most ")
    assert "\n#2 request: " in text


@kernel
def test_a_connection_may_outlive_its_service(balancer: Balancer, explain: Explain, tmp_path: Path) -> None:
    balancer.endpoint(1)
    connected(balancer)
    balancer.withdraw(WEB)
    (reply,) = explain(
        "--interface", "back", "--flags", "ack", f"{ENDPOINTS_AT[1]}:80", ASKED[0], as_json=True
    )  # fmt: skip
    assert reply["verdict"] == "reply"
    assert reply["service"] == {"service": "removed"}


@kernel
def test_the_interface_decides_where_a_packet_comes_in(balancer: Balancer, explain: Explain) -> None:
    balancer.endpoint(1)
    nat(balancer)
    front, back = (explain("--flags", "syn", "--interface", name, *ASKED) for name in ("front", "back"))
    assert "in by front" in front
    assert "out         back\n" in front
    assert "out         back, back out of the same interface\n" in back


@kernel
def test_undefined_traffic_that_may_pass_is_left_to_the_kernel(balancer: Balancer, explain: Explain) -> None:
    nat(balancer)
    balancer.vip(VIP, UndefinedCode.PASS)
    text = explain("--proto", "udp", *ASKED)
    assert text.startswith("to a VIP, but to none of its services: left to the kernel\n")
    assert "undefined traffic: pass" in text


@kernel
def test_an_interface_without_the_program_is_refused(balancer: Balancer, explain: Explain) -> None:
    text = explain("--interface", "front-far", *ASKED, code=1)
    assert "no program runs on front-far" in text
    assert "it runs on " in text


@kernel
def test_without_a_program_the_way_out_is_apply(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bare = f"lbx-bare-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", bare], check=True)
    try:
        with inside(bare):
            assert main(["--run-dir", str(tmp_path), "explain", *ASKED]) == 1
    finally:
        subprocess.run(["ip", "netns", "del", bare], check=True)
    assert "no program is loaded" in (text := capsys.readouterr().err)
    assert "hint: `lbctl apply` loads it" in text


@kernel
def test_vlans_are_named(balancer: Balancer, explain: Explain, tmp_path: Path) -> None:
    balancer.endpoint(1)
    nat(balancer)
    path = tmp_path / "some.pcap"
    frame = tcp(CLIENT, WEB, "S")
    wrpcap(str(path), [Ether(Captured(frame, len(frame)).tagged(7).frame)])
    text = explain(path)
    assert ", vlan 7, in by front" in text
    assert "in a VLAN that is not the balancer's" in text


def attached(kernel: FakeKernel, *names: str) -> FakeKernel:
    kernel.load_program("lbctl_1", ())
    for name in names:
        kernel.attach(name, "native", None)
    return kernel


def test_packets_come_in_by_the_first_interface_or_the_one_that_is_asked_for() -> None:
    kernel = attached(FakeKernel(), "front", "back")
    assert [_ingress(kernel, asked)[0].name for asked in (None, "back")] == ["front", "back"]


def test_a_packet_comes_in_where_its_source_is_unless_the_program_does_not_run_there() -> None:
    kernel = FakeKernel(("front", "back", "side"), vlans={"front.7": ("front", 7), "back.8": ("back", 8)})
    attached(kernel, "front", "side")
    index = {link.name: link.index for link in kernel.links()}
    kernel.ways_out = {"10.1.0.2": index["front"], "10.2.0.2": index["side"], "10.3.0.2": index["front.7"],
                       "10.4.0.2": index["back"], "10.5.0.2": index["back.8"]}  # fmt: skip

    def likely(source: str, tag: int | None = None) -> str | None:
        content = tcp(At(source, 1), WEB)
        return _likely(kernel, [Captured(content, len(content)).tagged(tag)])

    assert [likely(f"10.{n}.0.2") for n in range(1, 7)] == ["front", "side", "front.7", None, None, None]
    assert likely("10.3.0.2", tag=7) == "front"
    assert _likely(kernel, []) is None


@kernel
def test_a_reply_is_explained_where_endpoints_are(balancer: Balancer, explain: Explain) -> None:
    balancer.endpoint(1)
    connected(balancer)
    assert "in by back" in explain("--flags", "ack", f"{ENDPOINTS_AT[1]}:80", ASKED[0])
    assert "in by front" in explain("--flags", "ack", *ASKED)


def test_a_vlan_is_its_trunk_and_a_tag() -> None:
    kernel = attached(FakeKernel(vlans={"front.7": ("front", 7), "back.8": ("back", 8)}), "front")
    link, tag = _ingress(kernel, "front.7")
    assert (link.name, tag) == ("front", 7)
    with pytest.raises(KernelError, match=r"no program runs on back\.8"):
        _ingress(kernel, "back.8")


def test_an_interface_that_runs_another_program_than_the_loaded_one_is_refused() -> None:
    kernel = attached(FakeKernel(), "front")
    kernel.load_program("lbctl_2", ())
    with pytest.raises(KernelError, match="not the program that is loaded"):
        _ingress(kernel, None)


MISTAKES = {
    "one address of each family": (["192.0.2.1:1", "[2001:db8::1]:2"], "IPv4"),
    "three addresses": ([*ASKED, ASKED[0]], "one source and one destination"),
    "no port": (["192.0.2.1", ASKED[1]], "has no port, and tcp needs one"),
    "flags of UDP": (["--proto", "udp", "--flags", "syn", *ASKED], "udp has no flags"),
    "a length that can't be": (["--bytes", "10", *ASKED], "no such packet has 10 bytes"),
    "flags of a capture": (["--flags", "syn", "some.pcap"], "--flags is of no use with a capture"),
    "no such capture": (["none.pcap"], "none.pcap: No such file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_errors_of_usage_whoever_makes_them(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = MISTAKES[mistake]
    assert main(["explain", *words]) == 2
    assert said in capsys.readouterr().err


@kernel
def test_who_is_not_root_is_told_so(balancer: Balancer, run_dir: Path) -> None:
    command = [
        *("setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-m", "reconciler.cli.main"),
        *("--run-dir", run_dir, "--instance", balancer.netns, "explain", *ASKED),
    ]
    with inside(balancer.netns):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=CHECKOUT)
    assert done.returncode == 1
    assert "run as root" in done.stderr


@kernel
def test_affinity_is_told_and_by_the_ring_only_who_comes_for_the_first_time(
    balancer: Balancer, explain: Explain
) -> None:
    for id in (1, 2):
        balancer.endpoint(id)
    balancer.serve(ring=[1, 2])
    balancer.front(1, At(VIP, 80), affinity_s=600)
    balancer.members(1, [1, 2])
    (first,) = explain("--flags", "syn", *ASKED, as_json=True)
    assert first["slot"] is not None
    assert "affinity" not in first["endpoint"]
    balancer.send(tcp(At(CLIENT.address, 55_555), At(VIP, 80)))
    (again,) = explain("--flags", "syn", *ASKED, as_json=True)
    assert again["slot"] is None
    assert again["endpoint"]["affinity"] == "the client had it before"
    assert again["endpoint"]["endpoint"] == ENDPOINTS_AT[1]
    assert "by affinity: the client had it before" in explain("--flags", "syn", *ASKED)
