# SPDX-License-Identifier: Apache-2.0
"""Names of manifests: DNS labels, unique, and the same each time for the same source."""

from __future__ import annotations

import hashlib
import re

MAX_LENGTH = 63  # RFC 1035, section 2.3.4


def label(text: str) -> str:
    """A text as a DNS label: lower case, everything else a hyphen; empty if nothing of it is left."""
    plain = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(plain) <= MAX_LENGTH:
        return plain
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{plain[: MAX_LENGTH - 9].rstrip('-')}-{digest}"


class Names:
    """Hands out each name once: a name that is taken gets the next free number at its end."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        name, count = wanted, self._counts.get(wanted, 1)
        while name in self._taken:
            count += 1
            name = f"{wanted[: MAX_LENGTH - 7].rstrip('-')}-{count}"
        self._counts[wanted] = count
        self._taken.add(name)
        return name
