# SPDX-License-Identifier: Apache-2.0
"""The clock of the data plane, which knows nothing of time namespaces."""

import subprocess
import sys

import pytest

from reconciler import clock


def test_the_shift_of_a_time_namespace_is_read_from_its_line():
    assert clock.shift_ns_of("monotonic         -7         5") == -6_999_999_995
    assert clock.shift_ns_of("monotonic 0 0") == 0


@pytest.mark.kernel
@pytest.mark.parametrize("shift_s", [1_000_000, -1])
def test_in_a_time_namespace_the_clock_is_that_of_the_machine(shift_s):
    before = clock.now_ns()
    read = "from reconciler import clock; print(clock.now_ns())"
    child = subprocess.run(
        ["unshare", "--time", f"--monotonic={shift_s}", "--fork", sys.executable, "-c", read],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert before < int(child.stdout) < clock.now_ns()
