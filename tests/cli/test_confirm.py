# SPDX-License-Identifier: Apache-2.0
"""When the time of a change begins that has to be confirmed, and who decides if it is over."""

import argparse
import threading
from types import SimpleNamespace

import pytest

from reconciler import notes
from reconciler.cli import confirm
from reconciler.errors import ApplyError, PartialError

WITHIN_S = 120.0
PATIENCE_S = 60
PLANNED = SimpleNamespace(live=SimpleNamespace(resources=()))


@pytest.fixture
def instance(tmp_path, monkeypatch):
    """An instance whose clock stands still unless it is moved; `watch` is the thread that would take a change back."""
    made = SimpleNamespace(now=1000.0, gone_back=[], watch=None, directory=tmp_path / "x")
    made.args = argparse.Namespace(
        run_dir=str(tmp_path), state_dir=str(tmp_path / "state"), instance="x", netns=None, confirm_within=WITHIN_S
    )
    made.note = lambda: notes.read(made.directory, notes.Unconfirmed)

    def start(args, note):
        made.watch = threading.Thread(target=confirm._wait, args=(args, note.token), daemon=True)
        made.watch.start()

    nap = threading.Event()
    monkeypatch.setattr(notes, "now_s", lambda: made.now)
    monkeypatch.setattr(confirm, "time", SimpleNamespace(sleep=lambda _: nap.wait(0.001)))
    monkeypatch.setattr(confirm, "_start", start)
    monkeypatch.setattr(confirm, "_go_back", lambda _args, note: made.gone_back.append(note.until_s))
    monkeypatch.setattr(confirm, "_poke", lambda _args: None)
    return made


def test_the_time_begins_when_the_change_is_made_however_long_that_takes(instance, capsys):
    with confirm.unless_confirmed(instance.args, PLANNED):
        instance.now += 2 * WITHIN_S  # a program had to be compiled
        instance.watch.join(0.2)
        assert instance.watch.is_alive() and not instance.gone_back
    assert instance.note().until_s == instance.now + WITHIN_S
    assert "unless you say: lbctl" in capsys.readouterr().out
    instance.now += WITHIN_S - 1
    instance.watch.join(0.2)
    assert instance.watch.is_alive() and not instance.gone_back
    instance.now += 1
    instance.watch.join(PATIENCE_S)
    assert instance.gone_back == [instance.now] and instance.note() is None


def test_a_change_that_is_killed_half_way_goes_back_in_time(instance):
    class KilledError(BaseException):
        pass

    with pytest.raises(KilledError), confirm.unless_confirmed(instance.args, PLANNED):
        raise KilledError
    instance.now += WITHIN_S
    instance.watch.join(PATIENCE_S)
    assert instance.gone_back == [1000.0 + WITHIN_S]


@pytest.mark.parametrize(("error", "stays"), [(ApplyError("as it was"), False), (PartialError("half"), True)])
def test_what_failed_as_a_whole_needs_no_way_back(instance, error, stays):
    with pytest.raises(ApplyError), confirm.unless_confirmed(instance.args, PLANNED):
        raise error
    assert (instance.note() is not None) is stays
    instance.now += WITHIN_S
    instance.watch.join(PATIENCE_S)
    assert bool(instance.gone_back) is stays
