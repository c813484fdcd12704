# SPDX-License-Identifier: Apache-2.0
"""The bpf(2) system call: objects, pins and programs. Maps have a module of their own, `maps`.

Functions return bare file descriptors, which the kernel opens close-on-exec; the caller closes them.
If the kernel refuses a call, OSError is raised with its errno. Layouts: `union bpf_attr` and
`struct bpf_prog_info` of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from reconciler.errors import BuildError

NAME_BYTES = 15
"""Characters that the kernel keeps of the name of a map or program."""

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
SCHED_CLS, XDP = 3, 6
"""Types of programs: `enum bpf_prog_type`."""
_INSTRUCTION_BYTES = 8
_LOG_BYTES = 1 << 24
_LOG_LINES = 20
_FRAME_BYTES = 4096
_SMALLEST_FRAME_BYTES = 64
_libc = ctypes.CDLL(None, use_errno=True)


class Command(IntEnum):
    """`enum bpf_cmd`."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    PROG_BIND_MAP = 35


class XdpVerdict(IntEnum):
    """`enum xdp_action`: what an XDP program returns."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


class Run(NamedTuple):
    """A program's verdict on one frame, and the frame as the program left it."""

    verdict: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A program as the kernel describes it; `tag` is a hash of its code, `uid` the user who loaded it."""

    id: int
    name: str
    tag: str
    uid: int
    map_ids: tuple[int, ...]


def memory(content: bytes | int) -> ctypes.Array[ctypes.c_char]:
    """Bytes that the kernel may read and write; a number asks for that many zeros."""
    if isinstance(content, int):
        return ctypes.create_string_buffer(content)
    return ctypes.create_string_buffer(content, len(content))


def call(command: Command, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """One bpf(2) call; `attributes` is read and, for some commands, written. OSError if it is refused."""
    result: int = _libc.syscall(
        _syscall_number(), ctypes.c_int(command), attributes, ctypes.c_uint(len(attributes))
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (bpf {command.name})")
    return result


def _syscall_number() -> int:
    try:
        return _SYSCALL[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {platform.machine()} is not known") from None


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a file descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def pin(fd: int, path: Path) -> None:
    """Give a map or program a name in a bpffs. OSError EEXIST if it is taken, EPERM if it is no bpffs."""
    name = memory(os.fsencode(path) + b"\0")
    call(Command.OBJ_PIN, memory(struct.pack("=QII", ctypes.addressof(name), fd, 0)))


def open_pin(path: Path) -> int | None:
    """A file descriptor of the object pinned at a path, None if nothing is."""
    name = memory(os.fsencode(path) + b"\0")
    try:
        return call(Command.OBJ_GET, memory(struct.pack("=QII", ctypes.addressof(name), 0, 0)))
    except FileNotFoundError:
        return None


def open_program(program_id: int) -> int | None:
    """A file descriptor of a program by its number, None if there is no such program."""
    return _open_id(Command.PROG_GET_FD_BY_ID, program_id)


def open_map(map_id: int) -> int | None:
    """A file descriptor of a map by its number, None if there is no such map."""
    return _open_id(Command.MAP_GET_FD_BY_ID, map_id)


def _open_id(command: Command, number: int) -> int | None:
    try:
        return call(command, memory(struct.pack("=III", number, 0, 0)))
    except FileNotFoundError:
        return None


def object_info(fd: int, info: ctypes.Array[ctypes.c_char]) -> None:
    """Fill `info`, a struct bpf_map_info or bpf_prog_info, from an open map or program."""
    call(Command.OBJ_GET_INFO_BY_FD, memory(struct.pack("=IIQ", fd, len(info), ctypes.addressof(info))))


def program_info(fd: int) -> ProgramInfo:
    """The kernel's description of an open program."""
    # struct bpf_prog_info: number of maps at byte 52, address of the array for their ids at 56.
    first = memory(128)
    object_info(fd, first)
    count = struct.unpack_from("=I", first, 52)[0]
    ids = memory(max(4 * count, 4))
    info = memory(128)
    struct.pack_into("=IQ", info, 52, count, ctypes.addressof(ids))
    object_info(fd, info)
    _type, number = struct.unpack_from("=II", info)
    (uid,) = struct.unpack_from("=I", info, 48)
    return ProgramInfo(
        id=number,
        name=info.raw[64:80].split(b"\0")[0].decode(),
        tag=info.raw[8:16].hex(),
        uid=uid,
        map_ids=struct.unpack_from(f"={count}I", ids),
    )


def load_program(name: str, instructions: bytes, type_: int = XDP) -> int:
    """Load a program under the GPL and return its file descriptor.

    Raises BuildError with the end of the verifier's log if the program is refused, ValueError if `name` is
    longer than the kernel keeps.
    """
    if len(name) > NAME_BYTES:
        raise ValueError(f"the name of a program has at most {NAME_BYTES} characters: {name!r}")
    code, license_text = memory(instructions), memory(b"GPL\0")

    def load(log_level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        return call(Command.PROG_LOAD, memory(struct.pack(
            "=IIQQIIQII16sII", type_, len(instructions) // _INSTRUCTION_BYTES,
            ctypes.addressof(code), ctypes.addressof(license_text),
            log_level, len(log) if log else 0, ctypes.addressof(log) if log else 0,
            0, 0, name.encode(), 0, 0,
        )))  # fmt: skip

    try:
        return load(0, None)
    except OSError as refusal:
        log = memory(_LOG_BYTES)
        try:
            return load(1, log)  # Once more, with the verifier's log; it can succeed after EAGAIN.
        except OSError:
            lines = _log_end(log)
            hint = "run as root" if refusal.errno == errno.EPERM else ""
            raise BuildError(
                f"the kernel refused the program {name}: {refusal.strerror}{lines}",
                hint="the lines above are the end of the verifier's log" if lines else hint,
            ) from refusal


def bind_map(program: int, fd: int) -> None:
    """Tie a map to a program that doesn't use it: the map lives as long as the program, and is listed among its maps.

    OSError EINVAL before Linux 5.10.
    """
    call(Command.PROG_BIND_MAP, memory(struct.pack("=III", program, fd, 0)))


def freeze(fd: int) -> None:
    """Keep a map from being changed by user space from now on."""
    call(Command.MAP_FREEZE, memory(struct.pack("=I", fd)))


def _log_end(log: ctypes.Array[ctypes.c_char]) -> str:
    lines = log.value.decode(errors="replace").splitlines()[-_LOG_LINES:]
    return "".join(f"\n    {line}" for line in lines)


def run_often(fd: int, times: int) -> None:
    """Run an XDP program so many times, with a frame of zeros. OSError if the kernel refuses."""
    frame = memory(bytes(_SMALLEST_FRAME_BYTES))
    attributes = memory(struct.pack(
        "=IIIIQQIIIIQQIIII",
        fd, 0, len(frame), 0, ctypes.addressof(frame), 0, times, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ))  # fmt: skip
    call(Command.PROG_TEST_RUN, attributes)


def test_run(fd: int, frame: bytes, ifindex: int | None = None) -> Run:
    """Hand a frame to an XDP program as if it had come in on interface `ifindex` (None: lo).

    Returns the program's verdict and the frame as it left it. OSError ENODEV if the calling thread's network
    namespace has no such interface, EINVAL if the frame is shorter than an Ethernet header.
    """
    sent, room = memory(frame), memory(max(_FRAME_BYTES, 2 * len(frame)))
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = memory(struct.pack("=6I", 0, len(frame), 0, ifindex or 0, 0, 0))
    context_room = memory(len(context))
    # prog_fd, retval, sizes and addresses of the data, repeat, duration, sizes and addresses of the context
    attributes = memory(struct.pack(
        "=IIIIQQIIIIQQIIII",
        fd, 0, len(frame), len(room), ctypes.addressof(sent), ctypes.addressof(room), 1, 0,
        len(context) if ifindex else 0, len(context_room) if ifindex else 0,
        ctypes.addressof(context) if ifindex else 0, ctypes.addressof(context_room) if ifindex else 0,
        0, 0, 0, 0,
    ))  # fmt: skip
    call(Command.PROG_TEST_RUN, attributes)
    _fd, verdict, _sent, size = struct.unpack_from("=4I", attributes)
    return Run(XdpVerdict(verdict) if verdict <= max(XdpVerdict) else verdict, room.raw[:size])
