# SPDX-License-Identifier: Apache-2.0
"""What the agent and the process that checks say to each other, over two pipes.

Each message is its length and a pickle. Both ends are processes of one lbctl, of which one has started the other; no
text of a server is ever unpickled, since it is part of such a message like any other text.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from reconciler.health.state import State
from reconciler.health.target import Target, Use

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Edit:
    """To the process that checks. `states` are those of targets that come. `is_all`: nothing else is to be checked."""

    targets: Mapping[Use, Target | None]
    states: Mapping[Target, State]
    is_all: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """From the process that checks: the new states of targets, by their digests, and until when it suspects the node
    itself (by the monotonic clock; 0: it doesn't, None: as before), and what of it is the matter, if that is known."""

    states: Mapping[bytes, State] = field(default_factory=dict)
    suspect_until_s: float | None = None
    suspect_why: str = ""
    trouble: str = ""


def packed(message: Edit | News) -> bytes:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


class Messages:
    """Messages out of the bytes of a pipe, which come in any pieces."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Edit | News]:
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            end = _LENGTH.size + length
            if len(self._data) < end:
                return
            message: Edit | News = pickle.loads(memoryview(self._data)[_LENGTH.size : end])
            del self._data[:end]
            yield message
