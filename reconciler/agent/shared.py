# SPDX-License-Identifier: Apache-2.0
"""One answer for all who wait with the same question."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from reconciler.agent.control import Answer

Answers = list[Answer]


class Shared:
    """Whoever asks while somebody else waits for his turn with the same question gets that one's answer. Who comes
    when it has begun to be made waits for the next: so nobody is told of a time before he asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[Answers]] = {}

    def answer(self, question: str, make: Callable[[Callable[[], None]], Answers]) -> Answers:
        """What `make` makes, here or for another. It is given a function to call when its turn has come. Raises what
        it raises."""
        with self._lock:
            other = self._waiting.get(question)
            if other is None:
                mine = self._waiting[question] = Future()
        if other is not None:
            return other.result()

        def begins() -> None:
            with self._lock:
                if self._waiting.get(question) is mine:
                    del self._waiting[question]

        try:
            made = make(begins)
        except BaseException as error:
            begins()
            mine.set_exception(error)
            raise
        begins()
        mine.set_result(made)
        return made
