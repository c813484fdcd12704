# SPDX-License-Identifier: Apache-2.0
"""Start other programs so that they load no file of a checkout and heed no variable of the caller.

An interpreter looks for modules in the current directory, in PYTHONPATH and in the user's own site directory;
commands heed their environment. Root calls lbctl within a checkout that anybody may have written to, so a child runs
isolated (`python -I`), in `/`, and with an environment that is made here.

Root that works as the agent's user (`cli.identity`) would start programs without any of its rights: what is executed
with another effective user than root begins with no effective capability (capabilities(7)). So other people's programs
are started as root, which they can give up for good, and modules of this lbctl take their capabilities back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

DIRECTORY = "/"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]
_CAPABILITY_VERSION_3 = 0x20080522
_START = """
import os, runpy, sys
_, root, name, *_ = sys.argv
if root not in sys.path:
    sys.path.insert(0, root)
del sys.argv[:2]
if os.getuid() == 0 != os.geteuid():
    from reconciler import children
    children.take_rights_back()
runpy.run_module(name, run_name="__main__")
"""


def module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this lbctl, wherever it is installed."""
    return [sys.executable, "-I", "-c", _START, str(_PACKAGE_ROOT), name, *arguments]


def script(path: str, *arguments: str) -> list[str]:
    """The command line that runs a Python file that imports nothing of lbctl."""
    return [sys.executable, "-I", path, *arguments]


def caller() -> int | None:
    """The number of the user and of the group that a program of others is started as: root's where root works as
    another user, else None, whoever works here."""
    return 0 if os.getuid() == 0 != os.geteuid() else None


def take_rights_back() -> None:
    """Make all capabilities effective that this process may have. Raises OSError."""
    import ctypes  # 3 ms, which hardly any child needs

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # twice 32 capabilities: effective, permitted, inheritable
    if libc.capget(header, sets) == 0:
        sets[0], sets[3] = sets[1], sets[4]
        if libc.capset(header, sets) == 0:
            return
    raise OSError(ctypes.get_errno(), "can't take capabilities back")


def run(
    argv: Sequence[str], content: bytes = b"", timeout_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; it reads `content`. Raises FileNotFoundError, subprocess.TimeoutExpired."""
    import subprocess  # imported only when a program is started

    return subprocess.run(
        argv, input=content, capture_output=True, check=False, timeout=timeout_s, cwd=DIRECTORY, env=ENVIRONMENT,
        user=caller(), group=caller(),
    )  # fmt: skip
