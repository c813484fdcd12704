# SPDX-License-Identifier: Apache-2.0
"""The rows of lists of sources, a node each, and all rows of a list as one value.

A list without its number is packed as how many nodes IPv4 has, then the nodes of both families, sorted; each as its
address in the order of packets, whose last byte is the level, and its bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import SOURCE_MAPS, SOURCES, SOURCES6
from reconciler.dataplane.rows import Source6Key, SourceKey
from reconciler.dataplane.source_nodes import Nodes, levels_of
from reconciler.kernel.port import Kernel

_WIDTH = {4: 4, 6: 16}
"""Bytes of an address."""
_COUNT = struct.Struct("=I")
NOTHING = _COUNT.pack(0)
"""A list without rows, packed."""
_BITS_BYTES = SOURCES.value_size
Rows = Mapping[int, Mapping[bytes, bytes]]
"""By family, by node."""


def packed_list(nodes: Mapping[int, Nodes]) -> bytes:
    """All rows of a list, from its nodes in each family."""
    parts = [_COUNT.pack(len(nodes[4]))]
    for version, width in _WIDTH.items():
        rows = {
            (number << 8 * (width - level) | level).to_bytes(width): bits.to_bytes(_BITS_BYTES, "little")
            for (level, number), bits in nodes[version].items()
        }
        parts += [node + rows[node] for node in sorted(rows)]
    return b"".join(parts)


def unpacked_list(packed: bytes) -> Rows:
    """The reverse of `packed_list`."""
    (count,) = _COUNT.unpack_from(packed)
    ends = _COUNT.size + count * (_WIDTH[4] + _BITS_BYTES)
    found: dict[int, dict[bytes, bytes]] = {}
    for version, part in ((4, packed[_COUNT.size : ends]), (6, packed[ends:])):
        width = _WIDTH[version]
        size = width + _BITS_BYTES
        rows = (part[at : at + size] for at in range(0, len(part), size))
        found[version] = {row[:width]: row[width:] for row in rows}
    return found


def levels_in(rows: Rows) -> dict[int, int]:
    """The levels that have nodes, a bit for each, in each family."""
    return {version: levels_of(nodes_in(version, rows[version])) for version in SOURCE_MAPS}


def nodes_in(version: int, rows: Mapping[bytes, bytes]) -> Nodes:
    """The nodes of these rows; those that no address leads to are left out."""
    width, found = _WIDTH[version], {}
    for node, bits in rows.items():
        level = node[-1]
        if level < width and not any(node[level:-1]):
            found[level, int.from_bytes(node[:level])] = int.from_bytes(bits, "little")
    return found


def held_lists(kernel: Kernel) -> dict[int, bytes]:
    """All lists by number, as `packed_list` has them."""
    parts: dict[int, dict[int, bytes]] = {}
    for version, spec in SOURCE_MAPS.items():
        keys, values = kernel.joined(spec.name)
        rows = spec.key.array(keys)
        lists = rows["list"]
        nodes = rows["node"].astype(">u4").view((np.uint8, 4)) if version == 4 else _bytes(rows["node"], 16)
        whole = np.concatenate([nodes.reshape(-1, _WIDTH[version]), _bytes(values, _BITS_BYTES)], axis=1)
        order = np.lexsort((*nodes.reshape(-1, _WIDTH[version]).T[::-1], lists))
        numbers, starts = np.unique(lists[order], return_index=True)
        for number, part in zip(numbers.tolist(), np.split(whole[order], starts[1:]), strict=False):
            parts.setdefault(number, {})[version] = part.tobytes()
    size = _WIDTH[4] + _BITS_BYTES
    return {
        number: _COUNT.pack(len(of.get(4, b"")) // size) + of.get(4, b"") + of.get(6, b"")
        for number, of in parts.items()
    }  # fmt: skip


def _bytes(content: NDArray[np.void] | bytes, width: int) -> NDArray[np.uint8]:
    raw = content if isinstance(content, bytes) else content.tobytes()
    return np.frombuffer(raw, np.uint8).reshape(-1, width)


def row_key(version: int, number: int, node: bytes) -> bytes:
    """The key of a node's row in the list with this number."""
    if version == 4:
        return SOURCES.key.pack(SourceKey(number, int.from_bytes(node)))
    return SOURCES6.key.pack(Source6Key(number, node))
