# SPDX-License-Identifier: Apache-2.0
"""UDP: the target answers a datagram as expected; or, if no answer is expected, nothing says that it is not there.

A closed port answers with an ICMP error. A machine that is switched off answers nothing, but then the neighbour (the
target or the router on the way) doesn't answer ARP either, which the kernel knows.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from select import EPOLLERR, EPOLLIN

from reconciler.health.checks.wait import Check, Late, datagram, hear_errors
from reconciler.health.outcome import OK, failed, of_errno, quoted, unreached
from reconciler.health.target import Target
from reconciler.health.way import Way, opened
from reconciler.kernel.next_hop import is_silent

MAX_DATAGRAM_BYTES = 4096


def udp(target: Target, way: Way) -> Check:
    check = target.check
    with opened(target.asked, way, socket.SOCK_DGRAM) as sock:
        hear_errors(sock)
        sock.connect(target.place)
        sock.send((check.send or "").encode())
        if check.expect is None:
            return (yield from _unanswered(sock, target, way))
        answer = yield from datagram(sock, MAX_DATAGRAM_BYTES)
    if answer.startswith(check.expect.encode()):
        return OK
    return failed(f"answered {quoted(answer)}, expected {quoted(check.expect)}")


def _unanswered(sock: socket.socket, target: Target, way: Way) -> Check:
    with suppress(Late):
        yield sock, EPOLLIN | EPOLLERR
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        return of_errno(code)
    try:
        sock.recv(1)  # An answer proves that somebody is there, whatever it says.
    except BlockingIOError:
        if is_silent(target.address):
            return unreached("no answer to ARP" if target.address.version == 4 else "no answer to neighbour discovery")
    return OK
