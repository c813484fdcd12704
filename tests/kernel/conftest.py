# SPDX-License-Identifier: Apache-2.0
"""Namespaces and instances for tests on the real kernel; all of them are removed again."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.kernel import netns
from reconciler.kernel.real import RealKernel

_numbers = itertools.count()


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory; every bpffs that a test mounted below it is unmounted."""
    path = tmp_path / "run"
    path.mkdir()
    yield path
    for pins in path.glob("*/bpf"):
        while os.path.ismount(pins):
            subprocess.run(["umount", pins], check=True)


@pytest.fixture
def kernel(run_dir: Path) -> RealKernel:
    return RealKernel("lbk", run_dir)


@pytest.fixture
def namespace() -> Iterator[str]:
    """The name of an empty network namespace whose loopback is up."""
    name = f"lbk-{os.getpid()}-{next(_numbers)}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


@pytest.fixture
def inside(namespace: str) -> Iterator[str]:
    """Run the test in a namespace of its own."""
    with entered(namespace):
        yield namespace


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        netns.enter(namespace)
        yield
    finally:
        assert netns._libc.setns(home, netns._CLONE_NEWNET) == 0
        os.close(home)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout
