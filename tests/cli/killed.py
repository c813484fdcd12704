# SPDX-License-Identifier: Apache-2.0
"""Verbs in a child of the test, and a change of the test's choice before which the child is killed, as by SIGKILL with
nothing cleaned up, or which fails."""

import ctypes
import os
import struct
import sys
import traceback
from pathlib import Path

from reconciler.cli.main import main
from reconciler.kernel import bpf, instance, netlink
from reconciler.kernel.bpf import Command

KILLED = 137
_READS = {
    Command.MAP_LOOKUP_ELEM, Command.OBJ_GET, Command.PROG_GET_FD_BY_ID, Command.MAP_GET_FD_BY_ID,
    Command.OBJ_GET_INFO_BY_FD, Command.MAP_LOOKUP_BATCH,
}  # fmt: skip
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


class Changes:
    """Counts what a process changes, in the kernel and in files. Before change number `last` it ends the process, or,
    with an errno, has that change fail."""

    def __init__(self, last: int | None, fault: int | None) -> None:
        self.count = 0
        self._last, self._fault = last, fault

    def next(self) -> None:
        """Count one. Raises the fault, if it is this one's turn."""
        self.count += 1
        if self.count - 1 == self._last:
            if self._fault is None:
                os._exit(KILLED)
            raise OSError(self._fault, os.strerror(self._fault))

    def _fails(self) -> bool:
        """The same for functions of C: whether this one fails; errno says how."""
        try:
            self.next()
        except OSError as fault:
            ctypes.set_errno(fault.errno)
            return True
        return False

    def watch(self) -> None:
        syscall, mount, umount = bpf._libc.syscall, instance._libc.mount, instance._libc.umount2
        change = netlink.Route.change

        def counted_syscall(number, command, *rest):
            if command.value not in _READS and self._fails():
                return -1
            return syscall(number, command, *rest)

        def counted(function):
            def call(*arguments):
                return -1 if self._fails() else function(*arguments)

            return call

        def counted_changes(route, messages):
            try:
                if messages:
                    self.next()
            except OSError as fault:
                return [fault] * len(messages)
            return change(route, messages)

        def audit(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in _CHANGES or (writes and str(arguments[0]) != os.devnull):
                self.next()

        bpf._libc.syscall = counted_syscall
        instance._libc.mount, instance._libc.umount2 = counted(mount), counted(umount)
        netlink.Route.change = counted_changes
        sys.addaudithook(audit)


def lbctl(*words, killed_before=None, fault=None, log: Path):
    """Run a verb; returns its exit code and how many changes it made."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            changes = Changes(killed_before, fault)
            changes.watch()
            code = main([str(word) for word in words])
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(writing, struct.pack("=I", changes.count))
            os._exit(code)
        except BaseException:  # noqa: BLE001 - the child of a fork must not go on as the test
            traceback.print_exc()
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), struct.unpack("=I", told)[0] if told else None
