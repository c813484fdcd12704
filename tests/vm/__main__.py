# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.vm [ARGUMENTS OF PYTEST]`: run tests on Debian's kernel. `make test-vm` does so with none."""

from __future__ import annotations

import os
import shutil
import sys

from reconciler.errors import LbctlError
from tests.packets.test_layout import SETS_OF_FEATURES
from tests.vm.machine import CHECKOUT, STORE, release, run, say

CACHE = STORE / "cache"
DEFAULT = (
    "tests/vm",
    "tests/packets/test_layout.py",
)
"""What is run unless asked for something else."""


def main(arguments: list[str]) -> int:
    if os.geteuid():
        raise LbctlError("the tests that run in the virtual machine need root, here too", hint="sudo make test-vm")
    os.environ["LBCTL_CACHE_DIR"] = str(CACHE)
    _compile()
    say(f"Booting Debian's kernel {release()} under software emulation")
    environment = {
        "LBCTL_TEST_VM": release(),
        "LBCTL_CACHE_DIR": str(CACHE),
        "COLUMNS": str(shutil.get_terminal_size().columns),
    }
    colour = "yes" if sys.stdout.isatty() else "no"
    pytest = [sys.executable, "-m", "pytest", f"--color={colour}", *(arguments or DEFAULT)]
    return run(pytest, environment)


def _compile() -> None:
    """Compile here what the guest will load: there it would take half a minute each."""
    from reconciler.kernel.build import build

    say(f"Compiling {len(SETS_OF_FEATURES)} sets of features of the data plane")
    for features in SETS_OF_FEATURES:
        build(features)


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    try:
        sys.exit(main(sys.argv[1:]))
    except LbctlError as error:
        sys.exit(str(error))
