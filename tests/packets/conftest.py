# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from reconciler.dataplane import program
from reconciler.kernel import bpf
from reconciler.kernel.real import RealKernel
from tests.packets.balancer import FEATURES, Balancer, namespace


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """The program with all features, loaded once."""
    name = f"lbp-{os.getpid()}"
    kernel = RealKernel(name, tmp_path_factory.mktemp("lbp-run"))
    try:
        kernel.load_program(program.program_name(FEATURES), FEATURES)
        handle = kernel.loaded_program()
        assert handle
        descriptor = bpf.open_program(handle.id)
        assert descriptor
        with bpf.closing(descriptor), namespace(name):
            yield Balancer(kernel, descriptor, name)
    finally:
        kernel.unload_program()
        kernel.remove_instance()


@pytest.fixture
def balancer(loaded: Balancer) -> Iterator[Balancer]:
    """A balancer that knows nothing yet."""
    yield loaded
    loaded.clear()
