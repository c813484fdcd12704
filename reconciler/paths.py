# SPDX-License-Identifier: Apache-2.0
"""The directories of the data plane's source and of the schemas: beside the package in a checkout, inside it in a
wheel."""

from __future__ import annotations

import functools
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


@functools.cache
def data_dir(name: str) -> Path:
    """The directory `name` ("bpf" or "schema"). FileNotFoundError if this installation lacks it."""
    for candidate in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{name}/ is neither in {_PACKAGE / '_data'} nor beside {_PACKAGE}: reinstall lbctl")
