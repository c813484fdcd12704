# SPDX-License-Identifier: Apache-2.0
import subprocess

import pytest

from tests.agent.conftest import NODE, POOLS, SERVICES
from tests.agent.test_run import lbctl_run
from tests.diff.conftest import Repository, repository

__all__ = ["lbctl_run", "repository"]
MANIFESTS = {"lb/node.yaml": NODE, "lb/services.yaml": SERVICES, "lb/pools.yaml": POOLS}


class Signers:
    """Two keys, of which one is allowed; `allowed` is the file that says so."""

    def __init__(self, directory):
        self.directory = directory
        self.allowed = directory / "allowed"
        for name in ("ours", "theirs"):
            key = directory / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=60)
        kind, key = (directory / "ours.pub").read_text().split()[:2]
        self.allowed.write_text(f'ops@example.org namespaces="git" {kind} {key}\n')

    def sign(self, repository, name):
        """Have the last commit of a repository signed by a key; the hash that it gets."""
        key = f"user.signingKey={self.directory / name}"
        words = ("commit", "-q", "--amend", "--no-edit", "--allow-empty", "-S")
        repository.git("-c", "gpg.format=ssh", "-c", key, *words)
        return repository.git("rev-parse", "HEAD").strip()


@pytest.fixture
def signers(tmp_path):
    directory = tmp_path / "keys"
    directory.mkdir()
    return Signers(directory)


def edited(weight):
    """The manifests with another weight of the first endpoint."""
    return {"lb/pools.yaml": POOLS.replace("weight: 2", f"weight: {weight}")}


def of(repository: Repository) -> str:
    return f"file://{repository.root}"
