# SPDX-License-Identifier: Apache-2.0
"""Watching packets of a client on their way through the loaded program: bpf/watch.h.

A program of the same source, with the feature WATCHING and with the live maps, gets every packet by a tail call, does
the same to it as the loaded program does, and reports those that match. The array that leads to it is pinned nowhere:
the kernel empties it when the last process that has it open ends, so a process that is killed leaves nothing behind.
One that is stopped in the middle leaves a program that reports nothing after the end of its time.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from reconciler import clock
from reconciler.dataplane.description import specs_of
from reconciler.dataplane.layout import EXPLAINED, STAGES, WATCH_FILTER, WATCH_REPORTS, WATCHERS, WATCHING
from reconciler.dataplane.program import DECAPSULATE, is_built_of
from reconciler.dataplane.rows import Explained, Number, Watched, WatchFilter
from reconciler.errors import KernelError
from reconciler.kernel import bpf, holders, maps, stages, whole_maps
from reconciler.kernel.build import build_all
from reconciler.kernel.holders import shape_of
from reconciler.kernel.instance import Instance
from reconciler.kernel.maps import OpenMap
from reconciler.kernel.refusal import refused

FEATURE = "WATCHING"
_NAME = "lbctl_watch"
_ONLY_HERE = (WATCH_FILTER, WATCHING, WATCH_REPORTS, STAGES)
_CLOSED_FIRST = 512
"""A descriptor above all others of the process."""
_FIRST = WATCHERS.key.pack(Number(0))
_TAKEN, _LIMIT = 5, 6
"""Words of the filter's row."""
_ROOM = WATCH_REPORTS.capacity // 2
"""How many reports may be unread. CPUs that look at the limit at the same time may each go one above it."""


@dataclass(frozen=True, slots=True)
class Match:
    """Packets from a client to a VIP, and to the client; port 0 is any port, no VIP any VIP."""

    client: IPv4Address | IPv6Address
    client_port: int = 0
    vip: IPv4Address | IPv6Address | None = None
    vip_port: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A packet: what came in, what left (both cut off behind 128 bytes), what the program returned, and what it looked
    up; None where it looked nothing up. `at_ns` is CLOCK_MONOTONIC."""

    at_ns: int
    action: int
    ingress: int
    before: bytes
    before_bytes: int
    after: bytes
    after_bytes: int
    verdict: int | None
    service: int | None
    ring: int | None
    slot: int | None
    endpoint: int | None


class Watcher:
    """Made by `with watching(…) as …`."""

    def __init__(self, instance: Instance, program_id: int, array: OpenMap, fd: int, own: dict[str, OpenMap]) -> None:
        self._instance = instance
        self._program_id = program_id
        self._array = array
        self._fd = fd
        self._id = bpf.program_info(fd).id
        self._own = own
        self._filter = maps.words(own[WATCH_FILTER.name])
        self._reports = maps.words(own[WATCH_REPORTS.name]).reshape(WATCH_REPORTS.capacity, -1)
        self._read = 0

    def arm(self) -> None:
        """Have packets watched. To be called again from time to time: when the process that made the array closed it,
        the kernel may have begun to empty it, and does so later. Raises KernelError if another program runs by now."""
        with refused(f"instance {self._instance.name}"):
            self._arm()

    def disarm(self) -> None:
        """Have packets no longer watched."""
        maps.delete_one(self._array, _FIRST)

    def _arm(self) -> None:
        pinned = holders.pinned_program(self._instance)
        if pinned is None or pinned.id != self._program_id:
            raise KernelError("the program was replaced meanwhile", hint="start again to watch the new one")
        held = maps.lookup(self._array, _FIRST)
        if held is not None and WATCHERS.value.unpack(held).number != self._id:
            raise KernelError("somebody watches packets of this instance already", hint="one at a time")
        if held is None:
            maps.update_one(self._array, _FIRST, WATCHERS.value.pack(Number(self._fd)))

    def allow(self, packets: int) -> None:
        """Let so many more packets be reported, as far as there is room for those that nobody has read yet."""
        self._filter[_LIMIT] = min(max(int(self._filter[_LIMIT]), self._read) + packets, self._read + _ROOM)

    def reports(self) -> Iterator[Report]:
        """The reports that were not read yet."""
        while True:
            row = self._reports[self._read % WATCH_REPORTS.capacity]
            if int(row[0]) != self._read + 1:
                return
            self._read += 1
            yield _report(WATCH_REPORTS.value.unpack(row.tobytes()))

    def missed(self) -> int:
        """How many packets matched above the limit."""
        cpus = WATCHING.value.array(whole_maps.read_array(self._own[WATCHING.name]))
        return int(cpus["missed"].sum())


def _report(row: Watched) -> Report:
    seen = EXPLAINED.value.unpack(row.seen)
    known = {name: value for name, value in zip(Explained._fields, seen, strict=True) if value != 0xFFFF_FFFF}
    return Report(
        row.time, row.action, row.ingress,
        row.before[: row.bytes], row.bytes, row.after[: row.bytes_after], row.bytes_after,
        known.get("verdict"), known.get("service"), known.get("rings"), known.get("slot"), known.get("endpoint"),
    )  # fmt: skip


@contextmanager
def watching(instance: Instance, match: Match, seconds: float) -> Iterator[Watcher]:
    """Watch packets for so long at most. None is reported before `allow` is called. Raises KernelError, BuildError."""
    with ExitStack() as stack:
        with refused(f"instance {instance.name}"):
            watcher = _made(instance, match, seconds, stack)
        watcher.arm()
        stack.callback(watcher.disarm)
        yield watcher


def _made(instance: Instance, match: Match, seconds: float, stack: ExitStack) -> Watcher:
    generation = holders.live(instance)
    program = holders.pinned_program(instance)
    if program is None:
        raise KernelError(f"no program is loaded in instance {instance.name}", hint="lbctl apply")
    features = generation.description.features if generation else ()
    array = generation.open(WATCHERS.name) if generation else None
    is_own = is_built_of(program.name, features) and DECAPSULATE not in features
    if generation is None or array is None or not is_own:
        raise KernelError(
            f"the loaded program, {program.name}, is no balancer's, or one that another version of lbctl made",
            hint="on a balancer `lbctl apply` swaps this version's in under traffic",
        )
    # Of a process that is killed, the kernel closes the highest descriptor first (fput() in fs/file_table.c, and
    # task_work_run(), which runs what was added last): packets must not be led to a program whose stages are gone.
    lowest, array = array, fcntl.fcntl(array, fcntl.F_DUPFD_CLOEXEC, _CLOSED_FIRST)
    os.close(lowest)
    stack.callback(os.close, array)
    images = build_all((*features, FEATURE))
    descriptors = {}
    for spec in specs_of((*features, FEATURE)):
        is_own = spec in _ONLY_HERE
        fd = maps.create(spec.name, shape_of(spec), flags=spec.flags) if is_own else generation.open(spec.name)
        if fd is None:
            raise KernelError(f"instance {instance.name} has no map {spec.name}", hint="lbctl apply")
        descriptors[spec.name] = stack.enter_context(bpf.closing(fd))
    own = {spec.name: maps.describe(descriptors[spec.name]) for spec in _ONLY_HERE}
    whole_maps.write_array(own[WATCH_FILTER.name], WATCH_FILTER.value.pack(_row(match, seconds)))
    fd = stages.load(_NAME, images, descriptors, stack)
    return Watcher(instance, program.id, maps.describe(array), fd, own)


def _row(match: Match, seconds: float) -> WatchFilter:
    return WatchFilter(
        match.client.packed.ljust(16, b"\0"), match.vip.packed.ljust(16, b"\0") if match.vip else bytes(16),
        clock.now_ns() + int(seconds * 1e9), client_port=match.client_port, vip_port=match.vip_port,
        is_ipv6=int(match.client.version == 6), has_vip=int(match.vip is not None),
    )  # fmt: skip


def until_wall_s(at_ns: int) -> float:
    """The time of a report in seconds since 1970."""
    return time.time() - (clock.now_ns() - at_ns) / 1e9
