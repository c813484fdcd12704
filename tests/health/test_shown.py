# SPDX-License-Identifier: Apache-2.0
"""What people are shown of a target that flaps: why it is not back although it answers, and when it will be."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from reconciler.cli.get import _for_people
from reconciler.health import roster, store
from reconciler.health.state import Health, State
from reconciler.health.target import asked
from reconciler.model import CheckType, Endpoint, HealthCheck, Pool, Protocol, Service
from reconciler.readings.health import health
from reconciler.render.table import table

RISE_S = 6.0
POOL = Pool("web", (Endpoint(ip_address("10.2.0.1")),), HealthCheck(CheckType.TCP, interval_s=2.0, rise=3))
SERVICE = Service("web", (ip_address("20.20.20.1"),), Protocol.TCP, (80,), "web")


def shown(directory: Path, state: State) -> dict[str, object]:
    of_pool = asked(POOL, (SERVICE,))
    line = POOL, ("web",), of_pool
    roster.Roster(directory / roster.FILE).write({"web": line}, {"web": line})
    ((_, target),) = of_pool[0]
    store.Store(directory / store.FILE, [(target.digest, state)]).close()
    (row,) = health(directory)
    return {name: getattr(row, name) for name in row.__slots__}


@pytest.mark.parametrize(
    ("falls", "streak", "well_s", "left_s"),
    [
        (1, 4, 5.0, None), (2, 0, 0.0, 2 * RISE_S), (2, 4, 5.0, 2 * RISE_S - 5), (3, 1, 0.0, 4 * RISE_S),
        (2, 9, 50.0, 0.0),
    ],
)  # fmt: skip
def test_for_how_long_it_has_to_be_well_yet(tmp_path, falls, streak, well_s, left_s):
    now_s = store.clocks().now_s
    state = State(Health.DOWN, now_s - 60, streak, now_s - well_s if streak else 0.0, now_s, error="refused")
    row = shown(tmp_path / "run", state._replace(falls=tuple(now_s - 60 - number for number in range(falls))))
    found = row["returns_s"]
    assert found is None if left_s is None else left_s - 5 < float(str(found)) <= left_s + 0.1
    (text,) = table([_for_people(row)], ["endpoint", "error"], "").splitlines()[1:]
    assert text.split(None, 1)[1] == (
        "refused" if left_s is None else f"flaps: up if it is well for {found:.0f} s more; refused"
    )
    up = shown(tmp_path / "run", State(Health.UP, falls=(now_s - 1, now_s)))
    assert up["returns_s"] is None
