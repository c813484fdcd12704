# SPDX-License-Identifier: Apache-2.0
"""A trial does what the loaded program does next, and leaves no trace in what that one works with."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether

from reconciler import clock
from reconciler.dataplane import rows as row_types
from reconciler.dataplane.connections import entry, unit_of
from reconciler.dataplane.layout import (
    CONNECTIONS,
    REMEMBERED,
    AlgorithmCode,
    ConnectionState,
    EchoCode,
    EndpointRowState,
    Memory,
    ModeCode,
    TooBigCode,
    UndefinedCode,
    Verdict,
)
from reconciler.errors import KernelError
from reconciler.kernel import bpf
from reconciler.kernel.build import build
from reconciler.kernel.instance import Instance
from reconciler.kernel.real import RealKernel
from reconciler.kernel.trial import EXPLAIN, trial
from reconciler.paths import data_dir
from tests.explain.conftest import Tried, snapshot
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS_AT,
    FEATURES,
    NO_WAY,
    STRANGER,
    TCP,
    UDP,
    VIP,
    WEB,
    Balancer,
)
from tests.packets.frames import At, echo, frame, tagged, tcp, tcp6, udp
from tests.packets.table import Ends, Entry
from tests.packets.test_echo import to_endpoints
from tests.packets.test_others import HOSTILE
from tests.rings import write_rings

pytestmark = pytest.mark.kernel

SERVER = At(ENDPOINTS_AT[1], 80)
DNS = At(VIP, 53)
WEB6 = At("2001:db8:20::1", 80)
OWN = "10.2.0.1"
SYN, ACK = tcp(CLIENT, WEB, "S"), tcp(CLIENT, WEB, "A")
MIDWAY = frame("10.2.0.250", OWN, ICMP(type=3, code=4, nexthopmtu=1400) / IP(src=OWN, dst=ENDPOINTS_AT[1])
               / Ether(ACK)["IP"])  # fmt: skip
"""What a router on the way to an endpoint says of a tunnel."""
LONG = tcp(CLIENT, WEB, "A", b"x" * 1460)


def nat(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 1])


def dsr(balancer: Balancer, mode: ModeCode = ModeCode.DSR_L3, at: At = WEB) -> None:
    balancer.settings(OWN)
    balancer.serve(at, ring=[1, 2, 1], algorithm=AlgorithmCode.MAGLEV, mode=mode)


def ipv6(balancer: Balancer) -> None:
    balancer.settings(OWN, source6="2001:db8:2::1")
    balancer.endpoint(5)
    balancer.serve(WEB6, ring=[5], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)


def connected(balancer: Balancer) -> None:
    nat(balancer)
    balancer.send(SYN)


def behind(address: str, mode: ModeCode) -> Callable[[Balancer], None]:
    def prepare(balancer: Balancer) -> None:
        balancer.settings(OWN)
        balancer.endpoint(3, address)
        balancer.serve(ring=[3], algorithm=AlgorithmCode.MAGLEV, mode=mode)

    return prepare


def narrow(balancer: Balancer) -> None:
    dsr(balancer)
    balancer.settings(OWN, too_big=TooBigCode.DROP)


def disabled(balancer: Balancer) -> None:
    connected(balancer)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)


def empty(balancer: Balancer) -> None:
    balancer.serve(ring=[])


def taken(balancer: Balancer) -> None:
    """The endpoint talks to the client's address and port already, for another VIP."""
    balancer.serve(ring=[1])
    balancer.front(9, At("20.20.20.9", 80))
    balancer.table.put(Ends(CLIENT, service=9), Entry(1, ConnectionState.OPEN))


def crowded(balancer: Balancer) -> None:
    """All places in which the client's connection could be have others that are open."""
    nat(balancer)
    now = unit_of(clock.now_ns())
    for bucket in set(balancer.table.buckets_of(Ends(CLIENT))):
        pairs = [
            entry(IPv4Address(place + 1), 9, TCP, ConnectionState.OPEN, now, endpoint=1, service=1)
            for place in range(4)
        ]
        words = np.array(pairs, np.uint64).T.tobytes()
        key = CONNECTIONS.key.pack(row_types.Number(bucket))
        assert balancer.kernel.update(CONNECTIONS.name, [(key, words)]) == [None]


def rejecting(balancer: Balancer) -> None:
    nat(balancer)
    balancer.vip(VIP, UndefinedCode.REJECT)


def for_others(balancer: Balancer) -> None:
    """The service is for other clients; whoever asks for what is undefined gets no answer."""
    balancer.serve(ring=[1], sources=["192.0.2.0/24"])


def for_others_with_answers(balancer: Balancer) -> None:
    for_others(balancer)
    balancer.vip(VIP, UndefinedCode.REJECT)


def sourceless(balancer: Balancer) -> None:
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)


def fullnat(balancer: Balancer) -> None:
    balancer.sources("10.2.0.9")
    balancer.serve(ring=[1], mode=ModeCode.FULLNAT)


def fullnat6(balancer: Balancer) -> None:
    balancer.endpoint(5)
    balancer.sources("2001:db8:2::c9")
    balancer.serve(WEB6, ring=[5], mode=ModeCode.FULLNAT)


def portless(balancer: Balancer) -> None:
    balancer.serve(ring=[1], mode=ModeCode.FULLNAT)


def ping_endpoints(balancer: Balancer) -> None:
    balancer.settings(OWN)
    to_endpoints(balancer, ModeCode.DSR_L3)


def trunk(balancer: Balancer) -> None:
    balancer.vlan("front", 100, "front")
    balancer.vlan("front", 200, "back")
    dsr(balancer)


def drop_pings(balancer: Balancer) -> None:
    balancer.vip(VIP, echo=EchoCode.DROP)


Case = tuple[Callable[[Balancer], None], bytes, str, Verdict | None]
CASES: dict[str, Case] = {
    "nat": (nat, SYN, "front", Verdict.REQUEST),
    "nat, known": (connected, ACK, "front", Verdict.REQUEST),
    "nat, reply": (connected, tcp(SERVER, CLIENT, "SA"), "back", Verdict.REPLY),
    "nat, unknown": (nat, ACK, "front", Verdict.CONNECTION_UNKNOWN),
    "nat, TTL": (nat, tcp(CLIENT, WEB, "S", ttl=1), "front", Verdict.TTL_EXPIRED_ANSWERED),
    "nat, clash": (taken, SYN, "front", Verdict.ADDRESS_CLASH),
    "nat, table full": (crowded, SYN, "front", Verdict.TABLE_FULL),
    "nat, disabled": (disabled, tcp(SERVER, CLIENT, "SA"), "back", Verdict.ENDPOINT_DISABLED),
    "nat, no MAC": (behind(STRANGER, ModeCode.NAT), SYN, "front", Verdict.VIA_KERNEL),
    "empty pool": (empty, SYN, "front", Verdict.NO_ENDPOINT),
    "dsr-l2": (lambda b: dsr(b, ModeCode.DSR_L2), SYN, "front", Verdict.REQUEST),
    "dsr-l2, no MAC": (behind(STRANGER, ModeCode.DSR_L2), SYN, "front", Verdict.NEIGHBOUR_UNKNOWN),
    "dsr-l2, far": (behind("192.0.2.7", ModeCode.DSR_L2), SYN, "front", Verdict.OFF_LINK),
    "dsr-l3": (dsr, SYN, "front", Verdict.REQUEST),
    "dsr-l3, no source": (sourceless, SYN, "front", Verdict.NO_ROUTE),
    "dsr-l3, TTL": (dsr, tcp(CLIENT, WEB, "S", ttl=1), "front", Verdict.TTL_EXPIRED),
    "fullnat": (fullnat, SYN, "front", Verdict.REQUEST),
    "fullnat over IPv6": (fullnat6, tcp6(At(CLIENT6, 40_000), WEB6), "front", Verdict.REQUEST),
    "fullnat, no source": (portless, SYN, "front", Verdict.NO_PORT),
    "dsr-l3, same interface": (dsr, SYN, "back", Verdict.REQUEST),
    "dsr-l3, too big": (dsr, LONG, "front", Verdict.TOO_BIG_ANSWERED),
    "dsr-l3, too big and silent": (narrow, LONG, "front", Verdict.TOO_BIG),
    **{f"no way: {kind}": (behind(network.replace(".0/24", ".7"), ModeCode.DSR_L3), SYN, "front", Verdict.NO_ROUTE)
       for kind, network in NO_WAY.items()},
    "dsr-l3, too big on the way": (dsr, MIDWAY, "back", Verdict.ERROR_RELAYED),
    "from nowhere": (nat, tcp(At("127.0.0.1", 40_000), WEB), "front", Verdict.IMPOSSIBLE_SOURCE),
    "for many": (nat, b"\xff" * 6 + SYN[6:], "front", Verdict.LINK_BROADCAST),
    "VLAN": (trunk, tagged(SYN, 100), "front", Verdict.REQUEST),
    "VLAN of others": (trunk, tagged(SYN, 7), "front", None),
    "IPv6": (ipv6, tcp6(At(CLIENT6, 40_000), WEB6), "front", Verdict.REQUEST),
    "undefined": (nat, tcp(CLIENT, At(VIP, 81)), "front", Verdict.UNDEFINED),
    "rejected": (rejecting, tcp(CLIENT, At(VIP, 81)), "front", Verdict.REJECTED),
    "not allowed": (for_others, SYN, "front", Verdict.NOT_ALLOWED),
    "not allowed, and told": (for_others_with_answers, SYN, "front", Verdict.NOT_ALLOWED_ANSWERED),
    "ping": (nat, echo(CLIENT.address, VIP), "front", Verdict.ECHO_ANSWERED),
    "ping, for the endpoint": (ping_endpoints, echo(CLIENT.address, VIP), "front", Verdict.ECHO_FORWARDED),
    "ping, dropped": (drop_pings, echo(CLIENT.address, VIP), "front", Verdict.ECHO_DROPPED),
    "unreachable": (nat, frame(CLIENT.address, VIP, ICMP(type=3) / IP()), "front", None),
    "stranger": (nat, tcp(CLIENT, At("192.0.2.1", 80)), "front", None),
    **{name: (nat, make(VIP), "front", verdict) for verdict, (name, make) in
       {verdict: (name, make) for name, (make, verdict) in HOSTILE.items()}.items()},  # one of each kind
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_program_does_what_the_trial_said(balancer: Balancer, tried: Tried, name: str) -> None:
    prepare, content, interface, verdict = CASES[name]
    for id in (1, 2):
        balancer.endpoint(id)
    prepare(balancer)
    before = snapshot(balancer)
    counted = balancer.verdicts()

    outcome = tried.one(content, interface)

    assert outcome.verdict == verdict
    assert snapshot(balancer) == before
    assert balancer.send(content, interface) == (outcome.action, outcome.frame)
    moved = {v: n - counted.get(v, 0) for v, n in balancer.verdicts().items() if n != counted.get(v, 0)}
    assert moved == ({} if verdict is None else {verdict: 1})


def test_every_common_reason_is_among_the_cases() -> None:
    rare = {Verdict.NO_HEADROOM, Verdict.ICMP_ERROR, Verdict.STAGE_MISSING, Verdict.CHECK, Verdict.CHECK_ANSWERED}
    of_endpoints = {verdict for verdict in Verdict if verdict >= Verdict.DECAPSULATED}
    assert {verdict for *_, verdict in CASES.values()} == set(Verdict) - rare - of_endpoints | {None}


def test_no_number_of_explanations_changes_a_byte_of_any_map(balancer: Balancer, tried: Tried) -> None:
    """Not of connections, turns, counters, rows of transitions, remembered flows, next hops."""
    for id in (1, 2, 3):
        balancer.endpoint(id)
    nat(balancer)
    balancer.send(SYN)
    moving(balancer, UDP)
    balancer.send(udp(CLIENT, DNS))
    before = snapshot(balancer)
    assert before[CONNECTIONS.name]
    assert before[REMEMBERED.name]
    other = At(CLIENT.address, 5)
    for _ in range(3):
        for content in (SYN, ACK, tcp(other, WEB, "S"), udp(CLIENT, DNS), udp(other, DNS)):
            tried.all(content, content)
    assert snapshot(balancer) == before


def test_each_run_begins_anew_and_frames_of_one_run_follow_each_other(balancer: Balancer, tried: Tried) -> None:
    for id in (1, 2):
        balancer.endpoint(id)
    nat(balancer)
    others = [tcp(At(CLIENT.address, port), WEB, "S") for port in (1, 2, 3)]
    for _ in range(2):
        assert [outcome.seen["slot"] for outcome in tried.all(*others)] == [0, 1, 2]
        assert "flow" not in tried.one(SYN).seen
        opened, followed = tried.all(SYN, ACK)
        assert "flow" not in opened.seen
        assert followed.seen["flow"] == ConnectionState.OPENING
        assert followed.seen["endpoint"] == opened.seen["endpoint"]
        assert "slot" not in followed.seen


def test_a_trial_sees_the_connections_turns_and_states_of_the_moment(balancer: Balancer, tried: Tried) -> None:
    for id in (1, 2):
        balancer.endpoint(id)
    nat(balancer)
    assert tried.one(SYN).seen["slot"] == 0
    balancer.send(tcp(At(CLIENT.address, 9), WEB, "S"))
    assert tried.one(SYN).seen["slot"] == 1
    balancer.send(SYN)
    assert tried.one(ACK).seen["flow"] == ConnectionState.OPENING
    balancer.send(ACK)
    assert tried.one(ACK).seen["flow"] == ConnectionState.OPEN


def moving(balancer: Balancer, protocol: int, at: At = DNS) -> None:
    """A DSR service of one slot, which moves from endpoint 2 to 3."""
    balancer.settings(OWN)
    balancer.serve(at, index=2, ring=[2], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3, protocol=protocol)
    assert write_rings(balancer.kernel, {2: np.array([3], np.uint32)}, known={2}) == {2: None}


def test_a_slot_in_transition_says_who_had_it_and_why_the_flow_goes_where(balancer: Balancer, tried: Tried) -> None:
    for id in (2, 3):
        balancer.endpoint(id)
    at = At(VIP, 443)
    moving(balancer, TCP, at)
    syn, ack = tcp(CLIENT, at, "S"), tcp(CLIENT, at, "A")

    def seen(content: bytes) -> tuple[int, int, int]:
        found = tried.one(content).seen
        return found["memory"], found["endpoint"], found["holder"]

    assert seen(ack) == (Memory.PREVIOUS, 2, 3)
    assert seen(syn) == (Memory.BEGINS, 3, 3)
    assert seen(ack) == (Memory.PREVIOUS, 2, 3)
    balancer.send(syn)
    assert seen(ack) == (Memory.REMEMBERED, 3, 3)
    balancer.endpoint(2, state=EndpointRowState.DISABLED)
    assert seen(tcp(At(CLIENT.address, 9), at, "A")) == (Memory.CURRENT, 3, 3)


def test_the_code_is_that_of_the_loaded_program(balancer: Balancer, tried: Tried) -> None:
    assert tried.trial.is_same_code
    assert tried.trial.program == bpf.program_info(balancer._program)


def test_notes_cost_the_program_that_does_not_explain_nothing(tmp_path: Path) -> None:
    """It is byte for byte the one that its source without notes makes."""
    taken_out = 0
    for path in data_dir("bpf").iterdir():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.lstrip().startswith("NOTE(")]
        taken_out += len(lines) - len(kept)
        (tmp_path / path.name).write_text("".join(kept))
    assert taken_out > 20
    assert build(FEATURES, tmp_path).code == build(FEATURES).code
    assert build((*FEATURES, EXPLAIN), tmp_path).code != build((*FEATURES, EXPLAIN)).code


def test_a_program_of_another_version_is_refused(tmp_path: Path) -> None:
    name = f"lbx-other-{os.getpid()}"
    kernel = RealKernel(name, tmp_path)
    try:
        kernel.load_program("lbctl_123456789", FEATURES)
        with pytest.raises(KernelError, match="another version") as refused, trial(Instance(name, tmp_path)):
            pass
        assert "lbctl apply" in refused.value.hint
    finally:
        kernel.unload_program()
        kernel.remove_instance()


def test_without_a_program_there_is_nothing_to_explain(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no program is loaded"), trial(Instance("lbx-none", tmp_path)):
        pass


def test_no_compiler_is_needed_once_both_programs_are_in_the_cache(
    balancer: Balancer, tried: Tried, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a compiler was started"))
    with trial(Instance(balancer.netns, run_dir)) as another:
        assert another.program == tried.trial.program
