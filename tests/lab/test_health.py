# SPDX-License-Identifier: Apache-2.0
"""Endpoints that die under load, with an agent that checks them: new connections go elsewhere, open ones stay, and
nobody brings a dead endpoint back."""

import json
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from reconciler.health import store
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.topology import CLIENT, host_of
from tests.nft import DROP, INPUT, IP, chain, nft

from .web import PATIENCE_S, VIP, Web, addresses, manifests

pytestmark = pytest.mark.kernel

FIRST, SECOND, THIRD = ENDPOINTS = addresses(3)
CHECK = "{type: http, interval: 500ms, timeout: 300ms, fall: 2}"


def kill(site: Web) -> None:
    site.lab.servers[FIRST].kill()


@pytest.mark.parametrize("mode", ["nat", "fullnat", "dsr-l2"])
def test_an_endpoint_that_dies_gets_nothing_new_and_the_others_keep_what_they_have(start_web, mode):
    site = start_web(mode, CHECK)
    kept = site.lab.load(VIP, 80, requests_per_connection=0, concurrency=12, rate=60, clients=12, timeout_s=2)
    wait_until("all are open", lambda: len({o.source for o in kept.outcomes() if o.endpoint}) == 12, PATIENCE_S)
    kill(site)
    site.await_members(SECOND, THIRD)
    assert site.answering() == {SECOND, THIRD}
    site.apply()
    assert site.members() == {SECOND, THIRD}
    assert "No changes." in site.plan()
    snapshot = site.log.with_name("snapshot.json")
    snapshot.write_text(site.lbctl("export", str(site.directory), "--node", "lb1"))
    assert "No changes." in site.plan("--live", str(snapshot))  # elsewhere, too
    outcomes = kept.stop()
    homes: dict[str, set[str]] = {}
    for outcome in outcomes:
        if outcome.endpoint:
            homes.setdefault(outcome.source, set()).add(outcome.endpoint)
    broken = {outcome.source for outcome in outcomes if outcome.error}
    firsts = {source for source, ends in homes.items() if any(end.startswith(f"{FIRST}:") for end in ends)}
    assert broken <= firsts  # nothing but the connections of the dead one
    site.await_said(f"because: {FIRST} is down: http check: refused")
    site.serve_again(FIRST)
    site.await_members(FIRST, SECOND, THIRD)
    site.await_said(f"because: {FIRST} is up again")


@pytest.mark.parametrize("mode", ["nat", "fullnat"])
def test_open_connections_of_an_endpoint_that_is_unplugged_end_where_the_pool_says_so(start_web, mode):
    """Their clients learn it by a reset, long before they would have given up, and the others notice nothing."""
    site = start_web(mode, CHECK, pool="onUnhealthy: reset")
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


def test_clients_that_wait_in_silence_for_a_dead_endpoint_learn_it_too(start_web):
    """They have sent half a request, which the server's kernel has acknowledged, and nothing would ever come."""
    site = start_web("nat", CHECK, service="algorithm: maglev", pool="onUnhealthy: reset")
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


@pytest.mark.parametrize("mode", ["nat", "fullnat"])
def test_a_server_that_falls_silent_is_found_by_its_clients_long_before_its_next_check(start_web, mode):
    site = start_web(mode, "{type: tcp, interval: 1h}")
    netns.inside(site.lab.netns(host_of(FIRST)), nft, *chain(IP, b"wall", b"input", INPUT, DROP))
    clients = site.lab.load(VIP, 80, concurrency=6, rate=20, clients=16, timeout_s=10)
    site.await_members(SECOND, THIRD)
    clients.stop()
    assert site.answering() == {SECOND, THIRD}
    site.await_said(f"because: {FIRST} is down: tcp check: no answer within 1 s")


def test_a_dead_endpoint_stays_out_while_nobody_checks_and_when_somebody_does_again(start_web):
    site = start_web("nat", CHECK)
    kill(site)
    site.await_members(SECOND, THIRD)
    site.kill_agent()
    site.write(manifests(ENDPOINTS, "nat", CHECK.replace("fall: 2", "fall: 4")))
    assert "No changes." in site.plan()
    site.apply()
    assert site.members() == {SECOND, THIRD}
    rings = site.log.read_text().count("ring web")
    site.start_agent()
    site.await_up(SECOND, THIRD)
    wait_until("the agent is back", lambda: site.log.read_text().count("Watching") == 2, PATIENCE_S)
    site.await_said("No changes.")
    assert site.log.read_text().count("ring web") == rings  # not one write to a ring
    assert site.members() == {SECOND, THIRD}


def test_a_checker_that_is_killed_is_started_again_and_nothing_changes_meanwhile(start_web):
    site = start_web("nat", CHECK)
    kill(site)
    site.await_members(SECOND, THIRD)
    path = site.place / store.FILE
    wait_until("it says who it is", lambda: store.read(path).progress.checks > 0, PATIENCE_S)
    former = store.read(path).progress.pid
    assert str(former) in site.lbctl("get", "checker")
    os.kill(former, signal.SIGKILL)
    wait_until("it is back", lambda: store.read(path).progress.pid not in (0, former), PATIENCE_S)
    assert site.members() == {SECOND, THIRD}
    site.serve_again(FIRST)
    site.await_members(FIRST, SECOND, THIRD)


@contextmanager
def seen(site: Web, *, never: IPv4Address) -> Iterator[None]:
    """Look at the rings all the time: this endpoint must be in none of them."""
    over, times = threading.Event(), []

    def look() -> None:
        while not over.wait(0.02):
            times.append(never in site.members())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert len(times) > 50
    assert not any(times)


def test_an_agent_that_is_killed_again_and_again_while_servers_flap_never_serves_a_dead_one(start_web):
    """Killed in the middle of whatever it did, and its checks edited meanwhile, back and forth: who has been dead all
    the time is in no ring for a moment. In the end the node holds what is true, and a plan finds nothing."""
    site = start_web("nat", CHECK)
    edits = [manifests(ENDPOINTS, "nat", CHECK.replace("fall: 2", f"fall: {fall}, port: 80"), ports=ports)
             for fall, ports in ((2, "[80]"), (3, "[80]"), (2, "[80, 8080]"))]  # fmt: skip
    for text in (*edits, edits[0]):  # each check has found all of them up
        site.write(text)
        wait_until("the edit is heeded", lambda text=text: "No changes." in site.plan(), PATIENCE_S)
        site.await_up(*ENDPOINTS)
    site.lab.servers[SECOND].kill()
    site.await_members(FIRST, THIRD)
    chance = random.Random(5)
    with seen(site, never=SECOND):
        for number in range(6):
            site.lab.servers[FIRST].send_signal(signal.SIGSTOP if number % 2 else signal.SIGCONT)
            site.write(edits[number % 3])
            time.sleep(chance.uniform(0.0, 1.2))  # anywhere: before, within or after what follows from that
            site.kill_agent()
            site.start_agent()
        site.lab.servers[FIRST].send_signal(signal.SIGSTOP)
        site.await_members(THIRD)
    assert site.answering() == {THIRD}
    assert "No changes." in site.plan()
