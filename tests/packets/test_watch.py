# SPDX-License-Identifier: Apache-2.0
"""Packets that are watched: what is told of them, that nothing else becomes of them than without, and that it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from reconciler.dataplane.layout import WATCH_REPORTS, WATCHERS, AlgorithmCode, ModeCode, Verdict
from reconciler.errors import KernelError
from reconciler.explain.watched import is_about
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.instance import Instance
from reconciler.kernel.watching import Match, watching
from tests.packets.balancer import CLIENT, CLIENT6, ENDPOINTS6_AT, ENDPOINTS_AT, VIP, WEB, Balancer
from tests.packets.frames import At, tcp, tcp6

pytestmark = pytest.mark.kernel

LONG_S = 600.0
SERVER = At(ENDPOINTS_AT[1], 80)
STRANGER = At("10.1.0.3", CLIENT.port)
FLOW = Match(ip_address(CLIENT.address), CLIENT.port, ip_address(VIP), 80)


@pytest.fixture
def serving(balancer: Balancer) -> Balancer:
    balancer.endpoint(1)
    balancer.serve(ring=[1])
    return balancer


def instance(balancer: Balancer) -> Instance:
    found = balancer.kernel._instance  # type: ignore[attr-defined]
    assert isinstance(found, Instance)
    return found


@contextmanager
def watched(balancer: Balancer, match: Match = FLOW, seconds: float = LONG_S, allow: int = 100):
    with watching(instance(balancer), match, seconds) as watcher:
        watcher.allow(allow)
        yield watcher


def is_handed_over(balancer: Balancer) -> bool:
    """Whether packets go to a program that watches."""
    from reconciler.kernel import bpf, holders, maps

    generation = holders.live(instance(balancer))
    assert generation
    fd = generation.open(WATCHERS.name)
    assert fd
    with bpf.closing(fd):
        return maps.lookup(maps.describe(fd), bytes(4)) is not None


def test_requests_and_replies_are_told_with_verdict_slot_endpoint_and_both_frames(serving: Balancer) -> None:
    syn, syn_ack = tcp(CLIENT, WEB, "S"), tcp(SERVER, CLIENT, "SA")
    with watched(serving) as watcher:
        action, out = serving.send(syn, "front")
        _, back = serving.send(syn_ack, "back")
        request, reply = watcher.reports()
    assert action == request.action == XdpVerdict.REDIRECT
    assert (request.before, request.after) == (syn[:128], out[:128])
    assert (request.verdict, request.slot, request.endpoint, request.service) == (Verdict.REQUEST, 0, 1, 1)
    assert (reply.verdict, reply.before, reply.after) == (Verdict.REPLY, syn_ack[:128], back[:128])
    assert all(is_about(report, FLOW) for report in (request, reply))
    assert 0 <= reply.at_ns - request.at_ns < 60e9
    assert serving.verdicts() == {Verdict.REQUEST: 1, Verdict.REPLY: 1}


def test_nothing_else_becomes_of_a_packet_than_without(serving: Balancer) -> None:
    frames = [tcp(CLIENT, WEB, "S"), tcp(CLIENT, WEB, "A"), tcp(CLIENT, At(VIP, 81), "S"), tcp(STRANGER, WEB, "S"),
              tcp(CLIENT, At("9.9.9.9", 80), "S"), b"\0" * 14, tcp(CLIENT, WEB, "S")[:30]]  # fmt: skip
    alone = [serving.send(content, "front") for content in frames]
    counted = serving.verdicts()
    serving.forget()
    with watched(serving) as watcher:
        assert [serving.send(content, "front") for content in frames] == alone
        told = list(watcher.reports())
    assert serving.verdicts() == {verdict: 2 * packets for verdict, packets in counted.items()}
    assert [report.verdict for report in told] == [Verdict.REQUEST, Verdict.REQUEST]


def test_the_filter_takes_only_what_it_names(serving: Balancer) -> None:
    client, vip = ip_address(CLIENT.address), ip_address(VIP)
    sent = [tcp(CLIENT, WEB, "S"), tcp(At(CLIENT.address, 7), WEB, "S"), tcp(CLIENT, At(VIP, 81), "S"),
            tcp(CLIENT, At("9.9.9.9", 80), "S"), tcp(STRANGER, WEB, "S")]  # fmt: skip
    for match, expected in (
        (Match(client), [0, 1, 2, 3]), (Match(client, 7), [1]), (Match(client, 0, vip), [0, 1, 2]),
        (Match(client, 0, vip, 81), [2]), (FLOW, [0]), (Match(ip_address(CLIENT6)), []),
    ):  # fmt: skip
        with watched(serving, match) as watcher:
            for content in sent:
                serving.send(content, "front")
            told = [report.before for report in watcher.reports()]
        assert told == [sent[number][:128] for number in expected], match


def test_packets_to_the_client_from_elsewhere_are_no_packets_of_the_flow(serving: Balancer) -> None:
    with watched(serving) as watcher:
        serving.send(tcp(At("10.2.0.12", 443), CLIENT, "A"), "back")
        (report,) = watcher.reports()
    assert not is_about(report, FLOW)
    assert is_about(report, Match(ip_address(CLIENT.address)))


def test_ipv6_and_a_tunnel(balancer: Balancer) -> None:
    at, client = At("2001:db8:20::1", 53), At(CLIENT6, 5353)
    balancer.endpoint(5)
    balancer.serve(at, ring=[5], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    balancer.settings("10.1.0.1", source6="2001:db8:1::1")
    with watched(balancer, Match(ip_address(client.address), 5353, ip_address(at.address), 53)) as watcher:
        _, out = balancer.send(tcp6(client, at), "front")
        (report,) = watcher.reports()
    assert (report.verdict, report.endpoint, report.after) == (Verdict.REQUEST, 5, out[:128])
    assert ip_address(ENDPOINTS6_AT[5]).packed in report.after


def test_no_more_is_told_than_allowed_and_what_is_left_out_is_counted(serving: Balancer) -> None:
    with watched(serving, allow=3) as watcher:
        for _ in range(10):
            serving.send(tcp(CLIENT, WEB, "S"), "front")
        assert len(list(watcher.reports())) == 3 and watcher.missed() == 7
        watcher.allow(10**9)
        for _ in range(2 * WATCH_REPORTS.capacity):
            serving.send(tcp(CLIENT, WEB, "S"), "front")
        told = list(watcher.reports())
        assert len(told) == WATCH_REPORTS.capacity // 2
        assert all(report.before == told[0].before for report in told)


def test_after_its_time_nothing_is_told(serving: Balancer) -> None:
    with watched(serving, seconds=0.0) as watcher:
        serving.send(tcp(CLIENT, WEB, "S"), "front")
        assert list(watcher.reports()) == [] and watcher.missed() == 0


def test_nobody_watches_afterwards_and_only_one_at_a_time(serving: Balancer) -> None:
    assert not is_handed_over(serving)
    with watched(serving):
        assert is_handed_over(serving)
        with pytest.raises(KernelError, match="somebody watches"), watched(serving):
            pass
        assert is_handed_over(serving)
    assert not is_handed_over(serving)


def test_a_watcher_that_is_killed_costs_no_packet_and_leaves_nothing_behind(serving: Balancer) -> None:
    name, run_dir = instance(serving).name, instance(serving).directory.parent
    script = (
        "import sys, time; from pathlib import Path; from ipaddress import ip_address;"
        "from reconciler.kernel.instance import Instance; from reconciler.kernel.watching import Match, watching\n"
        f"with watching(Instance({name!r}, Path({str(run_dir)!r})), Match(ip_address('10.1.0.2')), 600):\n"
        "    print('on', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout and process.stdout.readline() == b"on\n"
    assert is_handed_over(serving)
    process.send_signal(signal.SIGKILL)
    await_(lambda: serving.send(tcp(CLIENT, WEB, "S"), "front") and not is_handed_over(serving))
    process.wait(60)
    process.stdout.close()
    serving.send(tcp(CLIENT, WEB, "S"), "front")
    assert serving.verdicts().keys() == {Verdict.REQUEST}, "no packet met a program without its stages"


def await_(holds: Callable[[], bool], patience_s: float = 60) -> None:
    give_up = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)
