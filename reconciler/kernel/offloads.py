# SPDX-License-Identifier: Apache-2.0
"""What an interface does to packets before a program sees them, and how to end it. Works on the namespace of the
calling thread.

The kernel has its features as bits, of which it tells the names; no position of a bit is fixed. Layouts:
include/uapi/linux/ethtool.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import re
import socket
import struct
from collections.abc import Collection, Mapping

from reconciler.errors import KernelError
from reconciler.kernel import netlink
from reconciler.kernel.objects import GRO, GRO_HW, LRO, RX_VLAN, OffloadState

FEATURES: Mapping[str, str] = {GRO: "rx-gro", LRO: "rx-lro", GRO_HW: "rx-gro-hw", RX_VLAN: "rx-vlan-hw-parse"}
"""The names of people (`ethtool -k`), each with that of the kernel (net/ethtool/common.c)."""

_ETHTOOL = 0x8946  # linux/sockios.h
_GET_STRINGS, _COUNT_STRINGS, _GET_FEATURES, _SET_FEATURES = 0x1B, 0x37, 0x3A, 0x3B
_OF_FEATURES, _NAME_BYTES = 4, 32  # ETH_SS_FEATURES, ETH_GSTRING_LEN
_REQUEST = struct.Struct("@16sP16x")  # struct ifreq
_SET_INFO = struct.Struct("=IIQI")  # struct ethtool_sset_info with one count
_STRINGS = struct.Struct("=III")  # struct ethtool_gstrings
_HEADER = struct.Struct("=II")  # struct ethtool_gfeatures, struct ethtool_sfeatures
_HELD = struct.Struct("=IIII")  # of 32 features: available, requested, active, never changed
_WANTED = struct.Struct("=II")  # of 32 features: valid, requested
_ANY_INTERFACE = "lo"
_FORMER = re.compile(rf"ethtool/((?!\.\.?/)[^/\0]{{1,15}})/({'|'.join(FEATURES)})")


def read(interfaces: Collection[str]) -> dict[tuple[str, str], OffloadState]:
    """The offloads of these interfaces, as far as they are there, by names of interface and offload. OSError if the
    kernel refuses."""
    found: dict[tuple[str, str], OffloadState] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        places = _places()
        for interface in interfaces:
            try:
                held = _held(sock, interface)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue
            for name in FEATURES:
                place = places.get(name)
                found[interface, name] = OffloadState(False, False, False) if place is None else _state(held, place)
    return found


def write(interface: str, name: str, is_on: bool) -> None:
    """Ask for an offload, or ask for it no more; what comes of it is the driver's to say. KernelError if it can't be
    changed there, OSError if the kernel refuses."""
    place = _places().get(name)
    if place is None:
        raise KernelError(f"the kernel knows no {name}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        held = _held(sock, interface)
        if not _state(held, place).is_free:
            raise KernelError(f"the driver of {interface} can't change {name}", hint=f"ethtool -k {interface}")
        blocks = len(held)
        request = bytearray(_HEADER.pack(_SET_FEATURES, blocks) + bytes(blocks * _WANTED.size))
        block, bit = divmod(place, 32)
        _WANTED.pack_into(request, _HEADER.size + block * _WANTED.size, 1 << bit, is_on << bit)
        _ask(sock, interface, bytes(request))


def former_name(interface: str, name: str) -> str:
    """The name under which it is written down that an offload was on."""
    return f"ethtool/{interface}/{name}"


def parse_former(name: str) -> tuple[str, str] | None:
    """The reverse of `former_name`; None if it is none of these names."""
    found = _FORMER.fullmatch(name)
    return (found[1], found[2]) if found else None


def _state(held: list[tuple[int, int, int, int]], place: int) -> OffloadState:
    block, bit = divmod(place, 32)
    available, requested, active, never = (bool(word >> bit & 1) for word in held[block])
    return OffloadState(active, available and not never, requested)


def _held(sock: socket.socket, interface: str) -> list[tuple[int, int, int, int]]:
    blocks = (_count() + 31) // 32
    answer = _ask(sock, interface, _HEADER.pack(_GET_FEATURES, blocks) + bytes(blocks * _HELD.size))
    return list(_HELD.iter_unpack(answer[_HEADER.size :]))


@functools.cache
def _count() -> int:
    """How many features this kernel has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = _ask(sock, _ANY_INTERFACE, _SET_INFO.pack(_COUNT_STRINGS, 0, 1 << _OF_FEATURES, 0))
    return int(_SET_INFO.unpack(answer)[3])


@functools.cache
def _places() -> Mapping[str, int]:
    """The number of each of our features that this kernel has."""
    count = _count()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = _STRINGS.pack(_GET_STRINGS, _OF_FEATURES, count) + bytes(count * _NAME_BYTES)
        answer = _ask(sock, _ANY_INTERFACE, request)
    names = [netlink.text(answer[at : at + _NAME_BYTES]) for at in range(_STRINGS.size, len(answer), _NAME_BYTES)]
    return {name: names.index(feature) for name, feature in FEATURES.items() if feature in names}


def _ask(sock: socket.socket, interface: str, request: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(request, len(request))
    fcntl.ioctl(sock, _ETHTOOL, _REQUEST.pack(netlink.content(interface), ctypes.addressof(buffer)))
    return buffer.raw
