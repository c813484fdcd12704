# SPDX-License-Identifier: Apache-2.0
"""The program of one instance: loaded with its maps, pinned, and attached to interfaces."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from reconciler.dataplane.layout import MAPS, SEED, MapSpec, MapType
from reconciler.dataplane.program import DECAPSULATE
from reconciler.errors import BuildError, ForeignError, KernelError
from reconciler.kernel import bpf, holders, maps, xdp
from reconciler.kernel.build import Image, build
from reconciler.kernel.holders import shape_of
from reconciler.kernel.instance import PROGRAM, Instance
from reconciler.kernel.instance_maps import InstanceMaps, inner_shape
from reconciler.kernel.port import AttachedProgram, LoadedProgram
from reconciler.kernel.refusal import refused


class InstanceProgram(InstanceMaps):
    """The part of `port.Kernel` that is about the program. `source_dir` holds another data plane than lbctl's own."""

    def __init__(self, instance: Instance, source_dir: Path | None) -> None:
        super().__init__(instance)
        self._source_dir = source_dir

    # --- the program -----------------------------------------------------------------------------------
    def loaded_program(self) -> LoadedProgram | None:
        with refused("program"):
            fd = self._instance.open(PROGRAM)
            if fd is None:
                return None
            with bpf.closing(fd):
                info = bpf.program_info(fd)
            return LoadedProgram(info.id, info.name, self._instance.features(info.name))

    def is_whole(self) -> bool:
        with refused(f"pins of instance {self._instance.name}"):
            pinned = self._instance.pinned()
            return not pinned or (PROGRAM in pinned and self._map_ids() == holders.pinned_maps(self._instance))

    def _map_ids(self) -> set[int]:
        """The numbers of the instance's maps, including maps whose pins are lost."""
        return holders.pinned_maps(self._instance) | set(holders.maps_of_program(self._instance).values())

    def load_program(self, name: str, features: Sequence[str]) -> None:
        image = build(features, self._source_dir)
        specs = [spec for spec in MAPS.values() if _needed(spec, image, features)]
        _check(image, specs)
        with refused(f"program {name}"), self._instance.mounted():
            before = set(self._instance.pinned())
            try:
                self._load(name, image, specs)
            except (KernelError, OSError):
                for pin in set(self._instance.pinned()) - before:
                    self._instance.unpin(pin)
                raise
        self._instance.note_features(features)

    def _load(self, name: str, image: Image, specs: Sequence[MapSpec]) -> None:
        with ExitStack() as stack:
            descriptors = {spec.name: stack.enter_context(self._made(spec)) for spec in specs}
            program = stack.enter_context(bpf.closing(bpf.load_program(name, image.linked(descriptors))))
            for map_name in descriptors.keys() - image.maps.keys():
                with suppress(OSError):  # before Linux 5.10 such maps are lost with their pins
                    bpf.bind_map(program, descriptors[map_name])
            self._instance.pin(program, PROGRAM)

    @contextmanager
    def _made(self, spec: MapSpec) -> Iterator[int]:
        """The pinned map of this name; made if it is missing, pinned again if its pin is."""
        with self._map(spec.name) as opened:
            if opened:
                if spec.name not in self._instance.pinned():
                    self._instance.pin(opened.fd, spec.name)
                yield opened.fd
                return
        with ExitStack() as stack:
            inner = None
            if spec.type == MapType.ARRAY_OF_MAPS:
                template = maps.create(f"lbctl_{spec.name}", inner_shape(spec), flags=maps.INNER_MAP)
                inner = stack.enter_context(bpf.closing(template))
            made = maps.create(spec.name, shape_of(spec), flags=spec.flags, inner=inner)
            fd = stack.enter_context(bpf.closing(made))
            if spec is SEED:
                maps.write_array(maps.describe(fd), os.urandom(spec.value_size))
            self._instance.pin(fd, spec.name)
            yield fd

    def unload_program(self) -> None:
        with refused(f"pins of instance {self._instance.name}"):
            if self._instance.pinned():
                with self._instance.locked():
                    for name in sorted(self._instance.pinned(), key=lambda name: name != PROGRAM):
                        self._instance.unpin(name)

    # --- the program on interfaces ---------------------------------------------------------------------
    def attached_programs(self, interfaces: Collection[str]) -> list[AttachedProgram]:
        with refused("interfaces"):
            found = [(r, holders.is_of(self._instance, r)) for r in xdp.running()]
            loaded, ours = None, set[int]()
            if any(is_mine for _, is_mine in found):
                loaded = self.loaded_program() if self.is_whole() else None
                ours = self._map_ids()
            return [
                AttachedProgram(
                    r.interface, r.mode, r.id, r.program.name if r.program else "", r.owner,
                    is_loaded=loaded is not None and loaded.id == r.id,
                    has_our_maps=r.program is not None and ours.issuperset(r.program.map_ids),
                )
                for r, is_mine in found if is_mine or r.interface in interfaces
            ]  # fmt: skip

    def attach(self, interface: str, mode: str, replaces: int | None) -> None:
        with refused(f"interface {interface}"):
            self._check_expected(interface, mode, replaces)
            program = self._instance.open(PROGRAM)
            if program is None:
                raise KernelError(f"no program is loaded that {interface} could run", hint="lbctl apply")
            with bpf.closing(program), _expected(interface, replaces) as expected:
                xdp.swap(interface, mode, program, expected)

    def detach(self, interface: str, mode: str, replaces: int) -> None:
        with refused(f"interface {interface}"):
            self._check_expected(interface, mode, replaces)
            with _expected(interface, replaces) as expected:
                xdp.swap(interface, mode, None, expected)

    def _check_expected(self, interface: str, mode: str, replaces: int | None) -> None:
        """Raise an error that says whose program the interface runs instead; the kernel's own check can't say it."""
        xdp.index(interface)
        held = next((r for r in xdp.running() if r.interface == interface), None)
        if held is None:
            return
        if not holders.is_of(self._instance, held):
            raise ForeignError(
                f"{interface} runs {held.owner}, which is not ours",
                hint=f"if nobody needs it: ip link set dev {interface} xdp off",
            )
        if held.id == replaces and held.mode != mode:
            raise KernelError(f"{interface} runs its program in {held.mode} mode; detach it before it can be {mode}")


def _needed(spec: MapSpec, image: Image, features: Sequence[str]) -> bool:
    """Whether a map is made: a balancer also has maps that only user space uses."""
    if DECAPSULATE in features:
        return spec.name in image.maps
    return spec.is_used(features)


def _check(image: Image, specs: Sequence[MapSpec]) -> None:
    """Raise BuildError if the C source and the layout speak of different maps; capacities are the layout's."""
    expected = {spec.name: shape_of(spec) for spec in specs}
    for name, declared in sorted(image.maps.items()):
        shape = expected.get(name)
        if shape is None or shape != replace(declared, capacity=shape.capacity):
            raise BuildError(
                f"the program declares map {name} as {declared}; the layout says {shape or 'nothing of it'}",
                hint="bpf/maps.h and reconciler/dataplane/layout.py must agree",
            )


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
