# SPDX-License-Identifier: Apache-2.0
"""Lines of rings that a former program still reads, because it runs on while rings are written for the next one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from reconciler.dataplane.chunks import place_of
from reconciler.dataplane.description import MapDescription, describe
from reconciler.dataplane.layout import RING_CHUNKS, RING_NAMES, RINGS, MapSpec
from reconciler.dataplane.program import program_name
from reconciler.dataplane.ring import Slots
from reconciler.kernel import maps, whole_maps
from reconciler.kernel.real import RealKernel
from reconciler.ring_store import settle
from tests.rings import read_ring, write_rings

pytestmark = pytest.mark.kernel

FEATURES = ("DSR_L3", "MAGLEV")
SLOTS = 4_096


@pytest.fixture
def attached(inside: str, kernel: RealKernel) -> Iterator[None]:
    subprocess.run(["ip", "link", "add", "front", "type", "veth", "peer", "name", "away"], check=True, timeout=30)
    kernel.load_program(program_name(FEATURES), FEATURES)
    kernel.attach("front", "native", None)
    yield
    kernel.unload_program()


def slots_of(endpoint: int) -> Slots:
    return np.full(SLOTS, endpoint, np.uint32)


def wider(spec: MapSpec, capacity: int | None = None) -> MapDescription:
    """As another version could describe maps: with more room for rings."""
    return describe(spec, 2 * RINGS.capacity if spec is RINGS else capacity)


def test_lines_that_a_former_program_still_reads_stay_as_they_are(
    attached: None, kernel: RealKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_rings(kernel, {1: slots_of(1), 2: slots_of(2)}, known=()) == {1: None, 2: None}
    former = kernel.words(RINGS.name)
    assert former is not None
    places = {index: place_of(int(former[index])) for index in (1, 2)}
    monkeypatch.setattr("reconciler.kernel.instance_program.describe", wider)
    kernel.load_program(program_name(FEATURES), FEATURES)  # and the interface goes on with the former program
    for endpoint in range(3, 9):
        written = {1: slots_of(endpoint), 2: slots_of(endpoint + 10), endpoint: slots_of(endpoint + 20)}
        assert set(write_rings(kernel, written, known=(1, 2)).values()) == {None}
        settle(kernel, 0)
    for index, place in places.items():
        chunk = kernel.chunk(RING_CHUNKS.name, place.chunk)
        assert chunk is not None
        held = chunk[place.first_word :].view(np.uint8)[: place.slot_bytes]
        assert (place.form.read(held) == index).all()
    now = read_ring(kernel, 1)
    assert now is not None
    assert (now.endpoints == 8).all()


def test_lines_are_used_again_once_no_program_reads_them(attached: None, kernel: RealKernel) -> None:
    heads = set()
    for endpoint in range(1, 9):
        assert write_rings(kernel, {1: slots_of(endpoint)}, known=(1,)) == {1: None}
        words = kernel.words(RINGS.name)
        assert words is not None
        heads.add(int(words[1]))
    assert len(heads) <= 3


def test_the_wait_that_began_with_the_lock_counts_once(
    attached: None, kernel: RealKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second write of rings may find lines free that the first one has left, so it waits anew."""
    waits: list[str] = []
    update = maps.update_one

    def noted(opened: maps.OpenMap, key: bytes, value: bytes) -> None:
        waits.append(opened.name)
        update(opened, key, value)

    monkeypatch.setattr(maps, "update_one", noted)
    with kernel.steady():
        for endpoint in (1, 2, 3):
            assert write_rings(kernel, {1: slots_of(endpoint)}, known=(1,)) == {1: None}
    assert waits.count("lbctl_grace") == 1
    own = [name for name in waits if name == "ring_chunks"]
    assert len(own) == 3  # the first chunk, and two waits
    assert write_rings(kernel, {1: slots_of(4)}, known=(1,)) == {1: None}
    assert waits.count("lbctl_grace") == 1


def test_names_of_rings_are_read_once_for_each_writing(
    attached: None, kernel: RealKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = whole_maps.read_joined

    def noted(opened: maps.OpenMap) -> tuple[bytes, bytes]:
        reads.append(opened.name)
        return read(opened)

    monkeypatch.setattr(whole_maps, "read_joined", noted)
    row = bytes(RING_NAMES.key_size - 1) + b"a", bytes(RING_NAMES.value_size)
    with kernel.steady():
        assert [kernel.joined(RING_NAMES.name) for _ in range(2)] == [(b"", b"")] * 2
        assert kernel.update(RING_NAMES.name, [row]) == [None]
        assert [kernel.joined(RING_NAMES.name) for _ in range(2)] == [row] * 2
        assert kernel.delete(RING_NAMES.name, [row[0]]) == [None]
        assert kernel.joined(RING_NAMES.name) == (b"", b"")
        assert len(reads) == 3
    assert kernel.update(RING_NAMES.name, [row]) == [None]
    assert kernel.delete(RING_NAMES.name, [row[0]]) == [None]
    assert [kernel.joined(RING_NAMES.name) for _ in range(2)] == [(b"", b"")] * 2
    assert len(reads) == 5  # without the lock, others may have written
