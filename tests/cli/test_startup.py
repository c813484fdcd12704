# SPDX-License-Identifier: Apache-2.0
"""What the command line must not need."""

import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli.main import VERBS

CHECKOUT = Path(__file__).resolve().parents[2]


def run(*command):
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)


def lbctl(*words, prefix=()):
    return run(*prefix, sys.executable, "-m", "reconciler.cli.main", *words)


def test_validate_imports_neither_bcc_nor_pyroute2_nor_numpy():
    done = run(
        sys.executable, "-c",
        "import sys; from reconciler.cli.main import main;"
        "assert main(['validate', 'examples/configs/nat-tcp']) == 0;"
        "print(sorted({'bcc', 'pyroute2', 'numpy', 'msgspec', 'watchdog', 'jinja2'} & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.kernel
def test_a_plan_asks_the_kernel_without_pyroute2(tmp_path):
    """It is for changes: what each plan reads and asks is put together without it."""
    done = run(
        "unshare", "--net", sys.executable, "-c",
        "import sys; from reconciler.cli.main import main;"
        "code = main(['plan', 'examples/configs/dsr-l3-ha', '--node', 'lb1', '--run-dir', sys.argv[1]]);"
        "print(code, [name for name in sys.modules if name.startswith('pyroute2')])",
        str(tmp_path),
    )
    assert done.stdout.splitlines()[-1] == "2 []", done.stdout + done.stderr


def test_validate_needs_no_power_over_the_kernel():
    """All that is left of root is the right to read the checkout, wherever it lies."""
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+dac_override"]
    done = lbctl("validate", "examples/configs/nat-tcp", prefix=powerless)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_and_exit_codes(verb):
    done = lbctl(verb, "--help")
    assert "examples:" in done.stdout
    assert "exit codes" in done.stdout


def test_a_wrong_verb_is_an_error_of_usage():
    done = lbctl("aply")
    assert done.returncode == 2
    assert "aply" in done.stderr
