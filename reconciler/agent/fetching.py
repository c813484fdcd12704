# SPDX-License-Identifier: Apache-2.0
"""Fetches a git repository again and again, in a thread of its own: a slow server delays nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from reconciler.agent.report import Report
from reconciler.config.fetch import Store
from reconciler.errors import LbctlError

SOURCE = "source"
"""What problems of fetching are about."""


class Fetching:
    """The newest commit of a remote that is here. `news` is called when there is another one."""

    def __init__(self, store: Store, interval_s: float, report: Report, news: Callable[[], None]) -> None:
        """Raises FilesError if what was fetched before can't be used."""
        self.newest: Path | None = store.newest()
        self._store = store
        self._interval_s = interval_s
        self._report = report
        self._news = news
        self._turns = threading.Condition()
        self._asked, self._done = 1, 0
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What is under way is given up; it leaves nothing behind that counts."""
        with self._turns:
            self._is_over = True
            self._turns.notify_all()

    def again(self, timeout_s: float = 0.0) -> bool:
        """Have it fetched now; whether that has ended, well or not, within this time."""
        with self._turns:
            self._asked += 1
            mine = self._asked
            self._turns.notify_all()
            return self._turns.wait_for(lambda: self._done >= mine, timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Wait until the first attempt has ended, at most for this time."""
        with self._turns:
            self._turns.wait_for(lambda: self._done, timeout_s)

    def _run(self) -> None:
        while True:
            with self._turns:
                self._turns.wait_for(lambda: self._is_over or self._asked > self._done, self._interval_s)
                if self._is_over:
                    return
                asked = self._asked
            self._fetch()
            with self._turns:
                self._done = asked
                self._turns.notify_all()

    def _fetch(self) -> None:
        try:
            newest = self._store.fetch()
        except (LbctlError, OSError) as error:
            kept = "what was fetched last stays in force" if self.newest else "nothing was changed"
            self._report.problem(SOURCE, str(error), f"trying again every {self._interval_s:g} s; {kept}")
            return
        self._report.recovered(SOURCE)
        if newest != self.newest:
            self.newest = newest
            self._news()
