# SPDX-License-Identifier: Apache-2.0
"""The same text again and again: drawn anew on a terminal, elsewhere printed whenever it has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress


def watched(text: Callable[[], str], interval_s: float) -> None:
    """Show a text and what becomes of it, until Ctrl-C or, on a terminal, q."""
    from reconciler.cli.terminal import is_screen, screen

    with suppress(KeyboardInterrupt):
        if is_screen():
            with screen() as shown:
                while True:
                    shown.draw(text().splitlines())
                    if "q" in shown.keys(interval_s):
                        return
        before = None
        while True:
            now = text()
            if now != before:
                print(now if before is None else f"\n{now}", flush=True)
            before = now
            time.sleep(interval_s)
