# SPDX-License-Identifier: Apache-2.0
"""Servers for which clients sent a SYN again: who is told of, how often, and what becomes of a map that is another."""

from ipaddress import ip_address
from types import SimpleNamespace

import numpy as np
import pytest

from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6, UNANSWERED, EndpointRowState
from reconciler.dataplane.rows import Endpoint
from reconciler.errors import KernelError
from reconciler.health.unanswered import MOST_AT_ONCE, Unanswered

FOUR, SIX = ip_address("10.2.0.1"), ip_address("fd00::2")
ROOM = 1_000


class Node:
    """The maps of a node, of which endpoint 1 has IPv4, endpoint 2 IPv6, and each other one 10.3.x.x."""

    def __init__(self, directory):
        self.counts = np.zeros(ROOM, np.uint64)
        self.record, self.now_s = directory / "record", 0.0
        self.record.write_text("1")
        self.unanswered = Unanswered(directory, "record", lambda: self.now_s)
        self.unanswered._maps = lambda: SimpleNamespace(words=self._words, lookup=self._lookup)
        self.look()

    def _words(self, name):
        assert name == UNANSWERED.name
        return self.counts

    def _lookup(self, name, keys):
        numbers = [ENDPOINTS.key.unpack(key).number for key in keys]
        if name == ENDPOINTS6.name:
            return [SIX.packed if number == 2 else bytes(16) for number in numbers]
        four = [FOUR if number == 1 else ip_address("10.3.0.0") + number for number in numbers]
        return [
            ENDPOINTS.value.pack(Endpoint(bytes(4) if number == 2 else address.packed, 80, EndpointRowState.USABLE))
            for number, address in zip(numbers, four, strict=True)
        ]

    def look(self):
        self.now_s += 1.0
        return self.unanswered.look()


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_each_server_is_told_of_once_for_what_has_come_since(node):
    assert node.look() == set()
    node.counts[[1, 2]] += np.uint64(3)
    assert node.look() == {FOUR, SIX}
    assert node.look() == set()
    node.counts[1] += np.uint64(1)
    assert node.unanswered.look() == set()  # too early
    assert node.look() == {FOUR}


def test_what_was_counted_before_somebody_looked_is_old(tmp_path):
    node = Node(tmp_path)
    node.counts[1] = 7
    again = Unanswered(tmp_path, "record", lambda: node.now_s)
    again._maps = node.unanswered._maps
    assert again.look() == set()


def test_a_flood_makes_no_more_checks_than_so_many(node):
    node.counts += np.uint64(1)
    assert len(node.look()) == MOST_AT_ONCE


def test_after_a_change_of_the_node_another_map_counts(node):
    node.counts = node.counts.copy()
    node.counts[1] = 1
    assert node.look() == set()  # nobody has said so
    node.record.write_text("22")
    assert node.look() == {FOUR}


def test_maps_that_cannot_be_read_tell_nothing_and_are_read_again(node):
    words, node._words = node._words, lambda name: None
    node.record.write_text("22")
    assert node.look() == set()

    def broken(name):
        raise KernelError("it has rows of another version")

    node._words = broken
    node.record.write_text("333")
    assert node.look() == set()
    node._words = words
    assert node.look() == set()
    node.counts[1] += np.uint64(1)
    assert node.look() == {FOUR}
