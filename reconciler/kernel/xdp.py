# SPDX-License-Identifier: Apache-2.0
"""XDP programs on interfaces: which runs where; attach and detach by compare-and-swap.

Works on the network namespace of the calling thread. A program attached this way stays when this process ends.
Layouts and flags: include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.errors import KernelError
from reconciler.kernel import bpf, codec, netlink
from reconciler.kernel.rtnetlink import (
    IFLA_EXT_MASK,
    IFLA_IFNAME,
    IFLA_XDP,
    IFLA_XDP_ATTACHED,
    IFLA_XDP_PROG_ID,
    LINK,
    NUMBER,
    RTEXT_FILTER_SKIP_STATS,
    RTM_GETLINK,
    RTM_SETLINK,
)
from reconciler.safe import some

_ONLY_IF_NONE, _REPLACE = 1 << 0, 1 << 4
_MODE_FLAGS = {"native": 1 << 2, "generic": 1 << 1}
_MODES = {1: "native", 2: "generic", 3: "offloaded"}
_DETACH = -1



@dataclass(frozen=True, slots=True)
class Running:
    """A program on an interface. `program` is None if it went away while we looked."""

    interface: str
    mode: str
    id: int
    program: bpf.ProgramInfo | None

    @property
    def owner(self) -> str:
        """The owner of the program, as a text for people."""
        if self.program is None:
            return f"program id {self.id}"
        return f"program '{self.program.name}', id {self.id}, loaded by uid {self.program.uid}"


def running() -> Iterator[Running]:
    """The programs on the interfaces of this network namespace. OSError if the kernel refuses."""
    asked = LINK.pack(0, 0, 0, 0, 0) + netlink.attribute(IFLA_EXT_MASK, NUMBER.pack(RTEXT_FILTER_SKIP_STATS))
    with netlink.route() as route:
        links = route.dump(RTM_GETLINK, asked)
    for link in links:
        found = netlink.attributes(link[LINK.size :])
        xdp = netlink.attributes(found.get(IFLA_XDP, b""))
        mode = _MODES.get(xdp.get(IFLA_XDP_ATTACHED, b"\0")[0])
        if mode and IFLA_XDP_PROG_ID in xdp:
            program_id = int.from_bytes(xdp[IFLA_XDP_PROG_ID], sys.byteorder)
            name = netlink.text(found[IFLA_IFNAME])
            yield Running(name, mode, program_id, _describe(program_id))


def _describe(program_id: int) -> bpf.ProgramInfo | None:
    fd = bpf.open_program(program_id)
    if fd is None:
        return None
    with bpf.closing(fd):
        return bpf.program_info(fd)


def swap(interface: str, mode: str, program: int | None, expected: int | None) -> None:
    """Put `program` in the place of `expected`, both descriptors, None for no program; one atomic step.

    Raises KernelError, and changes nothing, if the interface doesn't run `expected`, or can't run programs in this
    mode.
    """
    flags = _MODE_FLAGS[mode] | (_ONLY_IF_NONE if expected is None else _REPLACE)
    parts = [("IFLA_XDP_FD", _DETACH if program is None else program), ("IFLA_XDP_FLAGS", flags)]
    if expected is not None:
        parts.append(("IFLA_XDP_EXPECTED_FD", expected))
    request = codec.link(RTM_SETLINK, index(interface), ("IFLA_XDP", {"attrs": parts}))
    with netlink.route() as route:
        (refusal,) = route.change([request])
    if refusal:
        verb = "detach from" if program is None else "attach to"
        raise KernelError(
            f"can't {verb} {interface} in {mode} mode: {refusal.strerror}", hint=_way_out(refusal, mode)
        ) from refusal


def index(interface: str) -> int:
    """The number of an interface. KernelError, which lists those that there are, if there is none of this name."""
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        names = some(sorted(name for _, name in socket.if_nameindex()))
        raise KernelError(f"there is no interface {interface}", hint=f"there are: {names}") from error


def _way_out(refusal: OSError, mode: str) -> str:
    match refusal.errno:
        case errno.ERANGE if mode == "native":
            return "lower the MTU, on veth that of the peer (3,498 fits a page of 4 KiB), or use `xdp: generic`"
        case errno.EOPNOTSUPP if mode == "native":
            return "the driver can't run XDP: use `xdp: generic`"
        case errno.EEXIST | errno.EBUSY:
            return "somebody changed it meanwhile: plan again"
        case errno.EPERM | errno.EACCES:
            return "run as root"
    return ""
