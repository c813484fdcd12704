# SPDX-License-Identifier: Apache-2.0
"""Prints the effective user and capabilities of this process: what children of root are seen by."""

import os
from pathlib import Path


def effective() -> str:
    """The effective capabilities, as the kernel writes them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(line.split()[1] for line in lines if line.startswith("CapEff"))


if __name__ == "__main__":
    print(os.geteuid(), effective())
