# SPDX-License-Identifier: Apache-2.0
"""The control socket: who may ask, who may change, and that nobody can stop the agent with it."""

import json
import os
import pwd
import socket
import stat
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.agent.control import MAX_CONNECTIONS, MAX_REQUEST_BYTES, SOCKET, Command, NoAgentError, ask, listening
from reconciler.errors import LbctlError

PATIENCE_S = 60
NOBODY = pwd.getpwnam("nobody")
COMMANDS = {
    "who": Command(lambda peer, request: iter([{"uid": peer.uid, "pid": peer.pid, "word": request.get("word")}])),
    "line": Command(lambda peer, request: iter([b'{"made": ["elsewhere"]}'])),
    "change": Command(lambda peer, request: iter([{"done": True}]), changes=True),
}


@pytest.fixture
def instance():
    """A directory that other users can reach, as /run/lbctl is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "lba"


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def as_nobody(work, gid=None):
    """What `work` returns in a child process of the user nobody."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([gid] if gid is not None else [])
            os.setgid(NOBODY.pw_gid)
            os.setuid(NOBODY.pw_uid)
            try:
                result = work()
            except LbctlError as error:
                result = {"refused": str(error)}
            os.write(writer, json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return json.loads(content)


def first(instance, **request):
    return next(ask(instance, request, PATIENCE_S))


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(instance, mask):
    with umask(mask), listening(instance, COMMANDS, NOBODY.pw_gid):
        made = (instance / SOCKET).stat()
        assert stat.S_ISSOCK(made.st_mode)
        assert (stat.S_IMODE(made.st_mode), made.st_gid) == (0o660, NOBODY.pw_gid)
        assert stat.S_IMODE(instance.stat().st_mode) == 0o711
        assert [path.name for path in instance.iterdir()] == [SOCKET]
    assert not list(instance.iterdir())
    with umask(mask), listening(instance, COMMANDS, None):
        assert stat.S_IMODE((instance / SOCKET).stat().st_mode) == 0o600


def test_the_kernel_says_who_asks(instance):
    with listening(instance, COMMANDS, None):
        assert first(instance, ask="who", word="x", uid=7) == {"uid": os.getuid(), "pid": os.getpid(), "word": "x"}


def test_members_of_the_group_may_ask_and_not_change(instance):
    with listening(instance, COMMANDS, 4242):
        assert as_nobody(lambda: first(instance, ask="who"), gid=4242)["uid"] == NOBODY.pw_uid
        refused = as_nobody(lambda: first(instance, ask="change"), gid=4242)
        assert "only root may ask the agent to change something" in refused["refused"]
        assert first(instance, ask="change") == {"done": True}


def test_others_may_neither_ask_nor_look_nor_lock(instance):
    def attempts():
        found = {}
        for name, attempt in (
            ("list", lambda: list(instance.iterdir())),
            ("lock", lambda: os.open(instance, os.O_RDONLY)),
            ("make", lambda: (instance / "x").mkdir()),
            ("remove", lambda: (instance / SOCKET).unlink()),
        ):
            try:
                attempt()
            except PermissionError:
                found[name] = "refused"
        return found

    with listening(instance, COMMANDS, 4242):
        assert "you may not ask" in as_nobody(lambda: first(instance, ask="who"))["refused"]
        assert as_nobody(attempts, gid=4242) == dict.fromkeys(("list", "lock", "make", "remove"), "refused")


def test_what_others_have_written_is_sent_as_it_is(instance):
    with listening(instance, COMMANDS, None):
        assert first(instance, ask="line") == {"made": ["elsewhere"]}


@pytest.mark.parametrize(
    "sent", [b"\n", b"[]\n", b"{\n", b'{"ask": "nothing"}\n', b"[" * 5000 + b"\n", b"x" * (MAX_REQUEST_BYTES + 1)]
)
def test_what_is_no_question_gets_an_error_and_ends_nothing(instance, sent):
    with listening(instance, COMMANDS, None):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(os.fspath(instance / SOCKET))
            connection.sendall(sent)
            assert "error" in json.loads(connection.makefile().readline())
        assert first(instance, ask="who")["word"] is None


def test_silent_peers_take_no_more_than_their_number(instance):
    with listening(instance, COMMANDS, None):
        silent = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CONNECTIONS)]
        for connection in silent:
            connection.connect(os.fspath(instance / SOCKET))
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                with pytest.raises(LbctlError, match="too many others are asking"):
                    first(instance, ask="who")
                break
            except pytest.fail.Exception:  # the server has not taken all of them yet
                assert time.monotonic() < give_up
        for connection in silent:
            connection.close()
        while True:
            try:
                assert first(instance, ask="who")
                break
            except LbctlError:  # nor heard yet that they are gone
                assert time.monotonic() < give_up
    assert not any(thread.name == "control" and not thread.daemon for thread in threading.enumerate())


def test_without_an_agent_there_is_an_error_with_the_way_out(instance):
    for _ in range(2):
        with pytest.raises(NoAgentError, match="no agent runs on instance lba"):
            first(instance, ask="who")
        with listening(instance, COMMANDS, None):
            os.link(instance / SOCKET, instance / "left")  # as an agent leaves it that was killed
        (instance / "left").rename(instance / SOCKET)
    with listening(instance, COMMANDS, None):  # takes the place of what was left
        assert first(instance, ask="who")
