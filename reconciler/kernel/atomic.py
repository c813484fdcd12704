# SPDX-License-Identifier: Apache-2.0
"""Words of memory that programs in the kernel change meanwhile: changed only if they are still what somebody saw.

Python has no such step, the compiler's library has (libatomic: part of GCC's runtime, package libatomic1 of Debian).
Without it, a word is compared and then written: what a program writes in the tenth of a microsecond between is lost.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from reconciler.dataplane.slots import Words

LIBRARY = "libatomic.so.1"
_SEQUENTIAL = 5  # __ATOMIC_SEQ_CST


def swap(words: Words, index: int, expected: int, wanted: int) -> bool:
    """Put `wanted` in the place of a word that is `expected`; returns whether it was."""
    step = _step(LIBRARY)
    if step:
        return step(words.ctypes.data + 8 * index, expected, wanted)
    if int(words[index]) != expected:
        return False
    words[index] = wanted
    return True


@functools.cache
def _step(library: str) -> Callable[[int, int, int], bool] | None:
    try:
        function = ctypes.CDLL(library)["__atomic_compare_exchange_8"]
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_bool
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
    seen = ctypes.c_uint64()

    def swapped(address: int, expected: int, wanted: int) -> bool:
        seen.value = expected
        return bool(function(address, ctypes.byref(seen), wanted, _SEQUENTIAL, _SEQUENTIAL))

    return swapped
