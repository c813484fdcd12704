# SPDX-License-Identifier: Apache-2.0
"""What becomes of real-world input: `<format>/<case>.*` is the input, `.yaml` and `.warnings` are what it gives.

After a change of what is written: LBCTL_WRITE_EXPECTED=1 pytest tests/importers/test_golden.py, and read the diff.
"""

import importlib
import os
from pathlib import Path

import pytest

from reconciler.importers import FORMATS, emit
from reconciler.importers.keepalived_include import reader_for

HERE = Path(__file__).parent
OUTPUTS = (".yaml", ".warnings")
CASES = sorted(
    path for name in FORMATS for path in (HERE / name).iterdir() if path.is_file() and path.suffix not in OUTPUTS
)


def parse(path):
    parse_text = importlib.import_module(f"reconciler.importers.{path.parent.name}").parse
    if path.parent.name == "keepalived":
        include = reader_for(path, lambda name, content: content.decode(), 1 << 20)
        return parse_text(path.read_text(), include)
    return parse_text(path.read_text())


def shown(notice):
    return f"{notice.file}:{notice.line}" if notice.file else notice.line


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_becomes_what_is_expected(path):
    imported = parse(path)
    found = {
        ".yaml": emit.text(imported.manifests, path.parent.name),
        ".warnings": "".join(f"{shown(notice)}: {notice.message}\n" for notice in imported.warnings),
    }
    for suffix, text in found.items():
        expected = path.with_suffix(suffix)
        if os.environ.get("LBCTL_WRITE_EXPECTED"):
            expected.write_text(text)
        assert text == expected.read_text()


def test_every_format_has_cases():
    assert {path.parent.name for path in CASES} == set(FORMATS)
