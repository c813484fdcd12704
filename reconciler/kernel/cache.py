# SPDX-License-Identifier: Apache-2.0
"""Where compiled programs and prepared headers are kept between runs.

Whoever can write there decides what the kernel runs, so the directory belongs to us alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from reconciler.errors import BuildError

DEFAULT = "/var/cache/lbctl"
ENVIRONMENT = "LBCTL_CACHE_DIR"


def cache_dir() -> Path:
    """The cache directory, made if it is missing. BuildError if somebody else could write into it."""
    path = Path(os.environ.get(ENVIRONMENT) or DEFAULT)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise BuildError(
            f"can't use the cache directory {path}: {error.strerror}",
            hint=f"make it, or name another one in {ENVIRONMENT}",
        ) from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise BuildError(
            f"the cache directory {path} could be written by somebody else; programs for the kernel come from it",
            hint=f"chown root {path} && chmod 700 {path}, after removing what is in it",
        )
    return path
