# SPDX-License-Identifier: Apache-2.0
"""Agents that follow a repository: what they attempt, what they apply, what they say while neither is the newest."""

import signal
import time

import pytest

from reconciler.agent.control import ask
from tests.agent.test_run import PATIENCE_S
from tests.sources.conftest import MANIFESTS, edited, of


@pytest.fixture
def status(tmp_path):
    def call(**expected):
        """The status as soon as it is like that; the agent publishes it after a round."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            told = next(ask(tmp_path / "run" / "lba", {"ask": "status"}))
            if all(told[name] == value for name, value in expected.items()) or time.monotonic() > give_up:
                return told
            time.sleep(0.05)

    return call


def test_a_committed_edit_is_applied_and_one_that_is_not_is_left_alone(repository, lbctl_run, status):
    first = repository.commit(MANIFESTS)
    agent = lbctl_run(repository.root / "lb", "--ref", "main", "--resync", "1h")
    agent.hears("Applied:")
    assert status(sync="Synced")["commit"] == {"attempted": first, "applied": first}
    (repository.root / "lb" / "services.yaml").unlink()
    second = repository.commit(edited(3) | {"lb/services.yaml": MANIFESTS["lb/services.yaml"]})
    agent.hears("~ ring web/round-robin")
    agent.hears("Applied: 0 added, 1 changed, 0 removed")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == 0
    assert second != first


def test_it_fetches_applies_and_keeps_the_node_when_the_newest_commit_may_not_be(
    repository, signers, lbctl_run, status
):
    repository.commit(MANIFESTS)
    first = signers.sign(repository, "ours")
    options = ("--path", "lb", "--allowed-signers", signers.allowed, "--interval", "1s", "--resync", "1h")
    agent = lbctl_run(of(repository), *options)
    agent.hears("Applied:")
    repository.commit(edited(3))
    second = signers.sign(repository, "ours")
    agent.hears("~ ring web/round-robin")
    agent.hears("Applied: 0 added, 1 changed, 0 removed")
    third = repository.commit(edited(4))
    assert "is not signed: it is not used" in agent.hears("source:")
    agent.hears("what was fetched last stays in force")
    agent.process.send_signal(signal.SIGHUP)
    agent.hears("No changes.")
    told = status(sync="Unknown")
    assert told["commit"] == {"attempted": third, "applied": second}
    assert (told["sync"], told["health"]) == ("Unknown", "Degraded")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == 0

    (repository.root / ".git").rename(repository.root / "away")  # and the server is gone, too
    agent = lbctl_run(of(repository), *options)
    agent.hears("source:")
    agent.process.send_signal(signal.SIGHUP)
    agent.hears("No changes.")
    assert status(sync="Unknown", health="Degraded")["commit"]["applied"] == second
    (repository.root / "away").rename(repository.root / ".git")
    signers.sign(repository, "ours")
    agent.hears("source: recovered")
    agent.hears("Applied: 0 added, 1 changed, 0 removed")
    assert (status(sync="Synced")["sync"], first != second) == ("Synced", True)


def test_a_question_about_the_newest_commit_waits_for_it(repository, lbctl_run, tmp_path, status):
    repository.commit(MANIFESTS)
    agent = lbctl_run(of(repository), "--path", "lb", "--interval", "1h", "--resync", "1h")
    agent.hears("Applied:")
    second = repository.commit(edited(3))
    next(ask(tmp_path / "run" / "lba", {"ask": "look"}))
    agent.hears("Applied:")
    assert status(sync="Synced")["commit"] == {"attempted": second, "applied": second}
