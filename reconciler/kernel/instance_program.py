# SPDX-License-Identifier: Apache-2.0
"""The program of one instance: loaded with its maps, pinned, and attached to interfaces."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from reconciler.dataplane import crc32c
from reconciler.dataplane.description import Description, MapDescription, describe, specs_of
from reconciler.dataplane.layout import (
    CONNECTION_MAPS,
    CRC32C,
    ENDPOINT_FILTER,
    ENDPOINTS6,
    KNOWN_SERVICES,
    MMAPABLE,
    OTHER,
    SEED,
    STAGES,
    TRANSLATED,
    WATCHERS,
    MapSpec,
    MapType,
)
from reconciler.dataplane.sizes import capacity_of
from reconciler.errors import BuildError, ForeignError, KernelError
from reconciler.kernel import (
    bpf,
    filling,
    generations,
    handing,
    holders,
    maps,
    stages,
    takeover,
    translating,
    whole_maps,
    xdp,
)
from reconciler.kernel.build import Images, build_all
from reconciler.kernel.generations import Generation
from reconciler.kernel.holders import shape_of
from reconciler.kernel.instance import PROGRAM, Instance
from reconciler.kernel.instance_maps import InstanceMaps, inner_shape
from reconciler.kernel.maps import OpenMap, Shape
from reconciler.kernel.objects import AttachedProgram, LoadedProgram, maps_of
from reconciler.kernel.refusal import refused
from reconciler.limits import Sizes


class InstanceProgram(InstanceMaps):
    """The part of `port.Kernel` that is about the program. `source_dir` holds another data plane than lbctl's own."""

    def __init__(self, instance: Instance, source_dir: Path | None) -> None:
        super().__init__(instance)
        self._source_dir = source_dir
        self.adopts = False
        self._adopted: dict[str, tuple[str, int]] = {}
        """The programs of others that were taken over, by interface: mode and descriptor."""
        self._holding: tuple[int, Callable[[], object]] | None = None
        """The program whose stages this process holds, and how it lets them go: so they stay if their pin is lost."""

    # --- the program -----------------------------------------------------------------------------------
    def loaded_program(self) -> LoadedProgram | None:
        with refused("program"):
            program = holders.pinned_program(self._instance)
            if program is None:
                return None
            self._hold_stages(program.id)
            generation = generations.of_program(program)
            if generation is None:
                return LoadedProgram(program.id, program.name)
            described = generation.description
            return LoadedProgram(
                program.id, program.name, described.features, Sizes(*described.sizes), described.digest,
                takeover.is_unfinished(self._instance),
            )  # fmt: skip

    def load_program(self, name: str, features: Sequence[str], sizes: Sizes | None = None) -> None:
        self._unsettle()
        images = build_all(features, self._source_dir)
        specs = specs_of(features)
        _check(images, specs)
        with refused(f"program {name}"), self._instance.mounted():
            live = holders.live(self._instance)
            was_cut_off = takeover.finish(self._instance)
            if was_cut_off and live and live.program.name == name and sizes in (None, Sizes(*live.description.sizes)):
                return
            if sizes is None:
                sizes = Sizes(*live.description.sizes) if live else Sizes()
            if live:
                takeover.keep_on(self._instance, live)
            self._load(name, features, images, specs, sizes, live)
            takeover.sweep(self._instance)

    def _load(
        self, name: str, features: Sequence[str], images: Images, specs: Sequence[MapSpec], sizes: Sizes,
        live: Generation | None,
    ) -> None:  # fmt: skip
        """Make a generation beside the live one. The last step, the pin, is the one that counts."""
        wanted = {spec.name: describe(spec, capacity_of(spec, sizes)) for spec in specs}
        with ExitStack() as stack:
            descriptors = {spec.name: stack.enter_context(_made(spec, wanted[spec.name], live)) for spec in specs}
            description = Description(
                live.description.lineage if live else generations.new_lineage(), tuple(features), wanted,
                {name: maps.describe(fd).id for name, fd in descriptors.items()}, astuple(sizes),
            )  # fmt: skip

            def opened(name: str) -> OpenMap:
                return maps.describe(descriptors[name], wanted[name].type)

            tables = [spec.name for spec in CONNECTION_MAPS.values() if spec.name in descriptors]
            if live and tables:
                handing.fill(live, tables, opened)
            if live and TRANSLATED.name in descriptors:
                translating.fill(live, opened, descriptors)
            if live and ENDPOINT_FILTER.name in descriptors:
                handing.open_filter(opened, has_ipv6=ENDPOINTS6.name in descriptors)
            program = stages.load(name, images, descriptors, stack)
            unused = [descriptors[map_name] for map_name in descriptors.keys() - images.main.maps.keys()]
            unused.append(stack.enter_context(bpf.closing(generations.describe(description, live))))
            for fd in unused:
                bpf.bind_map(program, fd)
            for spec in takeover.KEPT:
                if spec.name in descriptors:
                    takeover.keep(self._instance, bpf.program_info(program).id, spec.name, descriptors[spec.name])
            self._instance.pin(program, PROGRAM)
            self._hold_stages(bpf.program_info(program).id)

    def _hold_stages(self, program_id: int) -> None:
        if self._holding is None or self._holding[0] != program_id:
            self._let_go()
            if (fd := self._instance.open(takeover.pin_of(program_id, STAGES.name))) is not None:
                self._holding = program_id, weakref.finalize(self, os.close, fd)

    def _let_go(self) -> None:
        if self._holding is not None:
            self._holding[1]()
            self._holding = None

    def unload_program(self) -> None:
        self._unsettle()
        self._let_go()
        with refused(f"pins of instance {self._instance.name}"):
            if self._instance.pinned():
                with self._instance.locked():
                    for name in self._instance.pinned():
                        self._instance.unpin(name)

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        with refused(f"maps of instance {self._instance.name}"), takeover.taking_over(self._instance):
            yield

    # --- the program on interfaces ---------------------------------------------------------------------
    def attached_programs(self, interfaces: Collection[str]) -> list[AttachedProgram]:
        with refused("interfaces"):
            found = [(r, holders.is_of(self._instance, r)) for r in xdp.running()]
            pinned = holders.pinned_program(self._instance)
            return [
                AttachedProgram(
                    r.interface, r.mode, r.id, r.program.name if r.program else "", r.owner,
                    is_loaded=pinned is not None and pinned.id == r.id,
                    has_our_maps=pinned is None or (r.program is not None and holders.are_kin(pinned, r.program)),
                    maps=_maps(r.program) if is_mine and r.program else "",
                )
                for r, is_mine in found if is_mine or r.interface in interfaces
            ]  # fmt: skip

    def attach(self, interface: str, mode: str, replaces: int | None) -> None:
        with refused(f"interface {interface}"):
            other = self._check_expected(interface, mode, replaces)
            program = self._instance.open(PROGRAM)
            if program is None:
                raise KernelError(f"no program is loaded that {interface} could run", hint="lbctl apply")
            with bpf.closing(program), _expected(interface, other.id if other else replaces) as expected:
                if other is None or expected is None:
                    xdp.swap(interface, mode, program, expected)
                    return
                _exchange(interface, (other.mode, expected), (mode, program))
                self._adopted[interface] = other.mode, os.dup(expected)

    def detach(self, interface: str, mode: str, replaces: int) -> None:
        with refused(f"interface {interface}"):
            self._check_expected(interface, mode, replaces)
            with _expected(interface, replaces) as expected:
                former = self._adopted.pop(interface, None)
                if former is None or expected is None:
                    xdp.swap(interface, mode, None, expected)
                    return
                with bpf.closing(former[1]):  # what was taken over comes back if that is undone
                    _exchange(interface, (mode, expected), former)

    def _check_expected(self, interface: str, mode: str, replaces: int | None) -> xdp.Running | None:
        """Raise an error that says whose program the interface runs instead; the kernel's own check can't say it.
        Returns somebody else's that is to be taken over."""
        xdp.index(interface)
        held = next((r for r in xdp.running() if r.interface == interface), None)
        if held is None:
            return None
        if not holders.is_of(self._instance, held):
            if self.adopts and replaces is None:
                return held
            raise ForeignError(
                f"{interface} runs {held.owner}, which is not ours",
                hint=f"if nobody needs it: ip link set dev {interface} xdp off",
            )
        if held.id == replaces and held.mode != mode:
            raise KernelError(f"{interface} runs its program in {held.mode} mode; detach it before it can be {mode}")
        return None


_OWN = (STAGES, OTHER, WATCHERS, KNOWN_SERVICES)
"""Maps that each program has for itself: they lead to other programs, or keep what the program's other maps hold."""


@contextmanager
def _made(spec: MapSpec, wanted: MapDescription, live: Generation | None) -> Iterator[int]:
    """A map with this description: that of the live generation, if it has one like this; else a new one with its
    rows."""
    held = live.description.maps.get(spec.name) if live else None
    former = live.open(spec.name) if live else None
    with ExitStack() as stack:
        if former is not None:
            stack.enter_context(bpf.closing(former))
        if former is not None and held == wanted and spec not in _OWN:
            yield former
            return
        fd = stack.enter_context(bpf.closing(_new(spec, wanted, stack)))
        if held and former is not None and spec not in _OWN:
            source, target = maps.describe(former, held.type), maps.describe(fd, wanted.type)
            filling.fill(spec.name, source, held, target, wanted)
        elif spec is SEED:
            whole_maps.write_array(maps.describe(fd), os.urandom(spec.value_size))
        elif spec is CRC32C:
            whole_maps.write_array(maps.describe(fd), crc32c.tables())
        yield fd


def _new(spec: MapSpec, wanted: MapDescription, stack: ExitStack) -> int:
    """An empty map."""
    inner = None
    if spec.type == MapType.ARRAY_OF_MAPS:
        template = maps.create(f"lbctl_{spec.name}", inner_shape(spec), flags=MMAPABLE)
        inner = stack.enter_context(bpf.closing(template))
    shape = Shape(spec.type, spec.key_size, spec.value_size, wanted.capacity)
    return maps.create(spec.name, shape, flags=spec.flags, inner=inner)


def _maps(program: bpf.ProgramInfo) -> str:
    generation = generations.of_program(program)
    return maps_of(generation.description.digest, Sizes(*generation.description.sizes)) if generation else ""


def _check(images: Images, specs: Sequence[MapSpec]) -> None:
    """Raise BuildError if the C source and the layout speak of different maps; capacities are the layout's."""
    expected = {spec.name: shape_of(spec) for spec in specs}
    for name, declared in sorted(images.maps.items()):
        shape = expected.get(name)
        if shape and shape.type == MapType.CPU_ARRAY:
            shape = replace(shape, type=MapType.ARRAY)
        if shape is None or shape != replace(declared, capacity=shape.capacity):
            raise BuildError(
                f"the program declares map {name} as {declared}; the layout says {shape or 'nothing of it'}",
                hint="bpf/maps.h and reconciler/dataplane/layout.py must agree",
            )


def _exchange(interface: str, held: tuple[str, int], wanted: tuple[str, int]) -> None:
    """Put one program in the place of another, each a mode and a descriptor: at once if both run in one mode; else the
    former one has to go first, and comes back if the other can't run. Raises KernelError."""
    if held[0] == wanted[0]:
        xdp.swap(interface, *wanted, held[1])
        return
    xdp.swap(interface, held[0], None, held[1])
    try:
        xdp.swap(interface, *wanted, None)
    except KernelError:
        xdp.swap(interface, *held, None)
        raise


@contextmanager
def _expected(interface: str, program_id: int | None) -> Iterator[int | None]:
    """A descriptor of the program that an interface should run just now."""
    if program_id is None:
        yield None
        return
    fd = bpf.open_program(program_id)
    if fd is None:
        raise KernelError(f"{interface} no longer runs program {program_id}", hint="plan again")
    with bpf.closing(fd):
        yield fd
