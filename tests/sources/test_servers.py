# SPDX-License-Identifier: Apache-2.0
"""Fetching from real servers: HTTPS by git's smart protocol and SSH, and those whom nobody vouches for."""

import os
import subprocess

import pytest

from reconciler.config.commit import CommitLoader
from reconciler.config.fetch import Remote, Store
from reconciler.errors import ConfigError
from tests.sources.conftest import MANIFESTS, edited
from tests.sources.servers import https, ssh, sshd

SSHD = sshd()


@pytest.fixture
def keys(tmp_path):
    made = tmp_path / "keys"
    made.mkdir()
    return made


def fetched(store, repository):
    """Fetch two commits; each must be there as a whole."""
    for weight in (2, 3):
        commit = repository.commit(MANIFESTS | edited(weight))
        here = store.fetch()
        assert here.name == commit
        assert f"weight: {weight}" in CommitLoader(here / "lb", commit).load().texts["pools.yaml"]


def test_over_https_with_a_token_and_a_ca_of_ones_own(repository, keys, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("lb1:secret")
    token.chmod(0o600)
    with https(repository.root.parent, keys) as server:
        server.credentials = "lb1:secret"
        url = f"{server.url}/{repository.root.name}/.git"
        repository.commit(MANIFESTS)
        monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)
        with pytest.raises(ConfigError, match="certificate"):
            Store(tmp_path / "state", Remote(url, token=token)).fetch()
        assert server.asked == [], "the token was shown to nobody"
        monkeypatch.setenv("GIT_SSL_CAINFO", str(server.ca))
        fetched(Store(tmp_path / "state", Remote(url, "main", token=token)), repository)
        assert any(asked.startswith("POST") for asked in server.asked)
        with pytest.raises(ConfigError, match="403"):
            Store(tmp_path / "other", Remote(url)).fetch()


@pytest.mark.kernel
@pytest.mark.skipif(SSHD is None or os.geteuid() != 0, reason="there is no sshd, or no root")
def test_over_ssh_with_a_key_and_a_host_that_is_known(repository, keys, tmp_path):
    with ssh(keys, SSHD) as server:
        url = f"{server.url}{repository.root}"
        known = {"key": server.key, "known_hosts": server.known_hosts}
        fetched(Store(tmp_path / "state", Remote(url, "main", **known)), repository)
        with pytest.raises(ConfigError, match=r"failed"):
            Store(tmp_path / "other", Remote(url, key=server.key, known_hosts=tmp_path / "none")).fetch()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "theirs"], check=True)
        with pytest.raises(ConfigError, match=r"failed"):
            Store(tmp_path / "other", Remote(url, key=tmp_path / "theirs", known_hosts=server.known_hosts)).fetch()
