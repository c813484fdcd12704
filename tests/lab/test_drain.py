# SPDX-License-Identifier: Apache-2.0
"""Drains of real endpoints under load, beside an agent and without one: nothing new, nothing lost, and who says so."""

import json
from ipaddress import IPv4Address

import pytest

from reconciler.lab.build import wait_until

from .web import PATIENCE_S, VIP, Web, addresses

pytestmark = pytest.mark.kernel

FIRST, SECOND, THIRD = addresses(3)
CHECK = "{type: http, interval: 500ms, timeout: 300ms, fall: 2}"


def rows(site: Web, *what: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(site.lbctl("get", *what, "-o", "json"))["items"]
    return found


def homes(outcomes) -> dict[str, set[IPv4Address]]:
    """Who answered each connection, by the client's address."""
    found: dict[str, set[IPv4Address]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.source, set()).add(IPv4Address(outcome.endpoint.rpartition(":")[0]))
    return found


def test_a_drain_beside_an_agent(start_web):
    site = start_web("nat", CHECK)
    kept = site.lab.load(VIP, 80, requests_per_connection=0, concurrency=9, rate=45, clients=9, timeout_s=10)
    wait_until("connections are open", lambda: len(kept.outcomes()) > 18, PATIENCE_S)
    said = site.lbctl("drain", str(FIRST), "--reason", "new disk")
    assert said == f"{FIRST} is drained\n"
    assert site.members() == {SECOND, THIRD}
    assert site.answering() == {SECOND, THIRD}
    site.await_said(f"because: {FIRST} is drained by root: new disk")
    assert "No changes." in site.plan()
    site.apply()
    assert site.members() == {SECOND, THIRD}
    (drain,) = rows(site, "drains")
    assert (drain["endpoint"], drain["pool"], drain["by"], drain["reason"]) == (str(FIRST), "all", "root", "new disk")
    (row,) = [row for row in rows(site, "endpoints") if row["endpoint"] == str(FIRST)]
    assert (row["state"], row["health"], row["shares"]) == ("draining", "up", [])
    assert (row["pools"], row["services"]) == ([{"pool": "web", "weight": 1}], [f"{VIP}:80/tcp"])
    assert row["open"]

    late = site.lab.lbctl("drain", str(FIRST), "--deadline", "1s", "--wait")
    assert late.returncode == 3, late.stdout + late.stderr
    assert "the deadline has passed" in late.stdout
    outcomes = kept.stop()
    lost = {outcome.source for outcome in outcomes if outcome.error}
    answered = homes(outcome for outcome in outcomes if not outcome.error)
    assert lost <= {source for source, ends in answered.items() if FIRST in ends}  # ended at the deadline, no others
    done = site.lab.lbctl("drain", str(FIRST), "--wait", timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "drained after" in done.stdout
    refused = site.lab.lbctl("drain", f"web/{SECOND}", "--wait")
    assert refused.returncode == 0, refused.stderr
    refused = site.lab.lbctl("drain", f"web/{THIRD}")
    assert refused.returncode == 1
    assert "pool web would be left with 0 of 1 endpoints, and needs 1" in refused.stderr
    site.lbctl("undrain", str(FIRST))
    site.lbctl("undrain", f"web/{SECOND}")
    site.await_members(FIRST, SECOND, THIRD)
    site.await_said(f"because: the drain of {FIRST} is over")
    assert rows(site, "drains") == []
    history = rows(site, "health", "--history")
    assert {row["state"] for row in history} == {"up"}
    assert {row["endpoint"]: row["state"] for row in rows(site, "health")} == {
        str(address): "up" for address in (FIRST, SECOND, THIRD)
    }


def test_what_is_drained_stays_drained_without_an_agent(start_web):
    site = start_web("dsr-l2")
    site.await_said("No changes.")
    site.agent.terminate()
    site.agent.wait(PATIENCE_S)
    said = site.lbctl("drain", "e12")  # a Node
    assert said == f"{SECOND} is drained\nNo agent runs here: `lbctl apply` takes it out.\n"
    assert f"because: {SECOND} is drained by root" in site.plan()
    site.apply()
    assert site.members() == {FIRST, THIRD}
    unknown = site.lab.lbctl("drain", "e122")
    assert unknown.returncode == 2
    assert "did you mean 'e12'" in unknown.stderr
    unknown = site.lab.lbctl("undrain", str(FIRST))
    assert unknown.returncode == 1
