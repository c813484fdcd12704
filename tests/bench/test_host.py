# SPDX-License-Identifier: Apache-2.0
"""The bench of the host, with few VIPs: that it measures all it should, and leaves nothing behind."""

import os
from pathlib import Path

import pytest

from tests.bench import host


@pytest.mark.kernel
def test_all_figures_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "REPEATS", 2)
    name = f"lbb-host-{os.getpid()}"
    found = list(host.figures(name, tmp_path, vips=20, watched_s=0.5))
    assert [text for text in found if isinstance(text, str)] == []
    assert [f.what.strip().split(":")[-1].split("second")[-1].strip() for f in found] == [
        "drain written → withdrawn", "the agent's CPU for it", "VIP removed by hand → there again", "share of a core",
    ]  # fmt: skip
    assert all(f.value > 0 for f in (found[0], found[2]))
    assert not list(Path("/run/netns").glob(f"{name}*"))
