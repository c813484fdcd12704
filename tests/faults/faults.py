# SPDX-License-Identifier: Apache-2.0
"""Calls of the system that fail, one at a time, in a process that goes on."""

import builtins
import contextlib
import errno
import fcntl
import io
import os
import socket
import subprocess
import sys
import tempfile

CALLS = [
    (os, name) for name in (
        "open", "read", "write", "close", "mkdir", "rmdir", "rename", "replace", "unlink", "remove", "stat", "lstat",
        "fstat", "listdir", "scandir", "readlink", "chmod", "fchmod", "fchown", "fsync", "ftruncate", "pipe",
    )
] + [
    (io, "open"), (builtins, "open"), (fcntl, "flock"), (socket, "socket"), (subprocess, "Popen"),
    (tempfile, "mkstemp"), (tempfile, "TemporaryFile"), (os, "fdopen"),
]  # fmt: skip
ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE, errno.EROFS, errno.ENOMEM, errno.EPERM, errno.EPIPE)


class Faults:
    """Within `failing(n)` the n-th call of CALLS raises an OSError, and is not made."""

    def __init__(self, below=None):
        """`below`: only calls that are about files below this directory."""
        self.below = below
        self.count = 0
        self.hit = ""
        self.link = os.readlink

    @contextlib.contextmanager
    def failing(self, number, error):
        self.count, self.hit = 0, ""
        former = [(module, name, getattr(module, name)) for module, name in CALLS]

        def wrapped(module, name, call):
            def stand_in(*args, **kwargs):
                if any(sys._getframe(depth).f_code.co_filename == subprocess.__file__ for depth in range(1, 5)):
                    return call(*args, **kwargs)  # it forgets its child where its own pipes fail
                if self.below and not str(_place(args, self.link)).startswith(str(self.below)):
                    return call(*args, **kwargs)
                self.count += 1
                if self.count == number:
                    self.hit = f"{module.__name__}.{name}{args!r}"
                    if name == "close":  # fails, but closes all the same
                        call(*args, **kwargs)
                    path = args[0] if args and isinstance(args[0], str | os.PathLike) else None
                    raise OSError(error, os.strerror(error), path)
                return call(*args, **kwargs)

            return stand_in

        for module, name, call in former:
            stand_in = wrapped(module, name, call)
            if isinstance(call, type):  # other code asks whether something is one of these
                stand_in = type(name, (call,), {"__init__": wrapped(module, name, call.__init__)})
            setattr(module, name, stand_in)
        try:
            yield
        finally:
            for module, name, call in former:
                setattr(module, name, call)



def _place(args, link):
    """The path that a call is about, or that of the open file that it is about."""
    if args and isinstance(args[0], int):
        try:
            return link(f"/proc/self/fd/{args[0]}")
        except OSError:
            return ""
    return args[0] if args and isinstance(args[0], str | os.PathLike) else ""
