# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.packets.balancer import FEATURES, Balancer, loaded_balancer


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """The program with all features, loaded once."""
    with loaded_balancer(tmp_path_factory.mktemp("lbp-run"), f"lbp-{os.getpid()}", FEATURES) as made:
        yield made


@pytest.fixture
def balancer(loaded: Balancer) -> Iterator[Balancer]:
    """A balancer that knows nothing yet."""
    yield loaded
    loaded.clear()
