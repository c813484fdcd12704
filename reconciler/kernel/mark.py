# SPDX-License-Identifier: Apache-2.0
"""The marks that say of each object whose it is: lbctl's, and which instance's.

Routes, addresses and neighbours have room for one byte, the number of the protocol that made them. The instance
`default` has one number; any other has one of fifty, by its name. That two instances get the same one is no danger by
itself: a namespace says whose it is, too (`ownership`). Links have an alias, with room for the name.
"""

from __future__ import annotations

import hashlib

PROTOCOL = 251
"""The mark of the instance `default`; rtnetlink.h gives this number to nobody, nor those of other instances."""
ALIAS = "lbctl"

_DEFAULT = "default"
_FIRST, _COUNT = 201, 50
_MOST_BYTES = 200  # IFALIASZ is 256


def protocol_of(instance: str) -> int:
    """The protocol number of an instance's objects."""
    if instance == _DEFAULT:
        return PROTOCOL
    return _FIRST + hashlib.blake2b(instance.encode(), digest_size=8).digest()[0] % _COUNT


def alias_of(instance: str) -> str:
    """The alias of an instance's links."""
    return ALIAS if instance == _DEFAULT else f"{ALIAS}:{instance}".encode()[:_MOST_BYTES].decode(errors="ignore")
