# SPDX-License-Identifier: Apache-2.0
"""Generations: a program with its maps, and what these maps look like.

One pin says which generation is live: that of the program. Its maps are all that the kernel lists for it; those that
only user space uses are bound to it, one of which holds the description of all (dataplane/description.py). So a
generation comes and goes as a whole: what was never pinned ends with the process that made it, and the kernel frees
what nobody runs any more.
"""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass

from reconciler.dataplane.description import Description, lineage, read, written
from reconciler.dataplane.layout import MapType
from reconciler.errors import KernelError
from reconciler.kernel import bpf, maps
from reconciler.kernel.bpf import ProgramInfo
from reconciler.kernel.maps import Shape

DESCRIPTION = "lbctl_layout"
"""The kernel's name of the map with the description."""

_ZERO = bytes(4)


@dataclass(frozen=True, slots=True)
class Generation:
    """A program that is loaded, and the description of its maps, with the number of the map that holds it."""

    program: ProgramInfo
    description: Description
    described_in: int

    def open(self, name: str) -> int | None:
        """A descriptor of one of the maps, which the caller closes; None if the generation has no such map."""
        number = self.description.ids.get(name)
        return bpf.open_map(number) if number is not None else None


def of_program(program: ProgramInfo) -> Generation | None:
    """The generation of a program. None if its maps are not described: an early version of lbctl made it.

    Raises KernelError if the description is a newer version's.
    """
    found = _described(program.id, program.map_ids)
    if found is None:
        return None
    number, content = found
    description = _read(content)
    if not set(description.ids.values()) <= set(program.map_ids):
        raise KernelError(f"program {program.id} lacks maps that its description names", hint="lbctl apply")
    return Generation(program, description, number)


def lineage_of(program: ProgramInfo) -> str | None:
    """What a program has in common with those that it took over from, whatever version made it; None: not known."""
    found = _described(program.id, program.map_ids)
    return lineage(found[1]) if found else None


def describe(description: Description, live: Generation | None) -> int:
    """A descriptor of a map with a description, which can't be changed any more; of the live generation's, if that is
    the same."""
    if live and live.description == description and (same := bpf.open_map(live.described_in)) is not None:
        return same
    content = written(description)
    fd = maps.create(DESCRIPTION, Shape(MapType.ARRAY, 4, len(content), 1))
    maps.update_one(maps.describe(fd), _ZERO, content)
    bpf.freeze(fd)
    return fd


@functools.lru_cache(maxsize=256)
def _described(_program_id: int, map_ids: tuple[int, ...]) -> tuple[int, bytes] | None:
    """The map that describes the maps of a program, and its content, which never changes. It was bound last, and no
    other one is opened by the way: to close the map `other` may empty it (kernel/takeover.py)."""
    for number in reversed(map_ids):
        fd = bpf.open_map(number)
        if fd is not None:
            with bpf.closing(fd):
                opened = maps.describe(fd)
                if opened.name == DESCRIPTION and (content := maps.lookup(opened, _ZERO)) is not None:
                    return number, content
    return None


@functools.lru_cache(maxsize=64)
def _read(content: bytes) -> Description:
    return read(content)


def new_lineage() -> str:
    """A name for an instance's generations that no other instance has."""
    return secrets.token_hex(8)
