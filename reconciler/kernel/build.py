# SPDX-License-Identifier: Apache-2.0
"""From bpf/*.c to bytecode that only lacks its maps: compiled once, then taken from the cache.

A cached image loads without a compiler, without kernel headers and without importing bcc.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler import children, private, progress
from reconciler.dataplane import program
from reconciler.dataplane.layout import (
    BOUND,
    CONNECTIONS,
    CONNECTIONS6,
    ENDPOINT_COUNTERS,
    ENDPOINT_FILTER,
    KNOWN_SERVICES,
    REMEMBERED,
    RETURNS,
    RETURNS6,
    SERVICE_COUNTERS,
    TRANSLATED,
    TRANSLATED6,
)
from reconciler.dataplane.stages import Stage, stages_of
from reconciler.errors import BuildError, FilesError
from reconciler.kernel import cpus, headers, maps
from reconciler.kernel.cache import ENVIRONMENT, cache_dir
from reconciler.kernel.maps import Shape

_FORMAT = 1
_CHILD = "reconciler.kernel.compile_child"
_TIME_LIMIT_S = 120
"""Of CPU time."""
_PATIENCE_S = 1800
"""Of time that passes: on a busy machine, or one that swaps, much more of it."""
_LINES_SHOWN = 20


def _rows_of_cpu(capacity: int, is_trial: bool) -> int:
    return 0 if is_trial else capacity // cpus.numbered_cpus()


_SIZES: Mapping[str, tuple[int, Callable[[int, bool], int]]] = {
    BOUND.name: (0x626F756E64000001, lambda capacity, _: capacity - 1),
    REMEMBERED.name: (0x6275636B65740001, lambda capacity, _: capacity - 1),
    CONNECTIONS.name: (0x636F6E6E65637401, lambda capacity, _: capacity),
    CONNECTIONS6.name: (0x636F6E6E65637402, lambda capacity, _: capacity),
    ENDPOINT_FILTER.name: (0x66696C7465726501, lambda capacity, _: capacity),
    TRANSLATED.name: (0x636F6E6E65637401, lambda capacity, _: capacity),
    TRANSLATED6.name: (0x636F6E6E65637402, lambda capacity, _: capacity),
    RETURNS.name: (0x72657475726E7301, lambda capacity, _: capacity),
    RETURNS6.name: (0x72657475726E7301, lambda capacity, _: capacity),
    SERVICE_COUNTERS.name: (0x7365727669636501, _rows_of_cpu),
    ENDPOINT_COUNTERS.name: (0x656E64706F696E01, _rows_of_cpu),
    KNOWN_SERVICES.name: (0x6B6E6F776E737201, _rows_of_cpu),
}
"""By map: the number that stands in the program for one that depends on the map's size (BUCKET_MASK of bpf/remember.h,
BOUND_MASK of bpf/affinity.h, CONNECTION_BUCKETS of bpf/connection.h, ENDPOINT_FILTER_LINES of bpf/filter.h, KNOWN_ROWS
of bpf/vip.h, SERVICE_ROWS and ENDPOINT_ROWS of bpf/count.h), and what it is for a number of rows, in a trial or
not."""
_LOAD_64_BIT_IMMEDIATE = 0x18


@dataclass(frozen=True, slots=True)
class Image:
    """A compiled program. `relocations`: number of an instruction, name of the map that it refers to."""

    code: bytes
    relocations: tuple[tuple[int, str], ...]
    maps: Mapping[str, Shape]

    def linked(self, descriptors: Mapping[str, int], *, is_trial: bool = False) -> bytes:
        """The code with the descriptors of open maps filled in, fit for `bpf.load_program`, and with the sizes of maps
        that it calculates with. In a trial all CPUs have the same rows in arrays of CPUs, since only one runs it.
        OSError if a descriptor is none of a map."""
        code = bytearray(self.code)
        for index, name in self.relocations:
            struct.pack_into("=i", code, index * 8 + 4, descriptors[name])
        for name in self.maps.keys() & _SIZES.keys():
            constant, number_of = _SIZES[name]
            number = number_of(maps.describe(descriptors[name]).shape.capacity, is_trial)
            for index in self._constants(constant):
                struct.pack_into("=I", code, index * 8 + 4, number)
                struct.pack_into("=I", code, index * 8 + 12, 0)
        return bytes(code)

    def _constants(self, value: int) -> Iterator[int]:
        """The instructions that load a 64-bit number."""
        for index in range(len(self.code) // 8 - 1):
            opcode, registers, low = struct.unpack_from("=BBxxI", self.code, index * 8)
            (high,) = struct.unpack_from("=I", self.code, index * 8 + 12)
            if opcode == _LOAD_64_BIT_IMMEDIATE and not registers >> 4 and low | high << 32 == value:
                yield index


@dataclass(frozen=True, slots=True)
class Images:
    """A main program and its stages."""

    main: Image
    stages: Mapping[Stage, Image]

    @property
    def maps(self) -> dict[str, Shape]:
        """All maps that one of them uses."""
        return {name: shape for image in (*self.stages.values(), self.main) for name, shape in image.maps.items()}


def build_all(features: Sequence[str], source_dir: Path | None = None) -> Images:
    """`build` the main program and its stages, two at a time."""
    stages = stages_of(features)
    wanted = [features, *(stage.features(features) for stage in stages)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        main, *others = pool.map(lambda one: build(one, source_dir), wanted)
    return Images(main, dict(zip(stages, others, strict=True)))


def build(features: Sequence[str], source_dir: Path | None = None, entry: str | None = None) -> Image:
    """Compile the program with -D of each feature, or fetch the image that an earlier call compiled.

    `source_dir` holds its main file and the headers (None: lbctl's own), `entry` is the function that packets enter
    by (None: the program's own). Raises BuildError with the compiler's
    message if it does not compile, or if compiler or kernel headers are missing.
    """
    cache = cache_dir()
    source = program.source(source_dir, program.main_file(features))
    entry = entry or program.entry(features)
    identity = (_FORMAT, platform.machine(), entry, sorted(features), source)
    cached = cache / f"{hashlib.sha256(repr(identity).encode()).hexdigest()}.image"
    content = _read(cached)
    if content is None:
        with _headers(cache) as found:
            content = _compile({
                "source": source,
                "cflags": [f"-D{feature}" for feature in features],
                "entry": entry,
                "headers": str(found),
            })  # fmt: skip
        body = json.dumps(content).encode()
        with contextlib.suppress(FilesError):  # a full or read-only disk: the next call compiles again
            private.write(cached, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    return Image(
        code=bytes.fromhex(content["code"]),
        relocations=tuple((index, name) for index, name in content["relocations"]),
        maps={name: Shape(*numbers) for name, numbers in content["maps"].items()},
    )


@contextmanager
def _headers(cache: Path) -> Iterator[Path]:
    """Kernel headers, prepared in the cache; in a temporary directory if the cache can't be written."""
    with ExitStack() as stack:
        try:
            try:
                found = headers.find(cache)
            except OSError:
                found = headers.find(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lbctl-"))))
        except OSError as error:
            raise BuildError(
                f"there is no room for kernel headers in {cache}: {error.strerror or error}",
                hint=f"make room, or name another directory in {ENVIRONMENT}",
            ) from error
        yield found


def _read(cached: Path) -> dict[str, Any] | None:
    """A cached image; None if it is missing, damaged, or made by another compiler than the installed one."""
    try:
        checksum, _, body = (private.read(cached) or b"").partition(b"\n")
    except FilesError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        return None
    content: dict[str, Any] = json.loads(body)
    return None if _compiler_changed(content["compiler"]) else content


def _compiler_changed(libraries: Sequence[tuple[str, int, int]]) -> bool:
    """Whether a library of the compiler was replaced. One that was removed doesn't count: without it nothing could be
    rebuilt."""
    for path, size, changed_ns in libraries:
        try:
            status = Path(path).stat()
        except FileNotFoundError:
            continue
        if (status.st_size, status.st_mtime_ns) != (size, changed_ns):
            return True
    return False


def _compile(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with progress.step("compiling the data plane"):
            command = children.module(_CHILD, str(_TIME_LIMIT_S))
            child = children.run(command, json.dumps(request).encode(), _PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"compiling the data plane took longer than {_PATIENCE_S} s") from error
    if child.returncode == -signal.SIGXCPU:
        raise BuildError(f"compiling the data plane took more than {_TIME_LIMIT_S} s of CPU time")
    if child.returncode == 0:
        content: dict[str, Any] = json.loads(child.stdout)
        return content
    complaints = child.stderr.decode("utf-8", "replace")
    if "ModuleNotFoundError: No module named 'bcc'" in complaints:
        raise BuildError("compiling the data plane needs BCC", hint="apt install python3-bpfcc")
    ended = f"signal {-child.returncode}" if child.returncode < 0 else f"exit status {child.returncode}"
    raise BuildError(
        f"the data plane does not compile with {request['cflags']} ({ended}):{_reason(complaints)}",
        hint="an unchanged source that does not compile points at the compiler: "
        "lbctl is made for BCC 0.26 and newer (python3-bpfcc)",
    )


def _reason(output: str) -> str:
    """The compiler's output from its first error on, without Python's traceback."""
    lines = output.partition("Traceback (most recent call last)")[0].splitlines() or output.splitlines()
    first = next((number for number, line in enumerate(lines) if "error:" in line), len(lines) - _LINES_SHOWN)
    return "".join(f"\n    {line}" for line in lines[max(first, 0) :][:_LINES_SHOWN])
