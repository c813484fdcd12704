# SPDX-License-Identifier: Apache-2.0
"""Where compiled programs and prepared headers are kept between runs.

Whoever can write there decides which program the kernel runs, so only the own user may write to the directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from reconciler import private
from reconciler.errors import BuildError, FilesError

DEFAULT = "/var/cache/lbctl"
ENVIRONMENT = "LBCTL_CACHE_DIR"


def cache_dir() -> Path:
    """The cache directory, made if it is missing. BuildError if somebody else could write into it."""
    path = Path(os.environ.get(ENVIRONMENT) or DEFAULT).absolute()
    try:
        private.make_directory(path)
    except FilesError as error:
        raise BuildError(error.message, hint=error.hint or f"make it, or name another one in {ENVIRONMENT}") from error
    return path
