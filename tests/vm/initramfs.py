# SPDX-License-Identifier: Apache-2.0
"""The archive that the kernel boots from: busybox, the modules that reach the host's files, the first script."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

_NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
"""Modules without which there is no root file system."""
_DIRECTORIES = ("bin", "dev", "host", "modules", "proc", "root", "sys", "writable")


def initramfs(busybox: Path, modules: Path, script: Path, settings: Mapping[str, str]) -> bytes:
    """The archive. `modules` is a directory of /lib/modules; `script` becomes /init and finds /settings."""
    lines = "".join(f"{name}={_quoted(value)}\n" for name, value in settings.items())
    entries = [
        *(_entry(name, stat.S_IFDIR | 0o755) for name in _DIRECTORIES),
        _entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        _entry("init", stat.S_IFREG | 0o755, script.read_bytes()),
        _entry("settings", stat.S_IFREG | 0o644, lines.encode()),
    ]
    for number, path in enumerate(_with_dependencies(_NEEDED, modules)):
        name = f"modules/{number:02}-{path.name}"  # In the order in which they can be loaded.
        entries.append(_entry(name, stat.S_IFREG | 0o644, path.read_bytes()))
    return b"".join([*entries, _entry("TRAILER!!!", 0)])


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _with_dependencies(names: Iterable[str], modules: Path) -> list[Path]:
    """The files of modules, each after those that it needs. Raises KeyError."""
    needs = {
        path: needed.split()
        for path, _, needed in (line.partition(":") for line in (modules / "modules.dep").read_text().splitlines())
    }
    by_name = {Path(path).stem.replace("-", "_"): path for path in needs}
    ordered: dict[str, None] = {}

    def add(path: str) -> None:
        for needed in needs[path]:
            add(needed)
        ordered[path] = None

    for name in names:
        add(by_name[name])
    return [modules / path for path in ordered]


def _entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """A file in the "newc" format of cpio: Documentation/driver-api/early-userspace/buffer-format.rst."""
    path = name.encode() + b"\0"
    inode, uid, gid, links, changed, check = 0, 0, 0, 1, 0, 0
    fields = (inode, mode, uid, gid, links, changed, len(content), 0, 0, 0, 0, len(path), check)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return _padded(head) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
