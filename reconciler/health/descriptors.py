# SPDX-License-Identifier: Apache-2.0
"""How many checks may be in flight at once: each needs a file descriptor, and the process needs some for itself."""

from __future__ import annotations

import resource

MAX_IN_FLIGHT = 4096
RESERVE = 512
"""What else the process has open: maps, watches, sockets."""


def raise_limit(targets: int) -> int:
    """Raise RLIMIT_NOFILE of this process to what so many targets need, as far as that is allowed; never lower it.
    How many checks may be in flight."""
    wanted = RESERVE + min(targets, MAX_IN_FLIGHT)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else max(hard, wanted)
        for limits in ((wanted, allowed), (min(wanted, hard), hard)):  # Raising the hard limit takes a privilege.
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            except (OSError, ValueError):
                continue
            break
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = MAX_IN_FLIGHT if soft == resource.RLIM_INFINITY else soft - RESERVE
    return max(1, min(MAX_IN_FLIGHT, free))
