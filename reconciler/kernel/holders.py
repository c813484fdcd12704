# SPDX-License-Identifier: Apache-2.0
"""Which instance a running program belongs to, and how to get maps back whose pins are lost.

All pins go with their bpffs, when it is unmounted or the process ends that it was mounted for. The attached program
goes on and still has its maps, so they can be opened by way of the program.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from reconciler.dataplane.layout import MAPS, MapSpec
from reconciler.dataplane.program import is_ours
from reconciler.kernel import bpf, maps, xdp
from reconciler.kernel.bpf import NAME_BYTES, ProgramInfo
from reconciler.kernel.instance import PROGRAM, Instance
from reconciler.kernel.maps import Shape

_SPECS = {spec.name[:NAME_BYTES]: spec for spec in MAPS.values()}


def shape_of(spec: MapSpec) -> Shape:
    """The shape that the kernel must show for a map of the layout."""
    return Shape(spec.type, spec.key_size, spec.value_size, spec.capacity)


def is_of(instance: Instance, held: xdp.Running) -> bool:
    """Whether a running program is this instance's: lbctl loaded it, and no other instance alone has its maps
    pinned."""
    if held.program is None or not is_ours(held.program.name):
        return False
    return bool(pinned_maps(instance) & set(held.program.map_ids)) or other_holder(instance, held) is None


def other_holder(instance: Instance, held: xdp.Running) -> Instance | None:
    """The other instance that has the maps of a running program pinned, if this one has not."""
    if held.program is None or not is_ours(held.program.name):
        return None
    used = set(held.program.map_ids)
    if used & pinned_maps(instance):
        return None
    return next((other for other in instance.others() if used & pinned_maps(other)), None)


def pinned_maps(instance: Instance) -> set[int]:
    """The numbers of the maps that an instance has pinned."""
    found = set()
    for name in instance.pinned():
        fd = instance.open(name) if name != PROGRAM else None
        if fd is not None:
            with bpf.closing(fd):
                found.add(maps.describe(fd).id)
    return found


def maps_of_program(instance: Instance) -> Mapping[str, int]:
    """The numbers of the maps that the instance's program has, pinned or not, by their names in the layout.

    The program is the one that is pinned, else the one that runs. Nothing is taken from a program with a map that the
    layout doesn't know: another version of lbctl made it.
    """
    program = _program(instance)
    known = {_name(map_id): map_id for map_id in program.map_ids} if program else {}
    return {} if None in known else {name: map_id for name, map_id in known.items() if name}


def _program(instance: Instance) -> ProgramInfo | None:
    fd = instance.open(PROGRAM)
    if fd is not None:
        with bpf.closing(fd):
            return bpf.program_info(fd)
    pinned = pinned_maps(instance)
    programs = (held.program for held in xdp.running() if is_of(instance, held))
    # If the instance has pinned maps, a running program that uses none of them is an old one.
    return next((p for p in programs if p and (not pinned or pinned & set(p.map_ids))), None)


@functools.lru_cache(maxsize=1024)
def _name(map_id: int) -> str | None:
    """The name in the layout of a map with the layout's shape, else None; name and shape of a map never change."""
    fd = bpf.open_map(map_id)
    if fd is None:
        return None
    with bpf.closing(fd):
        opened = maps.describe(fd)
    spec = _SPECS.get(opened.name)
    return spec.name if spec and shape_of(spec) == opened.shape else None
