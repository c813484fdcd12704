# SPDX-License-Identifier: Apache-2.0
"""Interfaces that stand for one VLAN of another one, their trunk.

Ours carry our alias; those of others don't. Works on the network namespace of the calling thread. Layouts:
include/uapi/linux/if_link.h, include/uapi/linux/if_addr.h.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import addresses, codec, netlink
from reconciler.kernel.mark import ALIAS
from reconciler.kernel.netlink import Message, Route
from reconciler.kernel.objects import VlanLink
from reconciler.kernel.rtnetlink import (
    IFF_UP,
    IFLA_EXT_MASK,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_VLAN_ID,
    LINK,
    NUMBER,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
)

_FORM, _SETTING = "vlan", "IFLA_VLAN_ID"
_TAG = struct.Struct("=H")


def read(alias: str = ALIAS) -> list[VlanLink]:
    """Ours, with all their addresses. OSError if the kernel refuses."""
    held: dict[str, list[str]] = {}
    for name, address in addresses.read():
        held.setdefault(name, []).append(address)
    with netlink.route() as route:
        return list(_ours(route, alias, held))


def add(wanted: VlanLink, alias: str = ALIAS) -> None:
    """Make an interface, or bring ours of this name to what it should be; other addresses of it stay. Raises OSError,
    ForeignError, and KernelError, also if ours is of another trunk or tag, which the kernel can't change."""
    former = next((link for link in read(alias) if link.name == wanted.name), None)
    names = {name: index for index, name in socket.if_nameindex()}
    if former is None and wanted.name in names:
        raise ForeignError(f"{wanted.name} is there and not lbctl's", hint=f"ip link del {wanted.name}")
    if wanted.trunk not in names:
        raise KernelError(f"there is no interface {wanted.trunk}")
    if former and (former.trunk, former.tag) != (wanted.trunk, wanted.tag):
        raise KernelError(f"{former.name} is VLAN {former.tag} of {former.trunk}", hint=f"ip link del {former.name}")
    with netlink.route() as route:
        if former is None:
            what = f"make {wanted.name}, VLAN {wanted.tag} of {wanted.trunk}"
            _change(route, _new(wanted, names[wanted.trunk]), what)
        try:
            marked = codec.link(RTM_NEWLINK, wanted.name, ("IFLA_IFALIAS", alias), ("IFLA_MTU", wanted.mtu_bytes))
            _change(route, marked, f"set up {wanted.name}")
            index = socket.if_nametoindex(wanted.name)
            for address in wanted.addresses:
                given = codec.address(RTM_NEWADDR, address, index, flags=netlink.CREATE | netlink.EXCLUSIVE)
                _change(route, given, f"give {wanted.name} {address}", errno.EEXIST)
            _change(route, codec.link(RTM_NEWLINK, wanted.name, state=IFF_UP), f"take {wanted.name} up")
        except (KernelError, OSError):
            if former is None:
                route.change([codec.link(RTM_DELLINK, wanted.name)])
            raise


def remove(name: str, alias: str = ALIAS) -> None:
    """Remove an interface with its addresses; an absent one or another's is left alone, without an error. KernelError,
    OSError."""
    if any(link.name == name for link in read(alias)):
        with netlink.route() as route:
            _change(route, codec.link(RTM_DELLINK, name), f"remove {name}", errno.ENODEV)


def _change(route: Route, message: Message, what: str, *harmless: int) -> None:
    (refusal,) = route.change([message])
    if refusal and refusal.errno not in harmless:
        unknown = refusal.errno == errno.EOPNOTSUPP and message.type == RTM_NEWLINK
        hint = "the kernel has no VLANs: modprobe 8021q" if unknown else ""
        raise KernelError(f"can't {what}: {refusal.strerror}", hint=hint) from refusal


def _new(wanted: VlanLink, trunk: int) -> Message:
    made = codec.kind(_FORM, (_SETTING, wanted.tag))
    flags = netlink.CREATE | netlink.EXCLUSIVE
    return codec.link(RTM_NEWLINK, wanted.name, ("IFLA_LINK", trunk), made, flags=flags)


def _ours(route: Route, alias: str, held: dict[str, list[str]]) -> Iterator[VlanLink]:
    names = dict(socket.if_nameindex())
    asked = LINK.pack(0, 0, 0, 0, 0) + netlink.attribute(IFLA_EXT_MASK, NUMBER.pack(RTEXT_FILTER_SKIP_STATS))
    for link in route.dump(RTM_GETLINK, asked):
        *_, flags, _ = LINK.unpack_from(link)
        found = netlink.attributes(link[LINK.size :])
        info = netlink.attributes(found.get(IFLA_LINKINFO, b""))
        is_ours = found.get(IFLA_IFALIAS, b"").rstrip(b"\0") == alias.encode()
        if not is_ours or netlink.text(info.get(IFLA_INFO_KIND, b"")) != _FORM:
            continue
        name = netlink.text(found[IFLA_IFNAME])
        (tag,) = _TAG.unpack_from(netlink.attributes(info[IFLA_INFO_DATA])[IFLA_VLAN_ID])
        trunk = names.get(int.from_bytes(found[IFLA_LINK], sys.byteorder), "")
        mtu = int.from_bytes(found[IFLA_MTU], sys.byteorder)
        yield VlanLink(name, trunk, tag, mtu, tuple(held.get(name, ())), is_up=bool(flags & IFF_UP))
