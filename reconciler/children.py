# SPDX-License-Identifier: Apache-2.0
"""Start other programs so that they load no file of a checkout and heed no variable of the caller.

An interpreter looks for modules in the current directory, in PYTHONPATH and in the user's own site directory;
commands heed their environment. Root calls lbctl within a checkout that anybody may have written to, so a child runs
isolated (`python -I`), in `/`, and with an environment that is made here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

DIRECTORY = "/"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]
_START = """
import runpy, sys
_, root, name, *_ = sys.argv
if root not in sys.path:
    sys.path.insert(0, root)
del sys.argv[:2]
runpy.run_module(name, run_name="__main__")
"""


def module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this lbctl, wherever it is installed."""
    return [sys.executable, "-I", "-c", _START, str(_PACKAGE_ROOT), name, *arguments]


def script(path: str, *arguments: str) -> list[str]:
    """The command line that runs a Python file that imports nothing of lbctl."""
    return [sys.executable, "-I", path, *arguments]


def run(
    argv: Sequence[str], content: bytes = b"", timeout_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; it reads `content`. Raises FileNotFoundError, subprocess.TimeoutExpired."""
    import subprocess  # imported only when a program is started

    return subprocess.run(
        argv, input=content, capture_output=True, check=False, timeout=timeout_s, cwd=DIRECTORY, env=ENVIRONMENT
    )
