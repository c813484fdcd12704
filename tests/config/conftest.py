# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path):
    """Write files (name → text or bytes) into a directory; the result is the directory."""

    def _write(files: dict[str, str | bytes]) -> Path:
        directory = tmp_path / "manifests"
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return directory

    return _write
