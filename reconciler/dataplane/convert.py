# SPDX-License-Identifier: Apache-2.0
"""Rows of one layout as rows of another, field by field, by the fields' names.

What both have is carried over, wider or narrower; what only the new one has gets its default; what only the old one
has is dropped, as is padding. A value that does not fit is an error: nothing is ever cut off silently.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.description import Fields, MapDescription
from reconciler.dataplane.layout import MapType
from reconciler.errors import KernelError

Rows = tuple[bytes, bytes]
"""Keys and values, each joined."""
Convert = Callable[[Rows], Rows]


def _as_it_is(_old: MapDescription, _new: MapDescription) -> Convert:
    return lambda rows: rows


RULES: dict[tuple[str, int, int], Callable[[MapDescription, MapDescription], Convert]] = {
    # Slots of four bytes, and later a row for each slot in transition, are one of the forms that there are since.
    **{("rings", meaning, 3): _as_it_is for meaning in (1, 2)},
}
"""By the name of a map and two meanings of its rows: what makes rows of the one from rows of the other, where names of
fields do not suffice."""

_BYTES = re.compile(r"[VS](\d+)")


def converter(name: str, old: MapDescription, new: MapDescription, defaults: Rows = (b"", b"")) -> Convert:
    """From rows of `old` to rows of `new`. `defaults` are a key and a value of defaults; empty: zeros.

    Raises KernelError if no rule leads from the one to the other; the function raises it for a value that doesn't fit.
    """
    if rule := RULES.get((name, old.meaning, new.meaning)):
        return rule(old, new)
    if old.meaning != new.meaning or _kind(old) != _kind(new):
        raise KernelError(f"map {name}: no way is known from {_kind(old)} to {_kind(new)}, meaning {new.meaning}")
    key = functools.partial(fields_converted, name, old.key, new.key, defaults[0])
    value = functools.partial(fields_converted, name, old.value, new.value, defaults[1])
    return lambda rows: (key(rows[0]), value(rows[1]))


def fields_converted(name: str, old: Fields, new: Fields, default: bytes, content: bytes) -> bytes:
    """Joined rows with the fields `old` as rows with the fields `new`. Raises KernelError."""
    if old == new or not content:
        return content
    rows = np.frombuffer(content, dtype_of(old))
    made: NDArray[np.void] = np.zeros(rows.size, dtype_of(new))
    if default:
        made[:] = np.frombuffer(default, dtype_of(new))[0]
    former = dict(old)
    for field, form in new:
        if field in former and field != "pad":
            _carry(name, field, rows[field], made[field], is_bytes=bool(_BYTES.fullmatch(form)))
    return made.tobytes()


def dtype_of(fields: Fields) -> np.dtype[np.void]:
    """The NumPy type of rows with these fields; plain bytes are arrays of bytes. Raises KernelError."""
    try:
        return np.dtype([(name, _BYTES.sub(r"(\1,)u1", form)) for name, form in fields])
    except (TypeError, ValueError) as error:
        raise KernelError(f"a map has fields that this version can't read: {fields}") from error


def _carry(name: str, field: str, old: NDArray[np.generic], new: NDArray[np.generic], *, is_bytes: bool) -> None:
    """Copy one column. Bytes and arrays are filled up with zeros."""
    if old.ndim != new.ndim:
        raise KernelError(f"map {name}: {field} is a single value in one layout and several in the other")
    if old.ndim == 2:
        common = min(old.shape[1], new.shape[1])
        lost = old[:, common:].any(axis=1)
        new[:, :common], old, new = old[:, :common], old[:, :common], new[:, :common]
        lost |= (old != new).any(axis=1)
    else:
        new[:] = old
        lost = old != new
    if lost.any():
        noun = "bytes" if is_bytes else "number"
        raise KernelError(f"map {name}: {int(lost.sum()):,} rows have a {field} whose {noun} don't fit this layout")


def _kind(of: MapDescription) -> str:
    """What kind of rows a map has: one value for each CPU, other arrays, or plain rows."""
    if of.type in (3, 12):
        return "an array of objects"
    return "values of each CPU" if of.type in (5, 6, 10, MapType.CPU_ARRAY) else "rows"
