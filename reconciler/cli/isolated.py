# SPDX-License-Identifier: Apache-2.0
"""The command of an installation: runs lbctl in an isolated interpreter (`-I`).

The installer's script starts an interpreter without that option and calls this. So only this file is imported before
the interpreter is started again, isolated.
"""

import os
import sys


def main() -> None:
    """Run lbctl in the place of this process."""
    os.execv(sys.executable, [sys.executable, "-I", "-m", "reconciler.cli.main", *sys.argv[1:]])
