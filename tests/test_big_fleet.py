# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from reconciler.config.load import load
from tests import big_fleet


@pytest.mark.parametrize("services", (1, 10, 25))
def test_files_say_what_the_model_has(tmp_path, services):
    big_fleet.write(tmp_path, services)
    loaded = load(tmp_path)
    assert not loaded.diagnostics
    assert replace(loaded.fleet, digest="") == big_fleet.fleet(services)
    assert len(list(tmp_path.iterdir())) == 1 + -(-services // big_fleet.SERVICES_A_FILE)


def test_no_address_is_given_twice():
    fleet = big_fleet.fleet(1000)
    addresses = [vip for service in fleet.services for vip in service.vips]
    addresses += [endpoint.address for pool in fleet.pools for endpoint in pool.endpoints]
    assert len(set(addresses)) == len(addresses) == 11_000


def test_an_edit_changes_one_weight(tmp_path):
    big_fleet.write(tmp_path, 25)
    before = load(tmp_path).fleet
    big_fleet.edit(tmp_path, 25, {(24, 9): 77})
    after = load(tmp_path).fleet
    endpoints = [(b, a) for one, other in zip(before.pools, after.pools, strict=True)
                 for b, a in zip(one.endpoints, other.endpoints, strict=True)]  # fmt: skip
    assert [(b.address, a.weight) for b, a in endpoints if b != a] == [(big_fleet.endpoint(24, 9), 77)]
