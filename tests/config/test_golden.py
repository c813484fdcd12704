# SPDX-License-Identifier: Apache-2.0
"""What users read about broken manifests: `broken/<case>/` holds them, its `expected.txt` the whole output.

After a change of messages: LBCTL_WRITE_EXPECTED=1 pytest tests/config/test_golden.py, and read the diff.
"""

import os
from pathlib import Path

import pytest

from reconciler.config.diagnostic import Severity, render_text
from reconciler.config.load import load

CASES = sorted(path for path in (Path(__file__).parent / "broken").iterdir() if path.is_dir())


@pytest.mark.parametrize("directory", CASES, ids=lambda path: path.name)
def test_message_is_as_expected(directory):
    loaded = load(directory)
    text = render_text(loaded.diagnostics, loaded.texts).replace(str(directory), "DIRECTORY") + "\n"
    expected = directory / "expected.txt"
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        expected.write_text(text)
    assert text == expected.read_text()
    assert (loaded.fleet is None) == any(d.severity is Severity.ERROR for d in loaded.diagnostics)


def test_every_case_has_a_problem():
    assert [case.name for case in CASES if not (case / "expected.txt").read_text().strip()] == []
