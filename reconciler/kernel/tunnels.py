# SPDX-License-Identifier: Apache-2.0
"""Devices that unpack tunnels: ipip (IPv4 in IPv4) and ip6tnl (both in IPv6).

Ours carry our alias; those of others don't. Works on the network namespace of the
calling thread. Layouts: include/uapi/linux/if_link.h, include/uapi/linux/if_tunnel.h.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator
from ipaddress import ip_address

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import netlink, sysctl
from reconciler.kernel.mark import ALIAS
from reconciler.kernel.netlink import Message, Route
from reconciler.kernel.port import TunnelDevice

_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_EXT_MASK = 3, 4, 18, 20, 29
_INFO_KIND, _INFO_DATA = 1, 2
_LOCAL, _REMOTE, _PROTOCOL = 2, 3, 9  # IFLA_IPTUN_…
_UP = 1
_SKIP_STATISTICS = struct.pack("=I", 1 << 3)
_PROTOCOLS = {"ipip": 4, "ip6tnl": 0}  # the inner packets: IPv4, either
_NO_PROTOCOL = 255
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change


def known(form: str) -> bool:
    """Whether the kernel can make devices of this form, by itself or with a module that it loads for that.

    The request is for a device that is impossible: the kernel refuses it with EINVAL if it knows the form, else with
    EOPNOTSUPP. OSError for anything else.
    """
    impossible = netlink.attribute(_PROTOCOL, bytes([_NO_PROTOCOL]))
    with netlink.route() as route:
        (refusal,) = route.change([_new(form, impossible, b"")])
    match refusal:
        case OSError(errno=errno.EOPNOTSUPP):
            return False
        case OSError(errno=errno.EINVAL):
            return True
        case OSError():
            raise refusal
    raise OSError(errno.EPROTO, f"the kernel made a {form} device of protocol {_NO_PROTOCOL}")


def read(alias: str = ALIAS) -> list[TunnelDevice]:
    """All devices of these forms that take packets from any sender, ours or not. OSError if the kernel refuses."""
    with netlink.route() as route:
        return list(_devices(route, alias))


def add(wanted: TunnelDevice, alias: str = ALIAS, *, adopts: bool = False) -> None:
    """Make a device, or correct the one of this name, and take it up. `adopts`: one of others that unpacks the same
    tunnels goes for it.

    Its settings are written before it is up: no packet passes with other settings. Raises KernelError, ForeignError,
    OSError.
    """
    with netlink.route() as route:
        held = {device.name: device for device in _devices(route, alias)}
        for other in held.values() if adopts else ():
            if not other.is_ours and (other.form, other.local) == (wanted.form, wanted.local):
                _change(route, Message(_DELETE_LINK, 0, _named(other.name)), f"remove {other.name}", errno.ENODEV)
        held = {device.name: device for device in _devices(route, alias)} if adopts else held
        former = held.get(wanted.name)
        if former and not former.is_ours:
            raise ForeignError(f"{wanted.name} is there and not lbctl's", hint=f"ip link del {wanted.name}")
        if former and (former.form, former.local) != (wanted.form, wanted.local):
            _change(route, Message(_DELETE_LINK, 0, _named(former.name)), f"remove {former.name}")
            former = None
        if former is None:
            parts = netlink.attribute(_LOCAL, ip_address(wanted.local).packed)
            parts += netlink.attribute(_PROTOCOL, bytes([_PROTOCOLS[wanted.form]]))
            named = netlink.attribute(_IFLA_IFNAME, netlink.content(wanted.name))
            _change(route, _new(wanted.form, parts, named), f"make the {wanted.form} device {wanted.name}")
        try:
            marks = netlink.attribute(_IFLA_IFALIAS, alias.encode())
            marks += netlink.attribute(_IFLA_MTU, struct.pack("=I", wanted.mtu_bytes))
            _change(route, Message(_NEW_LINK, 0, _named(wanted.name) + marks), f"set up {wanted.name}")
            for name, value in wanted.settings:
                sysctl.write(name, value)
            _change(route, Message(_NEW_LINK, 0, _named(wanted.name, _UP, _UP)), f"take {wanted.name} up")
        except (KernelError, OSError):
            if former is None:
                route.change([Message(_DELETE_LINK, 0, _named(wanted.name))])
            raise


def remove(name: str, alias: str = ALIAS) -> None:
    """Remove a device; an absent one or another's is left alone, without an error. KernelError, OSError."""
    with netlink.route() as route:
        if any(device.name == name and device.is_ours for device in _devices(route, alias)):
            _change(route, Message(_DELETE_LINK, 0, _named(name)), f"remove {name}", errno.ENODEV)


def _change(route: Route, message: Message, what: str, *harmless: int) -> None:
    (refusal,) = route.change([message])
    if refusal and refusal.errno not in harmless:
        raise KernelError(f"can't {what}: {refusal.strerror}") from refusal


def _new(form: str, parts: bytes, more: bytes) -> Message:
    info = netlink.attribute(_INFO_KIND, form.encode() + b"\0")
    info += netlink.attribute(_INFO_DATA | netlink.NESTED, parts)
    body = _LINK.pack(0, 0, 0, 0, 0) + more + netlink.attribute(_IFLA_LINKINFO | netlink.NESTED, info)
    return Message(_NEW_LINK, netlink.CREATE | netlink.EXCLUSIVE, body)


def _named(name: str, flags: int = 0, change: int = 0) -> bytes:
    return _LINK.pack(0, 0, 0, flags, change) + netlink.attribute(_IFLA_IFNAME, netlink.content(name))


def _devices(route: Route, alias: str) -> Iterator[TunnelDevice]:
    asked = _LINK.pack(0, 0, 0, 0, 0) + netlink.attribute(_IFLA_EXT_MASK, _SKIP_STATISTICS)
    for link in route.dump(_GET_LINK, asked):
        _family, _type, _index, flags, _changed = _LINK.unpack_from(link)
        found = netlink.attributes(link[_LINK.size :])
        info = netlink.attributes(found.get(_IFLA_LINKINFO, b""))
        form = netlink.text(info.get(_INFO_KIND, b""))
        data = netlink.attributes(info.get(_INFO_DATA, b""))
        local = data.get(_LOCAL)
        if form not in _PROTOCOLS or local is None or any(data.get(_REMOTE, b"")):
            continue
        name = netlink.text(found[_IFLA_IFNAME])
        yield TunnelDevice(
            name, form, str(ip_address(local)), int.from_bytes(found[_IFLA_MTU], sys.byteorder),
            is_up=bool(flags & _UP), is_ours=found.get(_IFLA_IFALIAS, b"").rstrip(b"\0") == alias.encode(),
        )  # fmt: skip
