# SPDX-License-Identifier: Apache-2.0
"""Rows of maps as named types: one declaration packs them, reads them, scans many at once, and describes them.

A row is a NamedTuple whose fields carry their format in NumPy's words:

    class ServiceKey(NamedTuple):
        vip: IPv4
        port: Port
        protocol: U8
        pad: U8 = 0

A field without a default has zeros where nobody gave it a value. Nothing is aligned but what is declared: padding is a
field, so that rows with damaged padding are seen. Numbers in network byte order are converted here and nowhere else;
addresses stay bytes in the order of packets.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

U8 = Annotated[int, "u1"]
U16 = Annotated[int, "u2"]
U32 = Annotated[int, "u4"]
U64 = Annotated[int, "u8"]
COUNTER = "u8"
"""The format of what only grows, in rows that have counters: no other field of theirs has 64 bits."""
Port = Annotated[int, ">u2"]
BigU32 = Annotated[int, ">u4"]
"""A number in network byte order."""
IPv4 = Annotated[bytes, "V4"]
IPv6 = Annotated[bytes, "V16"]

Description = list[tuple[str, str]]
"""Names and formats of the fields of a row, in order: enough to read rows of another layout by the names of fields."""

T = TypeVar("T", bound=tuple[Any, ...])

_NUMBERS = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", ">u2": "H", ">u4": "I"}
"""Formats of single numbers, as `struct` writes them; all others are plain bytes to it."""
_SWAPS: dict[str, Callable[[int], int]] = {">u2": socket.ntohs, ">u4": socket.ntohl}


class RowType(Generic[T]):
    """How a NamedTuple lies in a map. `size` is in bytes, `default` is a row of defaults.

    `formats` replace those of the fields with these names: IPv6 differs from IPv4 in the length of addresses alone.
    """

    def __init__(self, type_: type[T], **formats: str) -> None:
        hints = get_type_hints(type_, include_extras=True)
        self.fields = [(name, formats.get(name) or hint.__metadata__[0]) for name, hint in hints.items()]
        self.dtype = dtype_of(self.fields)
        self.size = self.dtype.itemsize
        sizes = [self.dtype[name].itemsize for name, _ in self.fields]
        packed = [_NUMBERS.get(form, f"{size}s") for (_, form), size in zip(self.fields, sizes, strict=True)]
        self._struct = struct.Struct("=" + "".join(packed))
        self._swaps = [(at, _SWAPS[form]) for at, (_, form) in enumerate(self.fields) if form in _SWAPS]
        self._make: Callable[[Iterable[object]], T] = type_._make  # type: ignore[attr-defined]
        declared: dict[str, object] = type_._field_defaults  # type: ignore[attr-defined]
        zeros = self._struct.unpack(bytes(self.size))
        self.default = self._make(
            declared.get(name, zero) for (name, _), zero in zip(self.fields, zeros, strict=True)
        )

    def pack(self, row: T) -> bytes:
        """The row's bytes. Raises struct.error if a number does not fit into its field."""
        return self._struct.pack(*(self._swapped(row) if self._swaps else row))

    def unpack(self, content: bytes) -> T:
        """The row that these bytes are. Raises struct.error unless they are `size` bytes."""
        values = self._struct.unpack(content)
        return self._make(self._swapped(values) if self._swaps else values)

    def array(self, content: bytes) -> NDArray[np.void]:
        """Joined rows as an array, a column for each field, without a copy. Of a per-CPU map: the values of all
        CPUs."""
        return np.frombuffer(content, self.dtype)

    def rows(self, array: NDArray[np.void]) -> list[T]:
        """The rows of an array, as `unpack` gives them."""
        return list(map(self._make, array.tolist()))

    def split(self, content: bytes) -> list[bytes]:
        """Joined rows, each for itself."""
        rows: list[bytes] = np.frombuffer(content, f"V{self.size}").tolist()
        return rows

    def describe(self) -> Description:
        """Names and formats of the fields, to be written down beside a map."""
        return list(self.fields)

    def _swapped(self, values: Sequence[Any]) -> Sequence[Any]:
        swapped = list(values)
        for at, swap in self._swaps:
            swapped[at] = swap(swapped[at])
        return swapped


def dtype_of(description: Iterable[Sequence[str]]) -> np.dtype[np.void]:
    """The NumPy type of rows with this description. Raises TypeError or ValueError if it is none."""
    return np.dtype([(name, form) for name, form in description])
