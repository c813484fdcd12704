# SPDX-License-Identifier: Apache-2.0
"""A program on the endpoint that says whether it may take connections, and which share of its usual weight.

In words it is HAProxy's agent-check: the agent sends a line as soon as it is connected, of words with spaces or commas
between them. `75%` is a share; `up` and `ready` are fine; `drain` is a share of 0; `down`, `failed`, `stopped` and
`maint` are failures, and what follows a `#` is the reason. Other words (`maxconn:30`) are ignored. Each answer is a
whole statement: without a share it asks for 100 %, whatever was said before.
Otherwise it is a page of HTTP with a number in it, from 0 to 100: the share.
"""

from __future__ import annotations

import json
import math
import re
import socket

from reconciler.health.checks.http import exchanged
from reconciler.health.checks.wait import Check, Late, Plain, connect, datagram, in_words
from reconciler.health.outcome import Outcome, Verdict, failed, of_errno, quoted
from reconciler.health.target import Target
from reconciler.health.way import Way, opened
from reconciler.model import AgentFormat

MAX_LINE_BYTES = 1024
MAX_PAGE_BYTES = 256 * 1024
_SHARE = re.compile(r"([0-9]{1,9})%")
_GOOD, _BAD = ("up", "ready"), ("down", "failed", "stopped", "maint")


def agent(target: Target, way: Way) -> Check:
    with opened(target.asked, way) as sock:
        yield from connect(sock, target)
        if target.check.format is AgentFormat.WORDS:
            return (yield from _line(sock, target))
        found = yield from exchanged(Plain(sock), target, MAX_PAGE_BYTES, (200,))
    if isinstance(found, Outcome):
        return found
    status, body = found
    if status != 200:
        return failed(f"HTTP {status}, expected 200")
    name = target.check.value or ""
    number = in_json(body, name) if target.check.format is AgentFormat.JSON else in_metrics(body, name)
    if number is None or not math.isfinite(number):
        return failed(f"there is no number {name} on the page")
    return Outcome(Verdict.OK, share=bounded(number))


def _line(sock: socket.socket, target: Target) -> Check:
    data = b""
    try:
        while b"\n" not in data and len(data) < MAX_LINE_BYTES:
            piece = yield from datagram(sock, MAX_LINE_BYTES - len(data))
            if not piece:
                break
            data += piece
    except Late:
        return failed(f"connected, but the agent said nothing whole within {in_words(target.check.timeout_s)}")
    except OSError as error:
        return of_errno(error.errno or 0, "after it was accepted")
    return said(data.split(b"\n")[0].decode("utf-8", "replace"))


def said(line: str) -> Outcome:
    """The meaning of an agent's words."""
    words, _, reason = line.strip().partition("#")
    share = 100.0
    is_known = False
    for word in re.split(r"[\s,]+", words.lower()):
        if word in _BAD:
            return failed(f"the agent says {word}" + (f": {quoted(reason.strip())}" if reason.strip() else ""))
        if found := _SHARE.fullmatch(word):
            share = min(share, bounded(float(found[1])))
        elif word == "drain":
            share = 0.0
        is_known |= bool(found) or word in (*_GOOD, "drain")
    if not is_known:
        return failed(f"the agent says {quoted(line.strip())}, which means nothing")
    return Outcome(Verdict.OK, share=share)


def bounded(share: float) -> float:
    """A percentage from 0 to 100."""
    return min(100.0, max(0.0, share))


def in_json(body: bytes, name: str) -> float | None:
    """The number that names with dots between them lead to; numbers lead into lists."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for part in name.split("."):
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and len(part) < 7 and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    try:
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    except OverflowError:
        return None


def in_metrics(body: bytes, name: str) -> float | None:
    """The first sample of a metric, of all its labels if none are named, in Prometheus' text format."""
    pattern = rb"^" + re.escape(name.encode()) + rb"(?:\{[^\n]*\})?[ \t]+([^ \t\r\n]{1,40})(?=[ \t\r\n]|\Z)"
    sample = re.search(pattern, body, re.MULTILINE)
    try:
        return float(sample[1]) if sample else None
    except ValueError:
        return None
