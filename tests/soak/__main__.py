# SPDX-License-Identifier: Apache-2.0
"""`make soak`: ten minutes of everything at once, or `python -m tests.soak SECONDS [SEED [MODE]]`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.soak import check, run


def main(seconds: float, seed: int | None, mode: str) -> None:
    seed = int(time.time()) if seed is None else seed
    with tempfile.TemporaryDirectory(prefix="lbs-") as directory:
        report = run(seconds, seed, Path(directory), f"lbs-{os.getpid()}", mode)
    print("\n".join(report.lines()))
    check(report)


if __name__ == "__main__":
    main(
        float(sys.argv[1]) if sys.argv[1:] else 600.0, int(sys.argv[2]) if sys.argv[2:] else None,
        sys.argv[3] if sys.argv[3:] else "nat",
    )  # fmt: skip
