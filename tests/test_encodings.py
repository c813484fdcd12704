# SPDX-License-Identifier: Apache-2.0
"""No text is read or written as the locale would have it: the same files mean the same on every node."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = [CHECKOUT / "lbctl", *sorted((CHECKOUT / "reconciler").rglob("*.py"))]
IN_TEXT = {"read_text", "write_text", "open", "fdopen", "TextIOWrapper", "NamedTemporaryFile", "TemporaryFile"}
BINARY_BY_DEFAULT = {"NamedTemporaryFile", "TemporaryFile"}
CHILDREN = {"run", "Popen", "check_output"}
NOT_FILES = {"os.open", "tarfile.open", "private.open"}


def depends_on_locale(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in CHILDREN:
        return bool({"text", "universal_newlines", "errors"} & given.keys())
    if name not in IN_TEXT or ast.unparse(call.func) in NOT_FILES:
        return False
    texts = [node.value for node in [*call.args, given.get("mode")] if isinstance(node, ast.Constant)]
    if any(isinstance(text, str) and "b" in text and set(text) <= set("rwxab+") for text in texts):
        return False
    if name in ("read_text", "write_text"):
        return True
    if name in BINARY_BY_DEFAULT:
        return "mode" in given
    # Methods named `open` of other things take other arguments; a file's first is its mode, or there is none.
    return name != "open" or isinstance(call.func, ast.Name) or any(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_text_file_is_opened_with_its_encoding(path):
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    assert [f"line {call.lineno}: {ast.unparse(call)}" for call in calls if depends_on_locale(call)] == []


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8"}],
    ids=["C", "ASCII", "UTF-8"],
)
def test_the_program_is_the_same_in_every_locale(environment):
    code = (
        "import hashlib; from reconciler.dataplane.program import source;"
        "from reconciler.config.schema import load_schema;"
        "print(hashlib.sha256((source() + str(load_schema('Service'))).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=CHECKOUT, env=os.environ | variables, capture_output=True, check=True
        ).stdout
        for variables in (environment, {"PYTHONUTF8": "1"})
    }
    assert len(found) == 1
