# SPDX-License-Identifier: Apache-2.0
"""The programs that are measured: the data plane of this checkout, the same with an LRU, and one that does nothing.

Each is balancer.c inside of bpf/wrapper.h, which restores the frame before each round. The baseline differs
from ours in one function, which finds a packet's endpoint: bpf/lru.h.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path

import numpy as np

from reconciler.dataplane import program
from reconciler.dataplane.layout import REMEMBERED, MapType
from reconciler.dataplane.sizes import capacity_of
from reconciler.kernel import bpf, build, maps
from reconciler.kernel.holders import shape_of
from reconciler.kernel.maps import OpenMap, Shape
from reconciler.limits import Sizes
from reconciler.paths import data_dir

HERE = Path(__file__).parent / "bpf"

FEATURES = ("DSR_L3", "UDP", "IPV6", "MAGLEV", "ECHO", "ALLOWED_SOURCES")
"""As many as Katran's default build has: tunnels, TCP and UDP, IPv4 and IPv6, a consistent hash, answers to pings; and
services that not everybody may use."""

FLOW_BYTES = 8
"""What a flow takes in `remembered`."""

LRU_MISSES = Shape(MapType.ARRAY, 4, 8, 1)


class Variant(Enum):
    OURS = "ours"
    LRU = "LRU"
    NOTHING = "nothing"


def source_of(variant: Variant, directory: Path) -> Path:
    """Write the C of a variant below a directory. ValueError if the data plane's has not the expected form."""
    target = directory / variant.name.lower()
    shutil.copytree(data_dir("bpf"), target)
    main = target / program.MAIN_FILE
    entry = f"int {program.entry(FEATURES)}("
    text = _replaced(main.read_text(), f"\n{entry}", f"\nstatic __always_inline {entry}")
    if variant is Variant.LRU:
        include = '\n#include "endpoint.h"\n'
        text = _replaced(text, include, f'{include}#include "lru.h"\n')
    main.write_text(text + '\n#include "wrapper.h"\n')
    for header in HERE.glob("*.h"):
        shutil.copy(header, target)
    return target


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"{program.MAIN_FILE} was expected to have {old!r} once: adapt {Path(__file__).name}")
    return text.replace(old, new)


def compile_variant(variant: Variant) -> build.Image:
    """Compile in a process of its own; nothing is cached beyond this run."""
    with tempfile.TemporaryDirectory() as directory:
        entry = "bench_nothing" if variant is Variant.NOTHING else "bench_balance"
        return build.build(FEATURES, source_of(variant, Path(directory)), entry)


@contextmanager
def private_cache(directory: Path) -> Iterator[None]:
    """Keep what is compiled here apart from what the machine's own balancer runs."""
    former = os.environ.get("LBCTL_CACHE_DIR")
    os.environ["LBCTL_CACHE_DIR"] = str(directory)
    try:
        yield
    finally:
        if former is None:
            del os.environ["LBCTL_CACHE_DIR"]
        else:
            os.environ["LBCTL_CACHE_DIR"] = former


class Programs:
    """The images, and the maps that all programs share. Each `loaded` one has a row `bench` of its own."""

    def __init__(self, stack: ExitStack, shared: Mapping[str, int], lru_flows: int) -> None:
        """`shared`: name of each map of the data plane → open descriptor. `lru_flows`: how many the LRU holds."""
        self._stack = stack
        self._images = {variant: compile_variant(variant) for variant in Variant}
        self._lru_shape = replace(self._images[Variant.LRU].maps["lru_flows"], capacity=lru_flows)
        self._of_lru = stack.enter_context(ExitStack())
        self._misses = self._map("lru_misses", LRU_MISSES)
        self._tables: dict[int, OpenMap] = {}
        self._descriptors = {**shared, "lru_misses": self._misses.fd}
        self.empty_lru()

    def empty_lru(self) -> None:
        """Give what is loaded of the LRU variant from now on an empty table, and close what was loaded before. A table
        that is full of earlier cases' flows evicts those that a case has just made known."""
        self._of_lru.close()
        made = self._of_lru.enter_context(bpf.closing(maps.create("lru_flows", self._lru_shape)))
        self._lru_flows = maps.describe(made)
        self._descriptors["lru_flows"] = made

    def misses(self) -> int:
        """How many packets the LRU variant did not find in its table."""
        row = maps.lookup(self._misses, bytes(4))
        assert row
        return int.from_bytes(row, sys.byteorder)

    def memory(self, shared: Mapping[str, int]) -> dict[str, int]:
        """What the maps take, and what one LRU takes that has room for as many flows as our table."""
        table = maps.describe(shared[REMEMBERED.name])
        flows = table.shape.capacity * table.shape.value_size // FLOW_BYTES
        with bpf.closing(maps.create("lru_flows", replace(self._lru_flows.shape, capacity=flows))) as as_many:
            lru_bytes = memlock(as_many)
        ours = sum(map(memlock, shared.values()))
        return {
            "ours_with_all_features_bytes": ours,
            "lru_with_all_features_bytes": ours + memlock(self._lru_flows.fd),
            "lru_flows": self._lru_flows.shape.capacity, "table_flows": flows, "table_bytes": memlock(table.fd),
            "lru_of_as_many_flows_bytes": lru_bytes,
        }  # fmt: skip

    def kept(self, flows: int) -> int:
        """How many flows the memory of a node that is made for so many holds."""
        return int(np.count_nonzero(maps.words(self._tables[flows])))

    def _memory_of(self, flows: int) -> int:
        """A memory of flows for a node that is made for so many."""
        if flows not in self._tables:
            shape = replace(shape_of(REMEMBERED), capacity=capacity_of(REMEMBERED, Sizes(flows=flows)))
            made = maps.create(REMEMBERED.name, shape, flags=REMEMBERED.flags)
            self._tables[flows] = maps.describe(self._closed(made))
        return self._tables[flows].fd

    def loaded(self, variant: Variant, flows: int = 0) -> tuple[int, OpenMap]:
        """Load a variant: the descriptors of the program and of its row `bench`. `flows`: with a memory of its own, as
        a node has it that is made for so many."""
        image = self._images[variant]
        bench = self._map("bench", image.maps["bench"])
        own = {REMEMBERED.name: self._memory_of(flows)} if flows else {}
        code = image.linked({**self._descriptors, **own, "bench": bench.fd})
        stack = self._of_lru if variant is Variant.LRU else self._stack
        return stack.enter_context(bpf.closing(bpf.load_program(f"bench_{variant.name.lower()}", code))), bench

    def _map(self, name: str, shape: Shape) -> OpenMap:
        return maps.describe(self._closed(maps.create(name, shape)))

    def _closed(self, descriptor: int) -> int:
        return self._stack.enter_context(bpf.closing(descriptor))


def memlock(descriptor: int) -> int:
    """Bytes that the kernel holds for a map."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
    return int(fields["memlock"])
