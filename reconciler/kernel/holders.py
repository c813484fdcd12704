# SPDX-License-Identifier: Apache-2.0
"""Which instance a running program belongs to, and which generation of an instance is live.

The pin of the program goes with its bpffs, when that is unmounted or the process ends that it was mounted for. The
attached program goes on with its maps, and is the live generation then.
"""

from __future__ import annotations

from reconciler.dataplane.layout import MapSpec
from reconciler.dataplane.program import is_ours
from reconciler.kernel import bpf, generations, xdp
from reconciler.kernel.bpf import ProgramInfo
from reconciler.kernel.generations import Generation
from reconciler.kernel.instance import PROGRAM, Instance
from reconciler.kernel.maps import Shape


def shape_of(spec: MapSpec) -> Shape:
    """The shape that the kernel must show for a map of the layout."""
    return Shape(spec.type, spec.key_size, spec.value_size, spec.capacity)


def pinned_program(instance: Instance) -> ProgramInfo | None:
    """The program that an instance has pinned."""
    fd = instance.open(PROGRAM)
    if fd is None:
        return None
    with bpf.closing(fd):
        return bpf.program_info(fd)


def live(instance: Instance) -> Generation | None:
    """The generation whose maps lbctl works with: that of the pinned program, else that of the one that runs.

    None if there is no program, or one whose maps nobody described. Raises KernelError if a newer version made it.
    """
    program = pinned_program(instance)
    if program is not None:
        return generations.of_program(program)
    programs = (held.program for held in xdp.running() if is_of(instance, held))
    found = (generations.of_program(program) for program in programs if program)
    return next((generation for generation in found if generation), None)


def is_of(instance: Instance, held: xdp.Running) -> bool:
    """Whether a running program is this instance's: lbctl loaded it, and it is no other instance's alone."""
    if held.program is None or not is_ours(held.program.name):
        return False
    return _is_held(instance, held.program) or other_holder(instance, held) is None


def other_holder(instance: Instance, held: xdp.Running) -> Instance | None:
    """The other instance that a running program belongs to, if it is not this one's."""
    if held.program is None or not is_ours(held.program.name) or _is_held(instance, held.program):
        return None
    return next((other for other in instance.others() if _is_held(other, held.program)), None)


def are_kin(one: ProgramInfo, other: ProgramInfo) -> bool:
    """Whether one of two programs took over from the other, as far as can be seen: by their descriptions, or by a map
    that both have."""
    if set(one.map_ids) & set(other.map_ids):
        return True
    lineages = [generations.lineage_of(program) for program in (one, other)]
    return lineages[0] is not None and lineages[0] == lineages[1]


def _is_held(instance: Instance, program: ProgramInfo) -> bool:
    pinned = pinned_program(instance)
    return pinned is not None and are_kin(pinned, program)
