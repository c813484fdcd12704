# SPDX-License-Identifier: Apache-2.0
"""The soak, for some seconds: `make soak` is the same for ten minutes."""

import os
from pathlib import Path

import pytest

from tests.soak.soak import check, run

pytestmark = pytest.mark.kernel


def test_edits_deaths_drains_damage_and_restarts_break_nothing_but_what_died(tmp_path: Path) -> None:
    report = run(8.0, 3, tmp_path, f"lbs-{os.getpid()}")
    check(report)
    assert report.requests > 50
    assert report.done.total() >= 10
