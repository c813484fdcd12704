# SPDX-License-Identifier: Apache-2.0
"""This machine's kernel, as `port.Kernel` describes it.

Nothing is remembered between calls, so any number of processes may look at one instance at the same time.
Interfaces, VIPs and settings are those of the network namespace that the calling thread is in.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from reconciler.errors import BuildError, ForeignError, KernelError
from reconciler.kernel import (
    addresses,
    announce,
    bpf,
    claims,
    firewall,
    holders,
    hush,
    links,
    local_vips,
    maps,
    neighbours,
    proxies,
    routes,
    sysctl,
    tunnels,
    veth,
    xdp,
)
from reconciler.kernel.build import Image, build
from reconciler.kernel.holders import shape_of
from reconciler.kernel.instance import PROGRAM, Instance
from reconciler.kernel.layout import INNER_IDS, MAPS, SEED, MapSpec, MapType
from reconciler.kernel.maps import OpenMap, Shape
from reconciler.kernel.port import (
    AttachedProgram,
    Firewall,
    Link,
    LoadedProgram,
    LocalVip,
    Neighbour,
    Outcome,
    Route,
    Row,
    TunnelDevice,
)
from reconciler.kernel.refusal import refused
from reconciler.program import DECAPSULATE

RUN_DIR = Path("/run/lbctl")

_INNER_A_CALL = 128  # each needs a file descriptor during the call; a process has 1,024 by default
_INDEX = struct.Struct("=I")


class RealKernel:
    """One instance on this machine. `source_dir` holds another data plane than lbctl's own, for tests; `netns` is
    the name of --netns that the calling thread entered its network namespace by, if any."""

    def __init__(
        self, instance: str = "default", run_dir: Path = RUN_DIR, source_dir: Path | None = None, netns: str = ""
    ) -> None:
        self._instance = Instance(instance, run_dir)
        self._netns = netns
        self._ledger = sysctl.Ledger(self._instance)
        self._source_dir = source_dir

    # --- the instance ----------------------------------------------------------------------------------
    def check_place(self) -> None:
        """Raise UsageError if this instance is in another network namespace, or another instance is in this one."""
        claims.check(self._instance, self._netns)

    def claim(self) -> None:
        with refused(f"instance {self._instance.name}"):
            if claims.is_stale(self._instance, self._netns):
                self._ledger.discard()  # former values went with their namespace
            claims.claim(self._instance, self._netns)

    def abandon(self) -> None:
        """Remove an instance whose network namespace is gone, with everything that was in it. Raises UsageError."""
        claims.check_gone(self._instance, self._netns)
        self.unload_program()
        self._ledger.discard()
        self.remove_instance()

    # --- maps ------------------------------------------------------------------------------------------
    def dump(self, map_name: str) -> list[Row]:
        with self._map(INNER_IDS[map_name].name if map_name in INNER_IDS else map_name) as opened:
            return list(maps.dump(opened)) if opened else []

    def update(self, map_name: str, rows: Sequence[Row]) -> list[Outcome]:
        with self._map(map_name) as opened:
            if opened is None:
                return [_no_map(map_name)] * len(rows)
            return [outcome and _row_error(map_name, opened, outcome) for outcome in maps.update(opened, rows)]

    def delete(self, map_name: str, keys: Sequence[bytes]) -> list[Outcome]:
        with self._map(map_name) as opened:
            if opened is None:
                return [None] * len(keys)
            return [outcome and _row_error(map_name, opened, outcome) for outcome in maps.delete(opened, keys)]

    @contextmanager
    def _map(self, name: str) -> Iterator[OpenMap | None]:
        """A map of the instance that has the shape it should have; None if it was never made."""
        with refused(f"map {name}"):
            fd = self._instance.open(name)
            if fd is None:  # never made, or its pin is lost
                number = holders.maps_of_program(self._instance).get(name)
                fd = bpf.open_map(number) if number is not None else None
            if fd is None:
                yield None
                return
            with bpf.closing(fd):
                opened = maps.describe(fd)
                if opened.shape != shape_of(MAPS[name]):
                    raise KernelError(
                        f"map {name} of instance {self._instance.name} was made by another version of lbctl: "
                        f"{opened.shape}; this one needs {shape_of(MAPS[name])}",
                        hint=f"`umount {self._instance.pins}` and apply again: packets flow meanwhile, "
                        "but connections that are open will break",
                    )
                yield opened

    # --- arrays of arrays ------------------------------------------------------------------------------
    def read_inner(self, outer: str, index: int) -> bytes | None:
        with self._inner(outer, index) as inner:
            return maps.read_array(inner) if inner else None

    def replace_inner(self, outer: str, contents: Mapping[int, bytes]) -> list[Outcome]:
        # Each call waits until no CPU uses the former arrays (8 ms), however many they are: so one call takes many.
        items = list(contents.items())
        return [
            outcome for start in range(0, len(items), _INNER_A_CALL)
            for outcome in self._replace_inner(outer, items[start : start + _INNER_A_CALL])
        ]  # fmt: skip

    def _replace_inner(self, outer: str, contents: Sequence[tuple[int, bytes]]) -> list[Outcome]:
        with self._map(outer) as opened, refused(outer), ExitStack() as stack:
            if opened is None:
                return [_no_map(outer)] * len(contents)
            template = inner_shape(MAPS[outer])
            rows, ids = [], []
            for index, content in contents:
                shape = replace(template, capacity=len(content) // template.value_size)
                fd = stack.enter_context(bpf.closing(maps.create(f"lbctl_{outer}", shape, flags=maps.INNER_MAP)))
                inner = maps.describe(fd)
                maps.write_array(inner, content)
                rows.append((_INDEX.pack(index), _INDEX.pack(fd)))
                ids.append((_INDEX.pack(index), _INDEX.pack(inner.id)))
            # The number is noted before the array is put in its place. If the latter fails, `_inner` sees that the
            # noted array is gone; an array without a note would never be found.
            if any(noted := self.update(INNER_IDS[outer].name, ids)):
                return noted
            return [outcome and _row_error(outer, opened, outcome) for outcome in maps.update(opened, rows)]

    def patch_inner(self, outer: str, index: int, rows: Mapping[int, bytes]) -> None:
        with self._inner(outer, index) as inner:
            if inner is None:
                raise KernelError(f"{outer} has no array {index}")
            for error in filter(None, maps.update(inner, [(_INDEX.pack(row), value) for row, value in rows.items()])):
                raise error

    def remove_inner(self, outer: str, indexes: Sequence[int]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        with self._map(outer) as opened:
            for index in indexes:  # arrays of maps know no batched delete
                try:
                    if opened:
                        maps.delete_one(opened, _INDEX.pack(index))
                    outcomes.append(None)
                except OSError as error:
                    outcomes.append(KernelError(f"{outer} {index}: {error.strerror}"))
        gone = [_INDEX.pack(index) for index, outcome in zip(indexes, outcomes, strict=True) if not outcome]
        self.delete(INNER_IDS[outer].name, gone)
        return outcomes

    @contextmanager
    def _inner(self, outer: str, index: int) -> Iterator[OpenMap | None]:
        with self._map(outer) as opened, self._map(INNER_IDS[outer].name) as ids, refused(f"{outer} {index}"):
            number = maps.lookup(ids, _INDEX.pack(index)) if ids else None
            fd = bpf.open_map(_INDEX.unpack(number)[0]) if number and any(number) else None
            # If the noted array is gone, it was replaced just now, or never got to its place: ask the outer array.
            while fd is None and opened and number and any(number):
                number = maps.lookup(opened, _INDEX.pack(index))
                fd = bpf.open_map(_INDEX.unpack(number)[0]) if number else None
            if fd is None:
                yield None
                return
            with bpf.closing(fd):
                yield maps.describe(fd)

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

    def remove_instance(self) -> None:
        """Remove the instance's directory. Raises KernelError if objects or former values are left in it."""
        if left := self.former_sysctls():
            raise KernelError(f"settings are not restored yet: {', '.join(left)}", hint="lbctl delete")
        with refused(f"directory {self._instance.directory}"):
            self._instance.remove()

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

    def hushed(self, places: Collection[tuple[str, str, int]]) -> AbstractContextManager[None]:
        return hush.hushed(places)

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

    # --- VIPs of the node ------------------------------------------------------------------------------
    def local_vips(self) -> list[LocalVip]:
        with refused("local addresses"):
            return local_vips.read()

    def foreign_addresses(self, addresses: Collection[str]) -> dict[str, str]:
        with refused("local addresses"):
            return local_vips.foreign(addresses)

    def add_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        with refused("local addresses"):
            return local_vips.add(vips)

    def remove_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        with refused("local addresses"):
            return local_vips.remove(vips)

    # --- tunnels ---------------------------------------------------------------------------------------
    def knows_tunnel(self, form: str) -> bool:
        with refused("tunnels"):
            return tunnels.known(form)

    def tunnels(self) -> list[TunnelDevice]:
        with refused("tunnels"):
            return tunnels.read()

    def add_tunnel(self, device: TunnelDevice) -> None:
        with refused(f"tunnel {device.name}"):
            tunnels.add(device)

    def remove_tunnel(self, name: str) -> None:
        with refused(f"tunnel {name}"):
            tunnels.remove(name)

    # --- sysctls ---------------------------------------------------------------------------------------
    def read_sysctl(self, name: str) -> str | None:
        return sysctl.read(name)

    def write_sysctl(self, name: str, value: str) -> None:
        sysctl.write(name, value)

    def former_sysctls(self) -> dict[str, str]:
        return {} if claims.is_stale(self._instance, self._netns) else self._ledger.values()

    def remember_sysctl(self, name: str, former: str) -> None:
        self._ledger.put(name, former)

    def forget_sysctl(self, name: str) -> None:
        self._ledger.drop(name)

    # --- others' firewalls -----------------------------------------------------------------------------
    def firewalls(self, interfaces: Collection[str]) -> list[Firewall]:
        with refused("firewalls"):
            return firewall.firewalls(interfaces)

    # --- interfaces and neighbours ---------------------------------------------------------------------
    def links(self) -> list[Link]:
        with refused("interfaces"):
            return links.read()

    def far_ends(self, interfaces: Collection[str]) -> dict[str, bool]:
        with refused("interfaces"):
            return veth.far_ends(interfaces)

    def missing_addresses(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        with refused("addresses"):
            return addresses.missing(wanted)

    def keeps_neighbours(self) -> bool:
        with refused("neighbours"):
            return neighbours.can_keep()

    def neighbours(self) -> tuple[list[Neighbour], list[Neighbour]]:
        with refused("neighbours"):
            return neighbours.read()

    def keep_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return neighbours.keep(wanted)

    def forget_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return neighbours.forget(wanted)

    def neighbour_proxies(self) -> tuple[list[Neighbour], list[Neighbour]]:
        with refused("neighbours"):
            return proxies.read()

    def add_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return proxies.add(wanted)

    def remove_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        with refused("neighbours"):
            return proxies.remove(wanted)

    def announce(self, vips: Collection[str]) -> None:
        with refused("announcements of VIPs"):
            announce.announce(vips)

    # --- routes ----------------------------------------------------------------------------------------
    def routes(self) -> list[Route]:
        with refused("routes"):
            return routes.read()

    def add_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        with refused("routes"):
            return routes.add(wanted)

    def remove_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        with refused("routes"):
            return routes.remove(wanted)

    def next_hops(self) -> list[Neighbour]:
        with refused("routes"):
            return routes.next_hops()

    def way_out(self, address: str) -> int | None:
        return routes.way_out(address)

    def networks(self) -> list[str]:
        with refused("local addresses"):
            return routes.networks()


def inner_shape(spec: MapSpec) -> Shape:
    """The shape of the inner arrays of an array of arrays; they differ in their capacity alone."""
    return Shape(MapType.ARRAY, _INDEX.size, struct.calcsize(spec.inner), 1)


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
                hint="bpf/maps.h and reconciler/kernel/layout.py must agree",
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


def _no_map(name: str) -> KernelError:
    return KernelError(f"there is no map {name}: no program is loaded", hint="lbctl apply")


def _row_error(name: str, opened: OpenMap, error: OSError) -> KernelError:
    capacity = opened.shape.capacity
    if error.errno == errno.E2BIG and opened.shape.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        return KernelError(f"map {name} has no such row: it has {capacity:,}")
    if error.errno == errno.E2BIG:
        return KernelError(f"map {name} is full: it has room for {capacity:,} rows")
    return KernelError(f"map {name}: {error.strerror}")
