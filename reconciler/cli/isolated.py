# SPDX-License-Identifier: Apache-2.0
"""The command of an installation: runs lbctl in an isolated interpreter (`-I`).

The installer's script starts an interpreter without that option and calls this. So only this file is imported before
the interpreter is started again, isolated.
"""

import os
import sys


def command(arguments: list[str]) -> list[str]:
    """The command line that runs lbctl isolated."""
    return [sys.executable, "-I", "-m", f"{__package__}.main", *arguments]


def main() -> None:
    """Run lbctl in the place of this process."""
    os.execv(sys.executable, command(sys.argv[1:]))
