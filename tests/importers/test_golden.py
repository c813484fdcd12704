# SPDX-License-Identifier: Apache-2.0
"""What becomes of real-world input: `<format>/<case>.*` is the input, `.yaml` and `.warnings` are what it gives.

After a change of what is written: LBCTL_WRITE_EXPECTED=1 pytest tests/importers/test_golden.py, and read the diff.
"""

import importlib
import os
from pathlib import Path

import pytest

from reconciler.importers import FORMATS, emit

HERE = Path(__file__).parent
OUTPUTS = (".yaml", ".warnings")
CASES = sorted(path for name in FORMATS for path in (HERE / name).iterdir() if path.suffix not in OUTPUTS)


def parse(path):
    return importlib.import_module(f"reconciler.importers.{path.parent.name}").parse(path.read_text())


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_becomes_what_is_expected(path):
    imported = parse(path)
    found = {
        ".yaml": emit.text(imported.manifests, path.parent.name),
        ".warnings": "".join(f"{notice.line}: {notice.message}\n" for notice in imported.warnings),
    }
    for suffix, text in found.items():
        expected = path.with_suffix(suffix)
        if os.environ.get("LBCTL_WRITE_EXPECTED"):
            expected.write_text(text)
        assert text == expected.read_text()


def test_every_format_has_cases():
    assert {path.parent.name for path in CASES} == set(FORMATS)
