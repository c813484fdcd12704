# SPDX-License-Identifier: Apache-2.0
"""Other programs, started so that nobody's files get into them.

An interpreter looks for modules in the current directory, in PYTHONPATH and in the user's own site directory;
commands look into their environment. lbctl is called as root within a checkout that anybody may have written to,
so a child runs isolated (`python -I`), in `/`, and with an environment that is made here.
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
    """The command line that runs a module of this very lbctl, wherever that lies."""
    return [sys.executable, "-I", "-c", _START, str(_PACKAGE_ROOT), name, *arguments]


def script(path: str, *arguments: str) -> list[str]:
    """The command line that runs a Python file which needs nothing of lbctl."""
    return [sys.executable, "-I", path, *arguments]


def run(
    argv: Sequence[str], content: bytes = b"", timeout_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; it reads `content`. Raises FileNotFoundError, subprocess.TimeoutExpired."""
    import subprocess  # only those who start something pay for this import

    return subprocess.run(
        argv, input=content, capture_output=True, check=False, timeout=timeout_s, cwd=DIRECTORY, env=ENVIRONMENT
    )
