# SPDX-License-Identifier: Apache-2.0
"""What the loaded program would do with a frame: tried on copies of its maps, so that live traffic never notices.

Each trial runs the loaded program itself, and beside it the same source with the feature EXPLAIN, which writes what it
looks up into the map `explained`. Both must do the same to a frame; then the map tells why the loaded program does it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from reconciler.dataplane.description import specs_of
from reconciler.dataplane.layout import (
    EXPLAINED,
    MAPS,
    MMAPABLE,
    STAGES,
    VERDICTS,
    MapSpec,
    MapType,
    Verdict,
)
from reconciler.dataplane.program import DECAPSULATE, is_built_of
from reconciler.dataplane.slots import Words
from reconciler.errors import KernelError
from reconciler.kernel import bpf, holders, maps, stages, whole_maps
from reconciler.kernel.build import Images, build_all
from reconciler.kernel.holders import shape_of
from reconciler.kernel.instance import Instance
from reconciler.kernel.instance_maps import inner_shape
from reconciler.kernel.maps import OpenMap, Shape
from reconciler.kernel.port import Row
from reconciler.kernel.refusal import refused

EXPLAIN = "EXPLAIN"

_NAME = "lbctl_explain"
_INDEX = struct.Struct("=I")
_NOT_LOOKED_UP = b"\xff" * EXPLAINED.value_size
_COPIES = {
    MapType.LRU_HASH: MapType.HASH, MapType.PERCPU_ARRAY: MapType.ARRAY, MapType.CPU_ARRAY: MapType.ARRAY,
}  # fmt: skip
"""A copy of an LRU must not evict while it is filled, and only one CPU runs a trial."""
_LEFT_EMPTY = (MapType.PERCPU_ARRAY, MapType.CPU_ARRAY, MapType.PROG_ARRAY, MapType.ARRAY_OF_MAPS)
"""Counters start from zero, there is no other program, and arrays of maps get only the inner arrays that the program
looks up."""
_ARRAYS_OF_ARRAYS = {spec.name for spec in MAPS.values() if spec.type == MapType.ARRAY_OF_MAPS}
_NO_PREALLOCATION = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a frame: `action` is what the program returned, `frame` is the frame as it left it.

    `verdict` is the counter that moved, None if none did. `seen` holds the values that the program looked up,
    by the names of `Explained`; those that it never looked up are left out.
    """

    action: int
    frame: bytes
    verdict: Verdict | None
    seen: Mapping[str, int]


class Trial:
    """A place to try frames: the loaded program with copies of its maps, made by `with trial(instance) as …`."""

    def __init__(self, program: bpf.ProgramInfo, features: Sequence[str], live: _Maps, stack: ExitStack) -> None:
        self.program = program
        self._live = live
        self._images = build_all(features)
        self._plain = self._rig(self._images, stack)
        self._explaining = self._rig(build_all((*features, EXPLAIN)), stack)

    @property
    def is_same_code(self) -> bool:
        """Whether the compiler made the same instructions of the source as for the loaded program.

        The kernel's tag says so of code that is linked as the node's is: a trial's calculates with other sizes.
        """
        descriptors = {name: opened.fd for name, opened in self._live.items()}
        return stages.tags(self._images, descriptors) == stages.tags_of(self.program, self._live.get(STAGES.name))

    def rows(self, map_name: str) -> list[Row]:
        """All rows that a map has after the last run; of arrays, those that are not all zero."""
        opened = self._plain.maps.get(map_name)
        return list(whole_maps.dump(opened)) if opened else []

    def row(self, map_name: str, key: bytes) -> bytes | None:
        """One row that a map has after the last run, None if there is none."""
        opened = self._plain.maps.get(map_name)
        return maps.lookup(opened, key) if opened else None

    def run(self, frames: Sequence[bytes], ifindex: int) -> list[Outcome]:
        """Try frames as if they came in on an interface, one after the other: each sees the changes of earlier ones.

        Every call begins with the present content of the live maps. Raises KernelError.
        """
        with refused("trial"):
            held = _Held({name: whole_maps.read_whole(opened) for name, opened in self._live.items()
                          if MAPS[name].type not in _LEFT_EMPTY}, {})  # fmt: skip
            explained = self._explained(frames, ifindex, held)
            plain = _run(self._plain, frames, ifindex, held)
        for one, other in zip(plain, explained, strict=True):
            if replace(one, seen=other.seen) != other:
                raise KernelError(
                    f"the program and its explanation disagree: {_tell(one)} against {_tell(other)}",
                    hint="the way to an endpoint may have changed just now: try again",
                )
        return explained

    def _explained(self, frames: Sequence[bytes], ifindex: int, held: _Held) -> list[Outcome]:
        """Inner arrays can be many and large: try again until every one that the program looked up is copied."""
        while True:
            outcomes = _run(self._explaining, frames, ifindex, held)
            sought = {(name, o.seen[name]) for o in outcomes for name in o.seen if name in _ARRAYS_OF_ARRAYS}
            if sought <= held.arrays.keys():
                return outcomes
            for name, index in sought - held.arrays.keys():
                held.arrays[name, index] = _read_array(self._live[name], index)

    def _rig(self, images: Images, stack: ExitStack) -> _Rig:
        descriptors = {name: stack.enter_context(bpf.closing(_create(MAPS[name], opened.shape)))
                       for name, opened in self._live.items()}  # fmt: skip
        program = stages.load(_NAME, images, descriptors, stack, is_trial=True)
        return _Rig(program, {name: maps.describe(fd) for name, fd in descriptors.items()})


def _run(rig: _Rig, frames: Sequence[bytes], ifindex: int, held: _Held) -> list[Outcome]:
    for name, rows in held.rows.items():
        whole_maps.overwrite(rig.maps[name], rows)
    with ExitStack() as stack:
        for (name, index), content in held.arrays.items():
            if content is not None:
                _put_array(rig.maps[name], MAPS[name], index, content)
                stack.callback(maps.delete_one, rig.maps[name], _INDEX.pack(index))
        return [_run_one(rig, frame, ifindex) for frame in frames]


def _run_one(rig: _Rig, frame: bytes, ifindex: int) -> Outcome:
    verdicts, explained = rig.maps[VERDICTS.name], rig.maps[EXPLAINED.name]
    whole_maps.write_array(verdicts, bytes(VERDICTS.capacity * VERDICTS.value_size))
    whole_maps.write_array(explained, _NOT_LOOKED_UP)
    action, after = bpf.test_run(rig.program, frame, ifindex)
    counted = [_INDEX.unpack(key)[0] for key, _ in whole_maps.dump(verdicts)]
    fields = EXPLAINED.value.unpack(whole_maps.read_array(explained))._asdict()
    nothing = EXPLAINED.value.unpack(_NOT_LOOKED_UP)._asdict()
    seen = {name: value for name, value in fields.items() if value != nothing[name]}
    return Outcome(action, after, Verdict(counted[-1]) if counted else None, seen)


def _tell(outcome: Outcome) -> str:
    verdict = outcome.verdict.name if outcome.verdict is not None else "no verdict"
    return f"action {outcome.action}, {verdict}, {len(outcome.frame)} bytes"


@contextmanager
def trial(instance: Instance) -> Iterator[Trial]:
    """Copies of the instance's maps to try frames on. Raises KernelError if its program can't be had again."""
    with ExitStack() as stack, refused(f"instance {instance.name}"):
        generation = holders.live(instance)
        program = holders.pinned_program(instance)
        if program is None:
            raise KernelError(f"no program is loaded in instance {instance.name}", hint="lbctl apply")
        features = generation.description.features if generation else ()
        if generation is None or not is_built_of(program.name, features) or DECAPSULATE in features:
            raise KernelError(
                f"the loaded program, {program.name}, is no balancer's, or one that another version of lbctl made",
                hint="on a balancer `lbctl apply` swaps this version's in under traffic",
            )
        live: _Maps = {}
        for spec in specs_of((*features, EXPLAIN)):
            opened = _create(spec, shape_of(spec)) if spec is EXPLAINED else generation.open(spec.name)
            if opened is None:
                raise KernelError(f"instance {instance.name} has no map {spec.name}", hint="lbctl apply")
            live[spec.name] = maps.describe(stack.enter_context(bpf.closing(opened)), spec.type)
        yield Trial(program, features, live, stack)


# --- copies --------------------------------------------------------------------------------------------
_Maps = dict[str, OpenMap]
"""Open maps by name."""


@dataclass(frozen=True, slots=True)
class _Held:
    """The content of the live maps: rows by name; inner arrays by name and index, None for a missing one."""

    rows: dict[str, list[Row]]
    arrays: dict[tuple[str, int], Words | None]


@dataclass(frozen=True, slots=True)
class _Rig:
    """A program with copies of its own."""

    program: int
    maps: _Maps


def _create(spec: MapSpec, shape: Shape) -> int:
    """An empty map for a copy of a live one, which has this shape."""
    copied = replace(shape, type=_COPIES.get(spec.type, spec.type))
    if copied.type == MapType.HASH:
        # Room for the rows that the trial itself adds to a full table; unused room takes no memory.
        return maps.create(spec.name, replace(copied, capacity=2 * copied.capacity), flags=_NO_PREALLOCATION)
    if copied.type == MapType.ARRAY:
        return maps.create(spec.name, copied, flags=MMAPABLE)
    if copied.type == MapType.PROG_ARRAY:
        return maps.create(spec.name, copied)
    with bpf.closing(maps.create(spec.name, inner_shape(spec), flags=MMAPABLE)) as template:
        return maps.create(spec.name, copied, inner=template)


def _read_array(outer: OpenMap, index: int) -> Words | None:
    number = maps.lookup(outer, _INDEX.pack(index))
    fd = bpf.open_map(_INDEX.unpack(number)[0]) if number else None
    if fd is None:
        return None
    with bpf.closing(fd):
        return maps.words(maps.describe(fd)).copy()


def _put_array(outer: OpenMap, spec: MapSpec, index: int, content: Words) -> None:
    with bpf.closing(maps.create(spec.name, inner_shape(spec), flags=MMAPABLE)) as fd:
        maps.words(maps.describe(fd))[:] = content
        maps.update_one(outer, _INDEX.pack(index), _INDEX.pack(fd))
