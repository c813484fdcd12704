# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load


@pytest.fixture
def write(tmp_path):
    """Write files (name → text) into a directory; the result is the directory."""

    def _write(files):
        directory = tmp_path / "manifests"
        for name, text in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return directory

    return _write


@pytest.fixture
def problems(write):
    """Load files for an environment; the result is (file, line, rule, message) of each problem."""

    def _problems(files, env=None):
        found = load(write(files), env).diagnostics
        return [(d.span.file, d.span.line, d.rule, d.message) for d in found]

    return _problems
