# SPDX-License-Identifier: Apache-2.0
"""DNS over UDP (RFC 1035): the target answers a query with the expected response code.

Only a response with the identifier and the question of the query counts; everything else is ignored.
"""

from __future__ import annotations

import os
import socket
import struct

from reconciler.health.checks.wait import Check, datagram, hear_errors
from reconciler.health.outcome import OK, failed
from reconciler.health.target import Target
from reconciler.health.way import Way, opened
from reconciler.model import Rcode, Record

_HEADER = struct.Struct("!6H")  # identifier, flags, questions, answers, authorities, additional ones
_RECURSION_DESIRED, _RESPONSE, _OPCODE, _RCODE = 0x0100, 0x8000, 0x7800, 0x000F
_INTERNET = 1
_MAX_BYTES = 4096
_TYPES = {
    Record.A: 1, Record.NS: 2, Record.CNAME: 5, Record.SOA: 6, Record.PTR: 12, Record.MX: 15, Record.TXT: 16,
    Record.AAAA: 28, Record.SRV: 33,
}  # fmt: skip
_CODES = {0: Rcode.NOERROR.value, 1: "FORMERR", 2: Rcode.SERVFAIL.value, 3: Rcode.NXDOMAIN.value, 4: "NOTIMP",
          5: Rcode.REFUSED.value}  # fmt: skip


def dns(target: Target, way: Way) -> Check:
    check = target.check
    asked = question(check.query or ".", check.record)
    identifier = int.from_bytes(os.urandom(2), "big")
    with opened(target.asked, way, socket.SOCK_DGRAM) as sock:
        hear_errors(sock)
        sock.connect(target.place)
        sock.send(_HEADER.pack(identifier, _RECURSION_DESIRED, 1, 0, 0, 0) + asked)
        while True:
            answer = yield from datagram(sock, _MAX_BYTES)
            if len(answer) < _HEADER.size:
                continue
            found, flags, questions, *_ = _HEADER.unpack_from(answer)
            if found != identifier or not flags & _RESPONSE or flags & _OPCODE:
                continue
            code = _CODES.get(flags & _RCODE, f"code {flags & _RCODE}")
            # A server that doesn't understand the query may leave out the question (RFC 1035, section 4.1.1).
            if (questions and not _is_question(answer, asked)) or (not questions and code == Rcode.NOERROR):
                continue
            return OK if code == check.rcode else failed(f"{code}, expected {check.rcode}")


def question(name: str, record: Record) -> bytes:
    """A question for a name of labels of at most 63 characters each."""
    labels = [label.encode("ascii", "replace")[:63] for label in name.split(".") if label]
    return b"".join((*(bytes([len(label)]) + label for label in labels), b"\0",
                     struct.pack("!HH", _TYPES[record], _INTERNET)))  # fmt: skip


def _is_question(answer: bytes, asked: bytes) -> bool:
    """Names in different case are the same name (RFC 4343)."""
    return answer[_HEADER.size : _HEADER.size + len(asked)].lower() == asked.lower()
