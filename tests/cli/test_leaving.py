# SPDX-License-Identifier: Apache-2.0
"""A balancer without an agent is drained by one `apply`: routers turn to others first, then its VIPs are withdrawn."""

import argparse
import time

import pytest

from reconciler import notes
from reconciler.cli import apply, leaving
from reconciler.errors import BlockedError
from reconciler.model import Announce, Fleet, Interface, Node


@pytest.fixture
def args(tmp_path, monkeypatch):
    fleet = Fleet(nodes=(Node("lb1", (Interface("front"),), announce=Announce(grace_s=30.0)),))
    monkeypatch.setattr(leaving, "load_fleet", lambda *_: fleet)
    return argparse.Namespace(
        source=tmp_path, node="lb1", run_dir=str(tmp_path), instance="lbx", netns=None, confirm_within=None,
        auto_approve=False,
    )  # fmt: skip


@pytest.fixture
def slept(monkeypatch):
    found = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def drain(args, ago_s=0.0):
    notes.write(leaving.instance_dir(args), notes.Leaving("ann", "new kernel", notes.now_s() - ago_s))


def test_the_rest_of_the_grace_time_is_waited_for(args, slept, capsys):
    drain(args, ago_s=10.0)
    assert leaving.wait_out_grace(args)
    (seconds,) = slept
    assert 0 < seconds < 20.5
    assert "Routers turn to other balancers; in" in capsys.readouterr().out


def test_there_is_nothing_to_wait_for_without_a_drain_and_when_the_time_is_over(args, slept):
    assert not leaving.wait_out_grace(args)
    drain(args, ago_s=31.0)
    assert not leaving.wait_out_grace(args)
    assert slept == []


def test_whoever_has_to_confirm_is_told_to_say_it_again(args, slept, capsys):
    drain(args)
    args.confirm_within = 60
    assert not leaving.wait_out_grace(args)
    assert "`lbctl apply` withdraws the VIPs in" in capsys.readouterr().out
    assert slept == []


@pytest.mark.parametrize("blocked", [False, True])
def test_apply_is_made_a_second_time_then_and_asks_no_more(args, monkeypatch, blocked):
    asked = []

    def once(args):
        asked.append(args.auto_approve)
        if blocked:
            raise BlockedError("eth7 is missing")
        return 0

    monkeypatch.setattr(apply, "_once", once)
    monkeypatch.setattr(apply, "wait_out_grace", lambda _: True)
    monkeypatch.setattr(apply, "refuse_unconfirmed", lambda _: None)
    if blocked:
        with pytest.raises(BlockedError):
            apply.run(args)
    else:
        assert apply.run(args) == 0
    assert asked == [False, True]
