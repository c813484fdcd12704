# SPDX-License-Identifier: Apache-2.0
"""The command that an installation makes: lbctl in an interpreter that is isolated (`-I`).

What calls this was started by the installer's script, which knows no such option. So nothing but this file is
imported before the interpreter is started again.
"""

import os
import sys


def main() -> None:
    """Run lbctl in the place of this process."""
    os.execv(sys.executable, [sys.executable, "-I", "-m", "reconciler.cli.main", *sys.argv[1:]])
