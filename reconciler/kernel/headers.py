# SPDX-License-Identifier: Apache-2.0
"""Kernel headers for BCC, as one complete tree.

The data plane needs the headers of user space's interface only, which never change incompatibly, so those of
another kernel version serve as well. Distributions split them over two trees (`common` and one of the
flavour); here they are merged by symbolic links, which takes milliseconds and no space.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reconciler import children
from reconciler.errors import BuildError

_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64", "riscv64": "riscv"}
_ARCHIVE = "sys/kernel/kheaders.tar.xz"
_PREFIX = "headers-"


def find(cache: Path, root: Path = Path("/")) -> Path:
    """A directory with complete headers: the running kernel's own, else those of any installed package.

    Merged or unpacked headers go into `cache`; /lib/modules, /sys and /usr/src are looked for below `root`. Raises
    BuildError, which names the package to install, if there are no headers.
    """
    release = platform.release()
    build = root / "lib/modules" / release / "build"
    trees = _tree(build.resolve(), build.with_name("source").resolve())
    if trees:
        return _merged(trees, cache)
    archive = root / _ARCHIVE
    if not archive.exists() and root == Path("/"):
        _load_archive_module()
    if archive.exists():
        return _unpacked(archive, release, cache)
    installed = next(_installed(root / "usr/src"), None)
    if installed:
        return _merged(installed, cache)
    raise BuildError(
        "no kernel headers: compiling the data plane needs those of any kernel version",
        hint=f"apt install linux-headers-{_debian_architecture()}",
    )


def _tree(flavour: Path, common: Path) -> tuple[Path, ...]:
    """The directories that together make complete headers, the flavour's first; empty if they are not complete."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    if not _is_there(flavour / "arch" / architecture / "include/generated"):
        return ()
    if _is_there(flavour / "include/uapi/linux/bpf.h"):
        return (flavour,)
    return (flavour, common) if _is_there(common / "include/uapi/linux/bpf.h") else ()


def _is_there(path: Path) -> bool:
    """Whether it can be read; systemd hides /lib/modules from services that may load none (ProtectKernelModules)."""
    return os.path.exists(path)  # noqa: PTH110 - which is no error where somebody may not look


def _installed(sources: Path) -> Iterator[tuple[Path, ...]]:
    """Complete headers among the installed packages, the newest first.

    Debian: linux-headers-6.1.0-9-amd64 and -6.1.0-9-common; Ubuntu: -5.15.0-91-generic and -5.15.0-91.
    """
    flavours = sorted(sources.glob("linux-headers-*"), key=lambda path: _natural(path.name), reverse=True)
    for flavour in flavours:
        stem = flavour.name
        while stem := stem.rpartition("-")[0]:
            for common in (f"{stem}-common", stem):
                if trees := _tree(flavour, flavour.with_name(common)):
                    yield trees


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 6.10 after 6.9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _merged(trees: Sequence[Path], cache: Path) -> Path:
    """One directory that shows all trees; where two have the same file, the first wins."""
    if len(trees) == 1:
        return trees[0]
    # An upgrade of the package changes the times of the directories.
    identity = [(str(tree), tree.stat().st_mtime_ns) for tree in trees]
    return _in_cache(cache, repr(identity), lambda target: _link(trees, target))


def _link(trees: Sequence[Path], target: Path) -> None:
    target.mkdir(exist_ok=True)
    names = {entry.name for tree in trees for entry in tree.iterdir()}
    for name in names:
        holders = [tree / name for tree in trees if (tree / name).exists()]
        if len(holders) > 1 and all(holder.is_dir() for holder in holders):
            _link(holders, target / name)
        elif holders:
            (target / name).symlink_to(holders[0])


def _unpacked(archive: Path, release: str, cache: Path) -> Path:
    def unpack(target: Path) -> None:
        with tarfile.open(archive) as tar:
            # Python before 3.11.4 has no filters; the archive is the kernel's own.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
            tar.extractall(target)

    return _in_cache(cache, f"{archive} {release} {platform.version()}", unpack)


def _in_cache(cache: Path, identity: str, fill: Callable[[Path], None]) -> Path:
    """The directory of this identity. It is filled under another name and then renamed, so nobody sees half of it."""
    target = cache / (_PREFIX + hashlib.sha256(identity.encode()).hexdigest()[:16])
    if target.is_dir():
        return target
    for stale in cache.glob(f"{_PREFIX}*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=f".{_PREFIX}", dir=cache) as staging:
        filled = Path(staging) / "tree"
        filled.mkdir()
        fill(filled)
        try:
            filled.rename(target)
        except OSError:
            if not target.is_dir():  # Another process may have been faster; its directory is as good.
                raise
    return target


def _load_archive_module() -> None:
    """Some kernels show their headers only once this module is loaded. It is no error if there is no such module."""
    with contextlib.suppress(FileNotFoundError):
        children.run(["modprobe", "--quiet", "kheaders"])


def _debian_architecture() -> str:
    try:
        return children.run(["dpkg", "--print-architecture"]).stdout.decode().strip()
    except FileNotFoundError:
        return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
