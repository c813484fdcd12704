# SPDX-License-Identifier: Apache-2.0
"""Of very many objects, those that nobody asks about are passed over, and whatever else the kernel says is heard."""

import struct

import pytest

from reconciler.kernel import netlink

_DONE, _ERROR, _ANSWER = 3, 2, 24
_INTERRUPTED = 0x10


class Kernel:
    """A socket on which these datagrams come, for each request."""

    def __init__(self, *dumps):
        self._dumps, self._left, self._sequence = list(dumps), [], 0

    def send(self, request):
        self._sequence = struct.unpack_from("=IHHII", request)[3]
        self._left = [*self._dumps.pop(0), [(_DONE, 0, bytes(4))]]

    def recv(self, _bytes):
        return b"".join(self._message(*message) for message in self._left.pop(0))

    def _message(self, type_, flags, body, late=0):
        padding = bytes(-len(body) % 4)
        return struct.pack("=IHHII", 16 + len(body), type_, flags, self._sequence - late, 7) + body + padding


def objects(first, count=100, flags=0, size=8):
    return [(_ANSWER, flags, number.to_bytes(size, "big")) for number in range(first, first + count)]


def dump(*dumps, having=None):
    return netlink.Route(Kernel(*dumps)).dump(26, b"", having)


def test_only_what_is_asked_about_is_taken_apart():
    wanted = (1_234).to_bytes(8, "big")
    found = dump([objects(first) for first in range(0, 3_000, 100)], having=[wanted])
    assert wanted in found
    assert len(found) == 100
    assert len(dump([objects(0), objects(100, size=9)])) == 200
    assert dump([objects(0), objects(100, 1, size=9)], having=[b"nothing"]) == []


@pytest.mark.parametrize("place", [0, 50, 99])
def test_objects_that_changed_meanwhile_are_read_again_though_nobody_asks_about_them(place):
    broken = objects(0)
    broken[place] = objects(place, 1, _INTERRUPTED)[0]
    (wanted,) = objects(500, 1)
    assert dump([broken], [[wanted]], having=[wanted[2]]) == [wanted[2]]


@pytest.mark.parametrize("number", [1, 100])
def test_a_refusal_among_objects_is_heard(number):
    refused = (_ERROR, 0, struct.pack("=i", -1) + bytes(4))
    with pytest.raises(PermissionError):
        dump([[*objects(0, number), refused]], having=[b"nothing"])


def test_what_comes_after_the_end_is_not_waited_for():
    last = [*objects(0), (_DONE, 0, bytes(4))]
    assert netlink.Route(Kernel([last])).dump(26, b"", [b"nothing"]) == []


def test_the_rest_of_an_earlier_request_is_passed_over():
    late = [(*message, 1) for message in objects(0)]
    (wanted,) = objects(3, 1)
    assert dump([late, [wanted]], having=[wanted[2]]) == [wanted[2]]
