# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from reconciler.limits import Sizes
from tests.packets import fullnat
from tests.packets.balancer import FEATURES, Balancer, loaded_balancer
from tests.packets.fullnat import FOUR, SIX, Family


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


@pytest.fixture(scope="session")
def loaded_fullnat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """The program with what fullnat has, and a small table."""
    run_dir, name = tmp_path_factory.mktemp("lbf-run"), f"lbf-{os.getpid()}"
    with loaded_balancer(run_dir, name, fullnat.FEATURES, Sizes(flows=4_000)) as made:
        yield made


@pytest.fixture(params=[FOUR, SIX], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def fullnat_balancer(loaded_fullnat: Balancer, family: Family) -> Iterator[Balancer]:
    """A balancer with a source and an endpoint of this version of IP, and no service yet."""
    loaded_fullnat.sources(family.sources[0])
    loaded_fullnat.endpoint(family.ids[0])
    yield loaded_fullnat
    loaded_fullnat.clear()
