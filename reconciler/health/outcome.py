# SPDX-License-Identifier: Apache-2.0
"""What came of one check, in words that people understand.

Texts of servers go into these words only through `quoted`: bounded, and safe for a terminal.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import NamedTuple

from reconciler import safe

MAX_QUOTED = 60


class Verdict(IntEnum):
    """UNREACHED is a failure that doesn't prove that anybody is there at all: no answer, or no way. FAILED was an
    answer, if only a refusal. NOT_CHECKED is trouble of the node's own, which says nothing about the target."""

    OK = 0
    FAILED = 1
    UNREACHED = 2
    NOT_CHECKED = 3

    @property
    def is_failure(self) -> bool:
        return self in (Verdict.FAILED, Verdict.UNREACHED)


class Outcome(NamedTuple):
    """`error` is "" if the target answered as it should. `share` is the percentage of its weight that an agent asks
    for; None: it said nothing of it. `latency_s` is filled in by whoever ran the check."""

    verdict: Verdict
    error: str = ""
    share: float | None = None
    latency_s: float = 0.0


OK = Outcome(Verdict.OK)


def failed(error: str) -> Outcome:
    """The target answered, but not as it should."""
    return Outcome(Verdict.FAILED, error)


def unreached(error: str) -> Outcome:
    return Outcome(Verdict.UNREACHED, error)


def not_checked(error: str) -> Outcome:
    return Outcome(Verdict.NOT_CHECKED, error)


def of_errno(number: int, doing: str = "") -> Outcome:
    """The outcome of a system call that failed. `doing` says at which step, if it is not the first one."""
    verdict, words = _ERRNOS.get(number, (Verdict.NOT_CHECKED, ""))
    words = words or os.strerror(number)
    return Outcome(verdict, f"{words} {doing}" if doing else words)


def quoted(text: bytes | str) -> str:
    """A text of a server in quotes: at most 60 characters of it, on one line, without anything that a terminal
    obeys."""
    plain = text[: 4 * MAX_QUOTED].decode("utf-8", "replace") if isinstance(text, bytes) else text[: 4 * MAX_QUOTED]
    shown = safe.line(plain)
    return f'"{shown[:MAX_QUOTED]}…"' if len(shown) > MAX_QUOTED or len(text) > 4 * MAX_QUOTED else f'"{shown}"'


_ERRNOS = {
    errno.ECONNREFUSED: (Verdict.FAILED, "refused"),
    errno.ECONNRESET: (Verdict.FAILED, "connection reset"),
    errno.ECONNABORTED: (Verdict.FAILED, "connection aborted"),
    errno.EPIPE: (Verdict.FAILED, "connection closed"),
    errno.EPROTO: (Verdict.FAILED, "protocol error"),
    errno.ENOPROTOOPT: (Verdict.FAILED, "protocol unreachable"),  # ICMP type 3, code 2
    errno.EOPNOTSUPP: (Verdict.FAILED, "protocol not supported"),
    errno.ETIMEDOUT: (Verdict.UNREACHED, "no answer"),
    errno.EHOSTUNREACH: (Verdict.UNREACHED, "host unreachable"),
    errno.EHOSTDOWN: (Verdict.UNREACHED, "host down"),
    errno.ENONET: (Verdict.UNREACHED, "host isolated"),
    errno.ENETUNREACH: (Verdict.UNREACHED, "network unreachable"),
    errno.ENETDOWN: (Verdict.UNREACHED, "network down"),
    errno.EACCES: (Verdict.UNREACHED, "forbidden on the way"),  # ICMP type 3, codes 9, 10 and 13
    errno.EMSGSIZE: (Verdict.UNREACHED, "too big for the way"),
    errno.EMFILE: (Verdict.NOT_CHECKED, "this node is out of file descriptors"),
    errno.ENFILE: (Verdict.NOT_CHECKED, "this node is out of file descriptors"),
    errno.ENOBUFS: (Verdict.NOT_CHECKED, "this node is out of buffers"),
    errno.ENOMEM: (Verdict.NOT_CHECKED, "this node is out of memory"),
    errno.EADDRNOTAVAIL: (Verdict.NOT_CHECKED, "this node has no address or port to check from"),
    errno.EPERM: (Verdict.NOT_CHECKED, "this node may not send that: permission or firewall"),
    errno.EAFNOSUPPORT: (Verdict.NOT_CHECKED, "this node doesn't speak that family of IP"),
    errno.EPROTONOSUPPORT: (Verdict.NOT_CHECKED, "this node doesn't speak that protocol"),
    errno.EAGAIN: (Verdict.NOT_CHECKED, "this node has no route or port left"),  # connect() without a free port
}
