# SPDX-License-Identifier: Apache-2.0
"""The process that compiles: `python -m reconciler.kernel.compile_child SECONDS`. Nothing else imports bcc.

A process of its own because BCC calls exit(1) on some errors, writes messages to standard error only, and takes
75 MB. Reads a request as JSON from standard input and writes the image to standard output; SIGXCPU ends it after so
many seconds of CPU time.
The program is not loaded here; the maps that BCC makes while it compiles end with the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any

from reconciler.kernel import maps

_LOAD_64_BIT_IMMEDIATE = 0x18
_PSEUDO_MAP = (1, 2)
"""Source registers that mark an immediate as the descriptor of a map: BPF_PSEUDO_MAP_FD, _MAP_VALUE."""


def main() -> None:
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # BCC prints to standard output, too.
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    json.dump(_compile(request["source"], request["cflags"], request["entry"]), answer)
    answer.close()


def _compile(source: str, cflags: list[str], entry: str) -> dict[str, Any]:
    from bcc import BPF, lib

    module = BPF(text=source.encode(), cflags=cflags)
    code: bytes = module.dump_func(entry.encode())

    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    names = {
        lib.bpf_table_fd_id(module.module, number): lib.bpf_table_name(module.module, number).decode()
        for number in range(lib.bpf_num_tables(module.module))
    }
    relocations = _map_descriptors(code)
    shapes = {}
    for fd in set(relocations.values()):
        shape = maps.describe(fd).shape
        shapes[names[fd]] = [shape.type, shape.key_size, shape.value_size, shape.capacity]
    return {
        "code": code.hex(),
        "relocations": [[index, names[fd]] for index, fd in relocations.items()],
        "maps": shapes,
        "compiler": _compiler(),
    }


def _map_descriptors(code: bytes) -> dict[int, int]:
    """Instructions that load the address of a map: number of the instruction → file descriptor of the map."""
    found = {}
    for index, (opcode, registers, _offset, immediate) in enumerate(struct.iter_unpack("=BBhi", code)):
        source = registers >> 4 if sys.byteorder == "little" else registers & 0xF
        if opcode == _LOAD_64_BIT_IMMEDIATE and source in _PSEUDO_MAP:
            found[index] = immediate
    return found


def _compiler() -> list[list[str | int]]:
    """The libraries of the compiler: path, size, time of change in ns. Another compiler differs in one of them."""
    paths = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
             if "/lib" in line and any(name in line for name in ("libbcc", "libLLVM", "libclang"))}  # fmt: skip
    found = ((path.strip(), Path(path.strip()).stat()) for path in sorted(paths))
    return [[path, status.st_size, status.st_mtime_ns] for path, status in found]


if __name__ == "__main__":
    main()
