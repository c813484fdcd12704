# SPDX-License-Identifier: Apache-2.0
"""A pool of which nobody is healthy any more, with real clients: another pool serves, or nobody does; and a node whose
own link is down blames no endpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.lab.build import wait_until
from reconciler.lab.topology import SWITCH

from .conftest import LabMaker, WebMaker
from .web import PATIENCE_S, VIP, Web, addresses, manifests, written

pytestmark = pytest.mark.kernel

FIRST, SECOND, SORRY = addresses(3)
CHECK = "{type: http, interval: 500ms, timeout: 300ms, fall: 2}"
DROP = "whenNoneHealthy: drop"
FALLBACK = "whenNoneHealthy: fallback\n  fallbackPool: sorry"
SORRY_POOL = f"""\
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: sorry}}
spec: {{endpoints: [{{address: {SORRY}}}]}}
"""


def test_another_pool_serves_while_nobody_is_healthy_or_nobody_does(start_lab: LabMaker, tmp_path: Path) -> None:
    fallback, drop = (manifests((FIRST, SECOND), "nat", CHECK, pool=choice) for choice in (FALLBACK, DROP))
    fleet = written(tmp_path / "manifests", fallback + SORRY_POOL)
    site = Web(start_lab(fleet, node_name="lb1", spares=[SORRY]), tmp_path / "manifests", tmp_path / "log")
    site.start()
    site.await_up(FIRST, SECOND)
    assert site.answering() == {FIRST, SECOND}
    for address in (FIRST, SECOND):
        site.lab.servers[address].kill()
    site.await_members(SORRY)
    assert site.answering() == {SORRY}
    site.await_said("AllUnhealthy: pool web, 0 healthy")
    assert "No changes." in site.plan()
    site.serve_again(FIRST)
    site.await_members(FIRST)
    assert site.answering() == {FIRST}
    site.await_said("pool web has enough healthy endpoints again")

    site.write(drop)
    wait_until("the edit is heeded", lambda: "No changes." in site.plan(), PATIENCE_S)
    site.lab.servers[FIRST].kill()
    site.await_members()
    outcomes = site.lab.load(VIP, 80, count=4, timeout_s=1).wait()
    assert [bool(outcome.error) for outcome in outcomes] == [True] * 4
    site.serve_again(SECOND)
    site.await_members(SECOND)
    assert site.answering() == {SECOND}


def test_a_node_whose_link_is_down_blames_no_endpoint(start_web: WebMaker) -> None:
    site = start_web("nat", CHECK)
    link = site.lab.topology.link("lb1", "back")
    site.lab.run(SWITCH, "ip", "link", "set", link.port, "down")
    site.await_said("CheckerSuspect: ")
    assert site.members() == {*addresses(3)}
    assert " is down: http check" not in site.log.read_text().partition("CheckerSuspect: ")[0]
    site.lab.run(SWITCH, "ip", "link", "set", link.port, "up")
    site.await_said("This node does not suspect itself any more.")
    site.await_up(*addresses(3))
    assert site.answering() == {*addresses(3)}
