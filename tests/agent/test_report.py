# SPDX-License-Identifier: Apache-2.0
"""A log that can't be written ends nothing."""

import io
from datetime import UTC, datetime

import pytest

from reconciler.agent.report import Report
from reconciler.render.style import Style

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Log(io.StringIO):
    """Refuses to be written while there is a `fault`."""

    fault = None

    def write(self, text):
        if self.fault:
            raise self.fault
        return super().write(text)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe"),
        UnicodeEncodeError("ascii", "→", 0, 1, "ordinal not in range"), ValueError("I/O operation on closed file"),
    ],
)  # fmt: skip
def test_what_could_not_be_written_is_counted_and_told_afterwards(fault):
    log = Log()
    report = Report(log, Style(), lambda: NOW)
    log.fault = fault
    report.say("one")
    report.problem("node", "two", "three")
    log.fault = None
    report.say("four")
    report.say("five")
    assert log.getvalue() == (
        "2026-01-02T03:04:05+00:00 2 lines before this one could not be written\n"
        "2026-01-02T03:04:05+00:00 four\n2026-01-02T03:04:05+00:00 five\n"
    )
