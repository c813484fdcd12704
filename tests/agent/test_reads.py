# SPDX-License-Identifier: Apache-2.0
"""Questions of those who may only ask: answered, and never for more than a small share of a CPU."""

import json
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from reconciler.agent import reads as module
from reconciler.agent.budget import BURST_S, SHARE, Budget
from reconciler.agent.commands import LOOK_S, commands
from reconciler.agent.control import Peer
from reconciler.agent.journal import Journal
from reconciler.agent.shared import Shared
from reconciler.agent.wake import Doorbell
from reconciler.doctor.finding import FOUND
from reconciler.errors import LbctlError

PATIENCE_S = 60
MEMBER, ROOT = Peer(1, 12345), Peer(1, os.geteuid())


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_a_budget_lets_a_few_questions_through_at_once_and_a_share_in_the_long_run(clock):
    budget, spent = Budget(clock, clock.pause), 0.0
    began = clock.now
    while clock.now < began + 600:
        assert budget.wait(60.0)
        budget.spend(0.5)
        clock.now += 0.5
        spent += 0.5
        if spent == BURST_S:
            assert clock.now - began == BURST_S, "nobody had to wait"
    assert spent / (clock.now - began) < SHARE + BURST_S / 600 + 0.01


def test_who_would_have_to_wait_too_long_is_told_at_once(clock):
    budget = Budget(clock, lambda _: pytest.fail("waited"))
    budget.spend(BURST_S + 10)
    assert not budget.wait(1.0)
    clock.now += 11 / SHARE
    assert budget.wait(1.0)


class Verbs:
    """What stands for `forks`: `told` is what a verb writes, at the expense of some seconds."""

    def __init__(self, told=lambda _words: b"{}", seconds=0.0, clock=None, code=0):
        self.told, self.seconds, self.clock, self.code = told, seconds, clock, code
        self.spent_s, self.asked = 0.0, []

    def run(self, words, out, _err, _timeout_s):
        self.asked.append(words)
        os.write(out, self.told(words))
        self.spent_s += self.seconds
        if self.clock:
            self.clock.now += self.seconds
        return self.code


def test_members_are_limited_and_root_is_not(monkeypatch, clock, tmp_path):
    verbs = Verbs(lambda _: b'{"items": []}', 1.5, clock)
    budget = Budget(clock, clock.pause)
    monkeypatch.setattr(module, "Budget", lambda: budget)
    get = module.reads(["--instance", "x"], tmp_path, str, verbs)["get"].answer
    began = clock.now
    for _ in range(2):
        assert list(get(MEMBER, {"what": "services"})) == [b'{"items":[]}']
    assert clock.now - began == 3.0
    began = clock.now
    list(get(MEMBER, {"what": "services"}))
    assert clock.now - began > 15, "it waited until what was spent before was paid for"
    budget.spend(module.BUDGET_PATIENCE_S)
    with pytest.raises(LbctlError, match="earlier answers have used that up") as refused:
        list(get(MEMBER, {"what": "services"}))
    clock.now += int(re.match(r"try again in (\d+) s", refused.value.hint)[1])
    assert list(get(MEMBER, {"what": "services"})) == [b'{"items":[]}']
    budget.spend(module.BUDGET_PATIENCE_S)
    assert list(get(ROOT, {"what": "services"})) == [b'{"items":[]}']


def test_who_waits_with_the_same_question_gets_the_same_answer_and_none_of_before_he_asked(tmp_path):
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def told(_words):
        begun.release()
        assert go_on.acquire(timeout=PATIENCE_S)
        return json.dumps({"number": len(verbs.asked)}).encode()

    verbs = Verbs(told)
    get = module.reads((), tmp_path, str, verbs)["get"].answer

    def ask(what="services"):
        return list(get(MEMBER, {"ask": "get", "what": what}))

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask)
        assert begun.acquire(timeout=PATIENCE_S)
        later = [pool.submit(ask) for _ in range(6)]
        other = pool.submit(ask, "endpoints")
        deadline = time.monotonic() + PATIENCE_S
        while sum("result" in _names(frame) for frame in sys._current_frames().values()) < 5:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        for _ in range(3):
            go_on.release()
        assert first.result(PATIENCE_S) == [b'{"number":1}']
        assert len({str(each.result(PATIENCE_S)) for each in (*later, other)}) == 2
    assert len(verbs.asked) == 3, "the first, one for six, and the other question"


def _names(frame):
    """Of the functions that a thread is in."""
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


def test_a_fault_is_told_to_all_who_wait_and_the_next_asks_anew():
    shared, release = Shared(), threading.Event()

    def fails(_begins):
        assert release.wait(PATIENCE_S)
        raise LbctlError("the map is gone")

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(shared.answer, "x", fails) for _ in range(2)]
        release.set()
        for each in both:
            with pytest.raises(LbctlError, match="the map is gone"):
                each.result(PATIENCE_S)
    assert shared.answer("x", lambda _begins: [{}]) == [{}]


def test_members_can_have_the_files_looked_at_once_a_second(clock):
    rung = []
    bell = Doorbell(clock)
    bell.ring = lambda wake: rung.append(clock.now)
    look = commands(Journal(), None, bell, clock=clock, pause=clock.pause)["look"].answer
    for peer in (MEMBER, MEMBER, MEMBER, ROOT, ROOT):
        assert list(look(peer, {})) == [{"now_s": clock.now}]
    assert [at - rung[0] for at in rung] == [0, LOOK_S, 2 * LOOK_S, 2 * LOOK_S, 2 * LOOK_S]


def test_what_an_explanation_compiles_once_is_not_paid_for_by_the_questions_after_it(monkeypatch, clock, tmp_path):
    monkeypatch.setattr(module, "Budget", lambda: Budget(clock, clock.pause))
    explain = module.reads((), tmp_path, str, Verbs(lambda _: b"forwarded", 30, clock))["explain"].answer
    began = clock.now
    for _ in range(4):
        assert list(explain(MEMBER, {"packet": ["10.1.0.9:4000", "20.20.20.1:80"]}))
    assert clock.now - began == 4 * 30


@pytest.fixture
def asked(tmp_path):
    """The answer to a member's question, and the words of the commands that gave it."""

    def call(name, manifests=("/etc/lbctl", "--node", "lb1"), **request):
        verbs = Verbs(code=FOUND if name == "doctor" else 0)
        answers = module.reads(["--instance", "x"], tmp_path, str, verbs, manifests)
        return list(answers[name].answer(MEMBER, request)), verbs.asked

    return call


def test_a_packet_is_explained_for_members(asked):
    answers, [words] = asked("explain", packet=["198.51.100.7:4", "[2001:db8::1]:80"], proto="udp", format="json")
    assert answers == [{"text": "{}"}]
    assert words == ["--instance", "x", "explain", "198.51.100.7:4", "[2001:db8::1]:80", "--proto", "udp",
                     "--format", "json"]  # fmt: skip


@pytest.mark.parametrize("request_", [
    {"packet": ["/etc/shadow"]}, {"packet": ["/etc/shadow", "b"]}, {"packet": ["--netns", "b"]}, {"packet": "ab"},
    {"packet": ["a", "b"], "interface": "--run-dir"}, {"packet": ["a", "b"], "proto": "tcp\n--x"},
    {"packet": ["a", "b"], "flags": "x" * 100}, {},
])  # fmt: skip
def test_what_is_no_word_of_a_packet_reaches_no_command_line(asked, request_):
    with pytest.raises(LbctlError):
        asked("explain", **request_)


def test_the_doctor_looks_with_the_agents_own_manifests_only(asked):
    answers, [words] = asked("doctor", directory="/etc/lbctl", **{"from": "198.51.100.7"})
    assert answers == [{"text": "{}", "code": 8}]
    assert words[2:] == ["doctor", "/etc/lbctl", "--node", "lb1", "--format", "text", "--from", "198.51.100.7"]
    for manifests, directory in ((("/etc/lbctl",), "/home/a"), ((), "/etc/lbctl")):
        with pytest.raises(LbctlError, match="the agent has"):
            asked("doctor", manifests, directory=directory)


def test_a_snapshot_is_of_what_the_agents_manifests_ask_for(asked):
    answers, [words] = asked("export")
    assert (answers, words[2:]) == ([b"{}"], ["export", "/etc/lbctl", "--node", "lb1"])


def test_json_of_a_process_is_sent_on_a_line_and_read_by_nobody_on_the_way(monkeypatch, tmp_path):
    told = {"items": [{"name": "\u2192 \n", "share": 0.25}], "kind": "services"}
    verbs = Verbs(lambda _: json.dumps(told, indent=2).encode() + b"\n")
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("read"))
    [line] = module.reads((), tmp_path, str, verbs)["get"].answer(ROOT, {"what": "services"})
    monkeypatch.undo()
    assert isinstance(line, bytes) and b"\n" not in line
    assert json.loads(line) == told
