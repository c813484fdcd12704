# SPDX-License-Identifier: Apache-2.0
"""These tests are collected in the guest only. Elsewhere a line says where they are run."""

from __future__ import annotations

import os

import pytest

IN_GUEST = "LBCTL_TEST_VM" in os.environ

collect_ignore_glob = [] if IN_GUEST else ["test_*.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not IN_GUEST:
        terminalreporter.write_line("tests/vm was left out: it needs Debian's own kernel, `make test-vm` boots that")
