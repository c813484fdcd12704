# SPDX-License-Identifier: Apache-2.0
"""Where an instance lives: `<run directory>/<name>/bpf`, a bpffs of its own with the pin of its program, and those of
maps by which programs find each other.

A file system of our own because `ip netns exec` and containers hide /sys/fs/bpf. It is mounted when the first
object is pinned and goes with the last.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reconciler import private
from reconciler.errors import FilesError, KernelError, UsageError
from reconciler.kernel import bpf

PROGRAM = "program"
"""The name by which the program is pinned."""

AGENT_LOCK = "agent.lock"
"""The file that the instance's agent has locked; it holds the number of the process."""

PATIENCE_S = 30.0

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BPF_MAGIC = 0xCAFE4A11
_MOUNT_FLAGS = 2 | 4 | 8  # MS_NOSUID, MS_NODEV, MS_NOEXEC
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")  # blanks and the like in it
_NETNS = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


class Instance:
    """One instance's directory and its pins. Nothing is made before something has to be pinned."""

    def __init__(self, name: str, run_dir: Path) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} can't be the name of an instance",
                hint="letters, digits, '_', '-' and '.', not '.' or '-' first",
            )
        self.name = name
        self.directory = run_dir / name
        self.pins = self.directory / "bpf"
        if not self._is_mounted() and (seen := _open_where_the_agent_sees(self.pins)) is not None:
            self.pins = _path_of(seen)
            weakref.finalize(self, os.close, seen)

    def open(self, name: str) -> int | None:
        """A file descriptor of the object pinned by this name, None if there is none."""
        return bpf.open_pin(self.pins / name)

    def pin(self, fd: int, name: str) -> None:
        """Pin an object by this name. It replaces the former pin in one step: the name is never missing.

        Only within `mounted()`.
        """
        temporary = self.pins / f"{name}-new"
        temporary.unlink(missing_ok=True)
        bpf.pin(fd, temporary)
        temporary.rename(self.pins / name)

    def unpin(self, name: str) -> None:
        """Remove a pin; no error if there is none."""
        (self.pins / name).unlink(missing_ok=True)

    def pinned(self) -> list[str]:
        """The names of all pins."""
        if not self._is_mounted():
            return []
        # Some kernels put files of their own into every bpffs; only those have a dot in their names. A directory or a
        # link is somebody else's.
        found = (path for path in self.pins.iterdir() if "." not in path.name)
        return sorted(path.name for path in found if stat.S_ISREG(path.lstat().st_mode))

    def others(self) -> Iterator[Instance]:
        """The other instances that have a bpffs, below this run directory or another one."""
        for path in _mounted_bpffs():
            if path.name == self.pins.name and path != self.pins and _NAME.fullmatch(path.parent.name):
                yield Instance(path.parent.name, path.parents[1])

    def remove(self) -> None:
        """Unmount and remove the directory, with what a killed process had pinned beside a program that never came.
        Raises KernelError if the program is still pinned."""
        if not self.directory.exists():
            return
        with self.locked():
            left = self.pinned()
            if PROGRAM in left:
                raise KernelError(f"instance {self.name} still holds {', '.join(left)}", hint="lbctl delete")
            for name in left:
                self.unpin(name)
            if self._is_mounted() and _libc.umount2(os.fsencode(self.pins), 0) < 0:
                raise KernelError(f"can't unmount {self.pins}: {os.strerror(ctypes.get_errno())}")
            shutil.rmtree(self.directory)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Within this, the bpffs is there and no other process changes what is in it.

        Raises KernelError if it can't be mounted, or would be unmounted as soon as this process ends.
        """
        if not self._is_mounted():
            _refuse_passing_mounts()
        with self.locked():
            if not self._is_mounted():
                self._mount()
            yield

    def _mount(self) -> None:
        private.make_directory(self.pins)
        target, flags = os.fsencode(self.pins), ctypes.c_ulong(_MOUNT_FLAGS)
        if _libc.mount(b"bpf", target, b"bpf", flags, b"mode=0700") < 0:
            raise KernelError(
                f"can't mount a bpffs on {self.pins}: {os.strerror(ctypes.get_errno())}",
                hint="this needs root, and a kernel with CONFIG_BPF_SYSCALL",
            )

    def _is_mounted(self) -> bool:
        return _is_bpffs(self.pins)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from mounting, pinning, unpinning or writing down settings meanwhile.

        The directory is made if it is missing.
        """
        private.make_directory(self.directory)
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchmod(directory, private.TRAVERSABLE)  # former versions made it open to all
            if not private.lock(directory, PATIENCE_S):
                raise KernelError(
                    f"another process has held instance {self.name} for {PATIENCE_S:.0f} seconds",
                    hint=f"look for it with `fuser {self.directory}`",
                )
            yield
        finally:
            os.close(directory)


def _is_bpffs(path: Path) -> bool:
    status = ctypes.create_string_buffer(256)  # struct statfs; the type of the file system comes first
    if _libc.statfs(os.fsencode(path), status) < 0:
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise OSError(number, os.strerror(number), os.fspath(path))
    return ctypes.c_ulong.from_buffer(status).value == _BPF_MAGIC


def _open_where_the_agent_sees(pins: Path) -> int | None:
    """The directory of the pins, open, in the agent's own mounts, which systemd gives to some units; else None.

    An agent that was killed leaves its number behind. Whoever gets that number next decides what lies at a path in
    its mounts, so the process is asked for the agent's file, which only root can have open; and once more
    after the directory is open, which then stays the same one.
    """
    with suppress(FilesError, OSError):
        lock = pins.with_name(AGENT_LOCK)
        pid = (private.read(lock) or b"").strip()
        process = Path(f"/proc/{int(pid)}") if pid.isdigit() else None
        seen = process and process / "root" / pins.absolute().relative_to("/")
        if process and seen and has_open(process, lock) and _is_bpffs(seen):
            directory = os.open(seen, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if _is_bpffs(_path_of(directory)) and has_open(process, lock):
                return directory
            os.close(directory)
    return None


def has_open(process: Path, path: Path) -> bool:
    """Whether a process has a file open. OSError if it has ended, or is not ours to look at."""
    file = path.stat()
    for entry in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.path.samestat(entry.stat(), file):
                return True
    return False


def _path_of(directory: int) -> Path:
    return Path(f"/proc/self/fd/{directory}")


def _mounted_bpffs() -> list[Path]:
    """The places where this process sees a bpffs."""
    found = set()
    for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, (type_, *_) = (part.split() for part in line.partition(" - "))
        if type_ == "bpf":
            found.add(Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])))
    return sorted(found)


def _refuse_passing_mounts() -> None:
    """Raise KernelError within `ip netns exec`: file systems mounted there are unmounted when the command ends.

    Such a command has mounts of its own, among them a /sys whose source is the name of the network namespace.
    """
    for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, (_type, source, *_) = (part.split() for part in line.partition(" - "))
        if fields[4] == "/sys" and source != "sysfs" and (_NETNS / source).exists():
            raise KernelError(
                f"within `ip netns exec {source}` nothing can be pinned: it would be gone with the command",
                hint=f"lbctl --netns {source} …, without `ip netns exec`",
            )
