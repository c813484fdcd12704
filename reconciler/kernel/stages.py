# SPDX-License-Identifier: Apache-2.0
"""A main program and its stages in the kernel (bpf/stage.h).

The map `stages` is filled before its main program is used, and never changes after that. It is pinned as long as the
program is used, since the kernel empties an array of programs when its last descriptor or pin goes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import ExitStack

from reconciler.dataplane.layout import STAGES
from reconciler.dataplane.stages import StageNumber
from reconciler.kernel import bpf, maps
from reconciler.kernel.bpf import ProgramInfo
from reconciler.kernel.build import Images
from reconciler.kernel.generations import Generation
from reconciler.kernel.maps import OpenMap

_NUMBER = struct.Struct("=I")
_MAIN = -1
_TRIED = "lbctl_explain"


def load(
    name: str, images: Images, descriptors: Mapping[str, int], stack: ExitStack, *, is_trial: bool = False
) -> int:  # fmt: skip
    """Load a main program and the stages that its map `stages` leads to. Returns a descriptor of the main program,
    good as long as `stack` is open. Raises BuildError."""
    for stage, image in images.stages.items():
        with bpf.closing(bpf.load_program(stage.name, image.linked(descriptors, is_trial=is_trial))) as program:
            array = maps.describe(descriptors[STAGES.name])
            maps.update_one(array, _NUMBER.pack(stage.number), _NUMBER.pack(program))
    code = images.main.linked(descriptors, is_trial=is_trial)
    return stack.enter_context(bpf.closing(bpf.load_program(name, code)))


def numbers(generation: Generation) -> dict[int, int]:
    """The number of a stage → that of its program, of all stages that a generation has. A main program of an early
    version is its own stage of NAT."""
    fd = generation.open(STAGES.name)
    if fd is None:
        return {StageNumber.NAT4: generation.program.id}
    with bpf.closing(fd):
        return _held(maps.describe(fd))


def run(array: OpenMap, number: StageNumber, times: int) -> None:
    """Run a stage so many times; nothing if there is none. OSError if the kernel refuses."""
    found = _held(array).get(number)
    fd = bpf.open_program(found) if found is not None else None
    if fd is not None:
        with bpf.closing(fd):
            bpf.run_often(fd, times)


def tags(images: Images, descriptors: Mapping[str, int]) -> dict[int, str]:
    """The kernel's tags of the code of a main program (-1) and its stages, linked with these maps."""
    found = {}
    for number, image in [(_MAIN, images.main), *((stage.number, image) for stage, image in images.stages.items())]:
        with bpf.closing(bpf.load_program(_TRIED, image.linked(descriptors))) as program:
            found[int(number)] = bpf.program_info(program).tag
    return found


def tags_of(main: ProgramInfo, array: OpenMap | None) -> dict[int, str]:
    """The same of loaded ones, whose map `stages` this is."""
    found = {_MAIN: main.tag}
    for number, program_id in (_held(array) if array else {}).items():
        fd = bpf.open_program(program_id)
        if fd is not None:
            with bpf.closing(fd):
                found[number] = bpf.program_info(fd).tag
    return found


def _held(array: OpenMap) -> dict[int, int]:
    found = ((number, maps.lookup(array, _NUMBER.pack(number))) for number in StageNumber)
    return {int(number): _NUMBER.unpack(held)[0] for number, held in found if held}
