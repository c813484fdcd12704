# SPDX-License-Identifier: Apache-2.0
"""Requests from the lab's client, while they run and when they have ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from typing import IO

from reconciler.lab import LabError
from reconciler.lab.traffic import Outcome

_END_WAIT_S = 30.0


class Load:
    """A client process that sends requests until its count or time is over, or it is stopped."""

    def __init__(self, start: Callable[[IO[bytes]], subprocess.Popen[bytes]]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # It lives as long as the load; see `close`.
        self._process = start(self._output)

    def outcomes(self) -> list[Outcome]:
        """Every request that has ended so far, in the order in which they ended."""
        fd = self._output.fileno()
        text = os.pread(fd, os.fstat(fd).st_size, 0)  # read() would move the client's offset, too
        return [Outcome(**json.loads(line)) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def wait(self, seconds: float = 60) -> list[Outcome]:
        """Wait until the client ends by itself. Raises LabError if it fails or takes longer."""
        return self._ended(seconds)

    def stop(self) -> list[Outcome]:
        """Let the client complete the requests that are under way, and end."""
        self._process.send_signal(signal.SIGTERM)
        return self._ended(_END_WAIT_S)

    def _ended(self, seconds: float) -> list[Outcome]:
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"the client is still sending after {seconds:.0f} s") from None
        if code:
            raise LabError(f"the client failed with exit code {code}")
        return self.outcomes()

    def close(self) -> None:
        self._output.close()
