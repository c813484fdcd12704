# SPDX-License-Identifier: Apache-2.0
"""What an interface does to packets before a program sees them. Works on the namespace of the calling thread.

Layouts: include/uapi/linux/ethtool.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct

from reconciler.kernel import netlink

_ETHTOOL, _GET_GRO = 0x8946, 0x2B
_REQUEST = struct.Struct("@16sP16x")  # struct ifreq
_VALUE = struct.Struct("=II")  # struct ethtool_value


def merges(interface: str) -> bool:
    """Whether the kernel puts packets of a connection together (generic receive offload). That is before programs in
    generic mode, and after those in native mode."""
    value = ctypes.create_string_buffer(_VALUE.pack(_GET_GRO, 0), _VALUE.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        fcntl.ioctl(sock, _ETHTOOL, _REQUEST.pack(netlink.content(interface), ctypes.addressof(value)))
    return bool(_VALUE.unpack(value.raw)[1])
