# SPDX-License-Identifier: Apache-2.0
"""What people got wrong with other load balancers, and what lbctl says to it: see README.md.

After a change of messages: LBCTL_WRITE_EXPECTED=1 pytest tests/config/mistakes, and read the diff.
"""

import os
import re
from pathlib import Path

import pytest

from reconciler.config.diagnostic import render_text
from reconciler.config.load import load

HERE = Path(__file__).parent
CASES = sorted(path for path in HERE.iterdir() if (path / "fleet.yaml").exists())
TABLE = (HERE / "README.md").read_text()
ROWS = {row[1]: row[0] for row in re.finditer(r"^\| \[([0-9a-z-]+)\]\(\1/fleet\.yaml\) .*$", TABLE, re.MULTILINE)}


@pytest.mark.parametrize("directory", CASES, ids=lambda path: path.name)
def test_mistake_is_told(directory):
    loaded = load(directory)
    text = render_text(loaded.diagnostics, loaded.texts) + "\n"
    expected = directory / "expected.txt"
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        expected.write_text(text)
    assert text == expected.read_text()
    assert loaded.diagnostics


@pytest.mark.parametrize("directory", CASES, ids=lambda path: path.name)
def test_table_holds_the_message(directory):
    """The message stands in the table as it is printed, with its rule."""
    _, _, _, message, _ = ROWS[directory.name].split(" | ")
    said = re.fullmatch(r"(`+ ?)(.+?) ?`+ `(\[.+\])`", message)
    assert f": {said[2]} {said[3]}\n" in (directory / "expected.txt").read_text()


def test_table_has_a_row_for_each_case_and_no_other():
    assert sorted(ROWS) == [case.name for case in CASES]
