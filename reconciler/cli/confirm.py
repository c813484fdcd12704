# SPDX-License-Identifier: Apache-2.0
"""`lbctl confirm`, and what happens without it: `apply --confirm-within` leaves a note, and a process of its own that
brings the node back when the time is over. It needs neither the agent nor the connection of whoever applied.

Of the note, a lock decides between the two: who holds it confirms, or goes back, and the other finds that done. A
process that is killed while it goes back leaves the note, and the agent starts another one.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler import children, notes, private
from reconciler.cli.common import instance_dir, state_dir
from reconciler.errors import ApplyError, LbctlError, UsageError
from reconciler.plan import Plan

DESCRIPTION = """\
Keep the change of `lbctl apply --confirm-within`. Say it once you have seen that the node works, and that you still
reach it: without it the node goes back by itself, whether an agent runs or not."""
EPILOG = """\
examples:
  lbctl apply /etc/lbctl --confirm-within 2m
  lbctl confirm

exit codes: 0 the change stays; 1 there is none to confirm, or it has gone back; 2 wrong usage
"""

LOCK, LOG = "confirming", "going-back.log"
WHO = "nobody confirmed"
ATTEMPTS = 10
GRACE_S = 30.0
"""How long the agent waits for the process that takes a change back."""
_SERVING = ("service", "vip", "loopback")
_PATIENCE_S = 120.0
_POLL_S = 0.5
_RETRY_S = 5.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--or-back", metavar="TOKEN", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.or_back:
        return _wait(args, args.or_back)
    directory = instance_dir(args)
    if notes.read(directory, notes.Unconfirmed) is None:
        raise LbctlError(
            "there is no change to confirm",
            hint="it has gone back, was confirmed, or `apply` found nothing to do: see `lbctl history`",
        )
    with _lock(directory):
        if not notes.remove(directory, notes.Unconfirmed):
            raise LbctlError("too late: the node has gone back", hint="see `lbctl history`")
    _poke(args)
    print("The change stays.")
    return 0


def refuse_unconfirmed(args: argparse.Namespace) -> None:
    """Raise LbctlError while a change waits to be confirmed: going back would take later ones away with it."""
    note = notes.read(instance_dir(args), notes.Unconfirmed)
    if note is not None:
        hint = "`lbctl confirm` keeps it; or wait until it is back"
        raise LbctlError(f"a change by {note.who} is not confirmed yet", hint=hint)


@contextmanager
def unless_confirmed(args: argparse.Namespace, planned: Plan) -> Iterator[None]:
    """Have the change that is made meanwhile taken back in time, unless it fails as a whole. The time begins when the
    change is made; if this process is killed before, it has begun with it. Raises LbctlError if nobody knows what to
    go back to."""
    from reconciler.history import History

    directory = instance_dir(args)
    back_to = History(state_dir(args)).current()
    if not any(key.kind in _SERVING for key in planned.live.resources):
        back_to = back_to or ""
    if back_to is None:
        raise LbctlError(
            "nobody knows what to go back to: the history has no revision that is in force",
            hint="apply what the node should hold now without --confirm-within first",
        )
    if back_to:
        History(state_dir(args)).manifests(back_to)  # raises UsageError unless they are there
    within_s, token = float(args.confirm_within), secrets.token_hex(8)

    def begin() -> notes.Unconfirmed:
        until_s, until = notes.now_s() + within_s, notes.clock_text(within_s)
        note = notes.Unconfirmed(notes.user(), token, until_s, until, back_to)
        notes.write(directory, note)
        return note

    with _lock(directory):  # while it is held, nothing goes back
        _start(args, begin())
        try:
            yield
        except ApplyError as error:
            if type(error) is ApplyError:  # the node is as it was
                notes.remove(directory, notes.Unconfirmed)
            else:
                begin()
            raise
        note = begin()
    print(f"The node goes back at {note.until}, unless you say: lbctl {_names(args)}confirm")


def _names(args: argparse.Namespace) -> str:
    given = (("--run-dir", args.run_dir if args.run_dir != "/run/lbctl" else ""), ("--instance", args.instance),
             ("--netns", args.netns))  # fmt: skip
    return "".join(f"{option} {value} " for option, value in given if value)


def start_watch(directory: Path, note: notes.Unconfirmed, *, netns: str | None, state: str, run_dir: str) -> None:
    """Start the process that waits for the end of the note's time; it outlives this one, its terminal and its
    session."""
    where = ["--run-dir", os.path.abspath(run_dir), "--state-dir", os.path.abspath(state)]  # noqa: PTH100
    where += ["--netns", netns] if netns else []
    command = children.module("reconciler.cli.main", *where, "--instance", directory.name, "--no-color", "confirm",
                              "--or-back", note.token)  # fmt: skip
    with private.opened(directory / LOG) as log:
        os.ftruncate(log, 0)
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            cwd=children.DIRECTORY, env=children.ENVIRONMENT,
        )  # fmt: skip


def _wait(args: argparse.Namespace, token: str) -> int:
    """Wait for the end of the time, or of the note, and go back."""
    directory = instance_dir(args)
    while True:
        note = notes.read(directory, notes.Unconfirmed) if directory.is_dir() else None
        if note is None or note.token != token:
            return 0
        if not note.is_over:
            time.sleep(min(_POLL_S, max(0.0, note.until_s - notes.now_s())))
            continue
        with _lock(directory, math.inf):  # the change may still be under way
            if notes.read(directory, notes.Unconfirmed) != note:
                continue  # it was confirmed, or its time has only begun
            _go_back(args, note)
            notes.remove(directory, notes.Unconfirmed)
        _poke(args)
        return 0


def _go_back(args: argparse.Namespace, note: notes.Unconfirmed) -> None:
    """Go back, again and again if that fails. The agent leaves the node as it is then."""
    from reconciler.cli.going_back import go_back

    pause = notes.Pause(WHO, f"the change by {note.who} went back")
    if note.back_to or notes.read(instance_dir(args), notes.Pause) is None:
        notes.write(instance_dir(args), pause)
    args.node, args.auto_approve = None, True
    for attempt in range(ATTEMPTS):
        try:
            go_back(args, note.back_to, WHO)
        except UsageError:
            raise
        except (LbctlError, OSError) as error:
            print(error, file=sys.stderr, flush=True)
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(_RETRY_S)
        else:
            return


@contextmanager
def _lock(directory: Path, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    with private.opened(directory / LOCK) as handle:
        if not private.lock(handle, patience_s):
            what = f"instance {directory.name} is being changed, or going back, just now"
            raise LbctlError(what, hint="see `lbctl history`")
        yield


def _poke(args: argparse.Namespace) -> None:
    from reconciler.cli.poke import poke

    with contextlib.suppress(OSError):
        poke(args)


class Watches:
    """Starts the watch over a change anew, if its time is over and nobody has taken it back: the former process was
    killed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._tried_s = -math.inf

    def renew(self, note: notes.Unconfirmed) -> None:
        if notes.now_s() < max(note.until_s + GRACE_S, self._tried_s + GRACE_S):
            return
        self._tried_s = notes.now_s()
        with contextlib.suppress(LbctlError, OSError):  # the next round tries again
            _start(self._args, note)


def _start(args: argparse.Namespace, note: notes.Unconfirmed) -> None:
    start_watch(instance_dir(args), note, netns=args.netns, state=str(state_dir(args).parent), run_dir=args.run_dir)


def held_by(directory: Path) -> tuple[str, notes.Unconfirmed | None]:
    """Why the agent is to leave the node as it is, empty if it is not; and the change that waits to be confirmed. A
    pause that is over is taken away."""
    try:
        pause, change = notes.read(directory, notes.Pause), notes.read(directory, notes.Unconfirmed)
        if pause is not None and pause.is_over:
            notes.remove(directory, notes.Pause)
            pause = None
    except LbctlError as error:
        return f"a note can't be read: {error}", None
    return str(change or pause or ""), change
