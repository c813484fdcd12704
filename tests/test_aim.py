# SPDX-License-Identifier: Apache-2.0
"""A plan that is aimed at something holds this and what it needs, and nothing else."""

from pathlib import Path

import pytest

from reconciler.aim import aimed, narrowed
from reconciler.config.load import load
from reconciler.errors import UsageError
from reconciler.plan import plan
from reconciler.reconcile import desired_of
from reconciler.resource import Live
from tests.agent.conftest import NODE, POOLS, SERVICES
from tests.strategies import fake_source


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)
    (Path(tmp_path) / "all.yaml").write_text("---\n".join((NODE, SERVICES, POOLS)))
    return load(tmp_path).fleet


def plans(fleet, *targets, live=None):
    whole = plan(desired_of(fleet, None, Live()), live or Live())
    return whole, narrowed(whole, aimed(targets, whole, fleet), {})


def addresses(planned):
    return [str(change.key) for change in planned.changes]


def test_a_service_comes_with_its_vip_its_ring_and_the_node_below_it(fleet):
    whole, part = plans(fleet, "service/web")
    names = {"service 20.20.20.1:80/tcp", "loopback 20.20.20.1", "ring web/round-robin", "endpoint 10.2.0.1:8080"}
    assert names < set(addresses(part))
    left = set(addresses(whole)) - set(addresses(part))
    assert {name for name in left if "mail" in name or "20.20.20.2" in name or "10.2.0.3" in name} == left
    assert len(left) == 5
    assert part.changes == tuple(change for change in whole.changes if str(change.key) not in left)
    assert all(need in part.keys for key in part.keys for need in whole.desired.resources[key].needs)


def test_a_pool_is_its_rings_and_their_endpoints(fleet):
    _, part = plans(fleet, "pool/mail")
    names = set(addresses(part))
    assert {"ring mail/source-hash", "endpoint 10.2.0.3:2525"} < names
    assert not any(name.startswith(("service", "loopback")) for name in names)


def test_what_no_manifest_asks_for_goes_only_if_it_is_named_as_in_a_plan(fleet):
    whole, _ = plans(fleet, "service/web")
    live = Live(dict(whole.desired.resources))
    smaller = desired_of(fleet, None, Live()).resources
    gone = next(key for key in smaller if str(key) == "service 20.20.20.2:25/tcp")
    rest = {key: r for key, r in smaller.items() if key != gone}
    after = plan(whole.desired.__class__(rest, whole.desired.node), live)
    assert addresses(narrowed(after, aimed(["service/web"], after, fleet), {})) == []
    assert addresses(narrowed(after, aimed([str(gone)], after, fleet), {})) == [str(gone)]


@pytest.mark.parametrize(("target", "hint"), [
    ("service/wep", "did you mean 'service/web'?"), ("pool/mial", "did you mean 'pool/mail'?"),
    ("ring web/round-robn", "did you mean 'ring web/round-robin'?"), ("\x1b[1m", "name service/NAME"), ("", "name "),
])  # fmt: skip
def test_a_target_that_there_is_not_is_refused_with_the_nearest(fleet, target, hint):
    with pytest.raises(UsageError) as caught:
        plans(fleet, target)
    assert hint in caught.value.hint
    assert "\x1b" not in caught.value.message
