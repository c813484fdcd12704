# SPDX-License-Identifier: Apache-2.0
"""Whose a network namespace is, said in the namespace itself: another name of its loopback, `lbctl:INSTANCE:RUN_DIR`.

Routes, addresses, neighbours and tunnels carry a mark of lbctl that has no room for the name of an instance. So the
instance that may touch those of a namespace leaves its own name there, where every other one sees it, whatever its run
directory is and whether it has a program. It goes with the namespace, or when the instance is removed. Works on the
namespace of the calling thread. Other names of interfaces: Linux 5.5 (36fbf1e52bd3); layouts:
include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

from reconciler.kernel import codec, netlink
from reconciler.kernel.instance import Instance
from reconciler.kernel.rtnetlink import (
    IFLA_ALT_IFNAME,
    IFLA_PROP_LIST,
    LINK,
    RTM_DELLINKPROP,
    RTM_GETLINK,
    RTM_NEWLINKPROP,
)

_LOOPBACK = 1
_PREFIX = "lbctl:"
_MOST_BYTES = 127  # ALTIFNAMSIZ, with the zero at its end
_SLASH = ","  # tools accept no slash in the name of an interface


class Owner(NamedTuple):
    """An instance, as it is named in a namespace."""

    name: str
    run_dir: str


def note(instance: Instance) -> None:
    """Say that the namespace is the instance's. OSError if the kernel refuses; a kernel that knows no other names is
    no error."""
    _change(RTM_NEWLINKPROP, _text(instance), errno.EEXIST, errno.EOPNOTSUPP)


def forget(instance: Instance) -> None:
    """Take the note of an instance away; no error if there is none. OSError if the kernel refuses."""
    if _text(instance) in _notes():
        _change(RTM_DELLINKPROP, _text(instance), errno.ENOENT)


def others(instance: Instance) -> list[Owner]:
    """The other instances whose this namespace is. OSError if the kernel refuses."""
    found = (text.removeprefix(_PREFIX).split(":", 1) for text in _notes() if text != _text(instance))
    return [Owner(name, (rest or [""])[0].replace(_SLASH, "/")) for name, *rest in found]


def _text(instance: Instance) -> str:
    run_dir = str(Path(instance.directory.parent).absolute()).replace("/", _SLASH)
    text = f"{_PREFIX}{instance.name}:{run_dir}"
    if len(text.encode()) <= _MOST_BYTES:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return f"{_PREFIX}{instance.name[:64]}:{digest}"


def _notes() -> list[str]:
    with netlink.route() as route:
        answer = route.get(RTM_GETLINK, LINK.pack(0, 0, _LOOPBACK, 0, 0))
    names = _all(netlink.attributes(answer[LINK.size :]).get(IFLA_PROP_LIST, b""), IFLA_ALT_IFNAME)
    return sorted(name for name in map(netlink.text, names) if name.startswith(_PREFIX))


def _all(content: bytes, wanted: int) -> list[bytes]:
    """Every attribute of a number, which `netlink.attributes` knows the last of."""
    found, position = [], 0
    while position + 4 <= len(content):
        length, number = struct.unpack_from("=HH", content, position)
        if number & 0x3FFF == wanted:
            found.append(content[position + 4 : position + length])
        position += (length + 3) & ~3 or 4
    return found


def _change(type_: int, name: str, *harmless: int) -> None:
    names = ("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", netlink.content(name)[:-1])]})
    flags = netlink.CREATE | netlink.EXCLUSIVE | netlink.APPEND if type_ == RTM_NEWLINKPROP else 0
    with netlink.route() as route:
        (refusal,) = route.change([codec.link(type_, _LOOPBACK, names, flags=flags)])
    if refusal and refusal.errno not in harmless:
        raise refusal
