# SPDX-License-Identifier: Apache-2.0
"""Root works on the agent's instance as the agent's user.

The service runs as a user of its own. What root writes into that user's directories must be readable and replaceable
for the agent; and files of another user are trusted nowhere, see `private`. So a verb that root starts on an instance
of that user takes its identity on, and keeps root's capabilities: nothing else is different for it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from pathlib import Path

from reconciler.errors import LbctlError

USER = "lbctl"
"""The user of the service. Directories of any other user are left to `private`, which refuses them."""

_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
"""Keep the capabilities when the user changes, capabilities(7)."""


def take_on(instance_dir: Path, name: str = USER) -> None:
    """Become the user of this name if this process is root and the instance's directory is that user's. Only before
    there is a second thread. Raises LbctlError."""
    if os.geteuid() != 0:
        return
    try:
        owner = instance_dir.lstat().st_uid
        user = pwd.getpwnam(name)
    except (OSError, KeyError):
        return
    if owner != user.pw_uid or owner == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) < 0:
        why = os.strerror(ctypes.get_errno())
        raise LbctlError(f"can't work as the user {name}, whose instance this is: {why}", hint="run as that user")
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
