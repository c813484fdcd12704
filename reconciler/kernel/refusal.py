# SPDX-License-Identifier: Apache-2.0
"""Refusals of the kernel, as errors for people."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from reconciler.errors import KernelError


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn an OSError within the block into a KernelError about `what`."""
    try:
        yield
    except OSError as error:
        hint = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else ""
        raise KernelError(f"{what}: {error.strerror or error}", hint=hint) from error
