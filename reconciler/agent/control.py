# SPDX-License-Identifier: Apache-2.0
"""The agent's control socket: `control` in the instance's directory, a question and an answer in JSON, a line each.

The mode of the socket says who may ask: root, the agent's user and the members of one group. What changes something is
for root and the agent's user, as the kernel names them (SO_PEERCRED, unix(7)). The answers are made of what the agent
has published, by threads of their own: a question waits for no round and delays none.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler import private
from reconciler.errors import FilesError, LbctlError

SOCKET = "control"
MAX_CONNECTIONS = 16
MAX_REQUEST_BYTES = 1 << 16
PATIENCE_S = 10.0
"""How long a peer may take to ask, and to take the answer."""

_UCRED = struct.Struct("=iII")

Json = dict[str, Any]
Answer = Json | bytes
"""Bytes are JSON that somebody else has written, on a line: they are sent as they are."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that asks, as the kernel knows it."""

    pid: int
    uid: int

    @property
    def may_change(self) -> bool:
        return self.uid in (0, os.geteuid())

    def __str__(self) -> str:
        try:
            name = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            name = f"uid {self.uid}"
        return f"{name}, pid {self.pid}"


@dataclass(frozen=True, slots=True)
class Command:
    """What can be asked for. `answer` gets the peer and the request, and gives one answer or, for as long as the peer
    listens, one after another; it raises LbctlError. None is no answer: it shows whether the peer is still there."""

    answer: Callable[[Peer, Json], Iterator[Answer | None]]
    changes: bool = False


@contextmanager
def listening(instance_dir: Path, commands: Mapping[str, Command], gid: int | None) -> Iterator[None]:
    """Answer at the socket meanwhile. `gid`: the group that may ask. Only for the instance's one agent.

    Raises FilesError.
    """
    server = _bound(instance_dir, gid)
    ended = threading.Event()
    slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            except OSError:  # no descriptors are left; or it is over
                ended.wait(1.0)
                continue
            if slots.acquire(blocking=False):
                threading.Thread(target=attend, args=(connection,), name="control", daemon=True).start()
            else:
                with connection, contextlib.suppress(OSError):
                    _send(connection, {"error": "too many others are asking", "hint": "try again in a moment"})

    def attend(connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                _attend(connection, commands, ended)
        finally:
            slots.release()

    acceptor = threading.Thread(target=accept, name="control", daemon=True)
    acceptor.start()
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            (instance_dir / SOCKET).unlink(missing_ok=True)
        acceptor.join()
        server.close()


def _attend(connection: socket.socket, commands: Mapping[str, Command], ended: threading.Event) -> None:
    """One question and its answers. Raises OSError if the peer is gone or too slow."""
    connection.settimeout(PATIENCE_S)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(credentials)
    peer = Peer(pid, uid)
    try:
        request = _request(connection)
        name = str(request.get("ask"))
        command = commands.get(name)
        if command is None:
            hint = "if it is of another version of lbctl, restart it"
            raise LbctlError(f"this agent doesn't know {name[:40]!r}", hint=hint)
        if command.changes and not peer.may_change:
            raise LbctlError("only root may ask the agent to change something", hint="run as root")
        for answer in command.answer(peer, request):
            if answer is None:
                if _is_gone(connection):
                    return
            else:
                _send(connection, answer)
            if ended.is_set():
                return
    except LbctlError as error:
        _send(connection, {"error": error.message, "hint": error.hint})


def _request(connection: socket.socket) -> Json:
    """Raises LbctlError if it is none."""
    content = b""
    while not content.endswith(b"\n"):
        chunk = connection.recv(4096)
        content += chunk
        if not chunk or len(content) > MAX_REQUEST_BYTES:
            raise LbctlError("this is no question to an agent")
    try:
        request = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LbctlError("this is no question to an agent") from error
    if not isinstance(request, dict):
        raise LbctlError("this is no question to an agent")
    return request


def _send(connection: socket.socket, answer: Answer) -> None:
    line = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    connection.sendall(line + b"\n")


def _is_gone(connection: socket.socket) -> bool:
    """Whether the peer has closed its end, or speaks out of turn."""
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))


def _bound(instance_dir: Path, gid: int | None) -> socket.socket:
    """The socket, listening. It gets its name when owner and mode are right, whatever the umask is."""
    private.make_directory(instance_dir)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with tempfile.TemporaryDirectory(dir=instance_dir, prefix=".control-") as name:
            with _short(Path(name)) as directory:
                server.bind(f"{directory}/{SOCKET}")
            made = Path(name) / SOCKET
            if gid is not None:
                os.chown(made, -1, gid)
            made.chmod(0o600 if gid is None else 0o660)
            server.listen(MAX_CONNECTIONS)
            server.settimeout(0.5)
            made.rename(instance_dir / SOCKET)
        instance_dir.chmod(private.TRAVERSABLE)
    except OSError as error:
        server.close()
        raise FilesError(f"can't listen at {instance_dir / SOCKET}: {error.strerror or error}") from error
    return server


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A name for a directory that fits the address of a socket, which takes 107 bytes."""
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def ask(instance_dir: Path, request: Json, patience_s: float | None = PATIENCE_S) -> Iterator[Json]:
    """The answers of the instance's agent. Raises NoAgentError, LbctlError."""
    name = instance_dir.name
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(patience_s)
        try:
            with _short(instance_dir) as directory:
                connection.connect(f"{directory}/{SOCKET}")
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise LbctlError(str(answer["error"]), hint=str(answer.get("hint", "")))
                    yield answer
        except PermissionError as error:
            hint = "run as root, or join the group that `lbctl run --group` names"
            raise LbctlError(f"you may not ask the agent of instance {name}", hint=hint) from error
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            hint = "`lbctl run DIRECTORY` is the agent; --instance names another one"
            raise NoAgentError(f"no agent runs on instance {name}", hint=hint) from error
        except TimeoutError as error:
            raise LbctlError(f"the agent of instance {name} doesn't answer") from error
        except (OSError, ValueError) as error:
            raise LbctlError(f"the agent of instance {name} can't be asked: {error}") from error


class NoAgentError(LbctlError):
    """No agent runs on the instance."""
