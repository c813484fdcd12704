# SPDX-License-Identifier: Apache-2.0
"""Finding and merging kernel headers, on made-up trees and on this machine's."""

from __future__ import annotations

import errno
import io
import os
import platform
import tarfile
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import BuildError
from reconciler.kernel import headers

UAPI = "include/uapi/linux/bpf.h"
GENERATED = "arch/x86/include/generated/asm/a.h"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "release", lambda: "6.18.0-test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


def tree(path: Path, *files: str) -> Path:
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"{path.name}: {name}")
    return path


def debian(root: Path, version: str, flavour: str = "amd64") -> None:
    sources = root / "usr/src"
    tree(sources / f"linux-headers-{version}-common", UAPI, "include/linux/kernel.h", "Makefile",
         "arch/x86/include/asm/io.h")  # fmt: skip
    tree(sources / f"linux-headers-{version}-{flavour}", GENERATED, "include/generated/autoconf.h", "Makefile")


def test_where_modules_are_hidden_those_of_the_packages_serve(
    root: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a service with ProtectKernelModules."""
    tree(root / "lib/modules/6.18.0-test/build", UAPI, GENERATED)
    debian(root, "6.1.0-9")
    stat = os.stat

    def hidden(path: str | Path, *words: Any, **options: Any) -> os.stat_result:
        if "lib/modules" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *words, **options)

    monkeypatch.setattr(os, "stat", hidden)
    assert (headers.find(store, root) / UAPI).read_text().startswith("linux-headers-6.1.0-9-common")


def test_the_two_trees_of_a_package_are_shown_as_one(root: Path, store: Path) -> None:
    debian(root, "6.1.0-9")
    found = headers.find(store, root)
    assert (found / UAPI).read_text().startswith("linux-headers-6.1.0-9-common")
    assert (found / GENERATED).read_text().startswith("linux-headers-6.1.0-9-amd64")
    assert (found / "include/generated/autoconf.h").exists()
    assert (found / "arch/x86/include/asm/io.h").exists()
    assert (found / "Makefile").read_text().startswith("linux-headers-6.1.0-9-amd64")
    inode = found.stat().st_ino
    assert headers.find(store, root).stat().st_ino == inode, "merged twice"


def test_the_newest_of_several_packages_is_taken_and_others_after_its_removal(root: Path, store: Path) -> None:
    debian(root, "6.9.0-1", "cloud-amd64")
    debian(root, "6.10.0-1")
    newest = headers.find(store, root)
    assert "6.10.0-1-common" in (newest / UAPI).read_text()
    (root / "usr/src/linux-headers-6.10.0-1-common").rename(root / "gone")
    assert "6.9.0-1-common" in (headers.find(store, root) / UAPI).read_text()
    assert not newest.exists(), "a merged tree whose sources are gone stays behind"


def test_a_package_for_another_architecture_is_no_use(root: Path, store: Path) -> None:
    debian(root, "6.1.0-9")
    (root / "usr/src/linux-headers-6.1.0-9-amd64/arch/x86").rename(
        root / "usr/src/linux-headers-6.1.0-9-amd64/arch/arm64"
    )
    with pytest.raises(BuildError):
        headers.find(store, root)


def test_the_running_kernels_headers_come_first_and_another_kernels_build_link_is_ignored(
    root: Path, store: Path
) -> None:
    debian(root, "9.9.9-1")
    other = tree(root / "other", UAPI, GENERATED)
    modules = root / "lib/modules"
    (modules / "6.1.0-9-amd64").mkdir(parents=True)
    (modules / "6.1.0-9-amd64/build").symlink_to(other)
    assert "9.9.9-1" in (headers.find(store, root) / UAPI).read_text()
    own = tree(root / "own", UAPI, GENERATED)
    (modules / "6.18.0-test").mkdir()
    (modules / "6.18.0-test/build").symlink_to(own)
    assert headers.find(store, root) == own


def test_build_and_source_of_the_running_kernel_are_merged(root: Path, store: Path) -> None:
    debian(root, "6.1.0-9")
    modules = root / "lib/modules/6.18.0-test"
    modules.mkdir(parents=True)
    (modules / "build").symlink_to(tree(root / "b", GENERATED))
    (modules / "source").symlink_to(tree(root / "s", UAPI))
    found = headers.find(store, root)
    assert (found / UAPI).read_text() == f"s: {UAPI}"
    assert (found / GENERATED).read_text() == f"b: {GENERATED}"


def test_the_kernels_own_archive_is_unpacked_once(root: Path, store: Path) -> None:
    archive = root / "sys/kernel/kheaders.tar.xz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:xz") as tar:
        entry = tarfile.TarInfo(f"./{UAPI}")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"own"))
    found = headers.find(store, root)
    assert (found / UAPI).read_text() == "own"
    archive.write_bytes(b"")  # It can't be read again.
    assert headers.find(store, root) == found


def test_without_headers_the_package_to_install_is_named(root: Path, store: Path) -> None:
    with pytest.raises(BuildError) as caught:
        headers.find(store, root)
    assert caught.value.hint.startswith("apt install linux-headers-")


def test_this_machine_has_headers(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = headers.find(store)
    assert "BPF_MAP_TYPE_ARRAY_OF_MAPS" in (found / UAPI).read_text()
    assert (found / "include/generated/autoconf.h").exists()
