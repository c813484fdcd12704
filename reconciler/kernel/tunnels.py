# SPDX-License-Identifier: Apache-2.0
"""Devices that unpack tunnels: ipip (IPv4 in IPv4) and ip6tnl (both in IPv6).

Ours carry our alias; those of others don't. Works on the network namespace of the
calling thread. Layouts: include/uapi/linux/if_link.h, include/uapi/linux/if_tunnel.h.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from ipaddress import ip_address

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import codec, netlink, sysctl
from reconciler.kernel.mark import ALIAS
from reconciler.kernel.netlink import Message, Route
from reconciler.kernel.objects import TunnelDevice
from reconciler.kernel.rtnetlink import (
    IFF_UP,
    IFLA_EXT_MASK,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_IPTUN_LOCAL,
    IFLA_IPTUN_PROTO,
    IFLA_IPTUN_REMOTE,
    IFLA_LINKINFO,
    IFLA_MTU,
    LINK,
    NUMBER,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
)

_PROTOCOLS = {"ipip": 4, "ip6tnl": 0}  # the inner packets: IPv4, either
_NO_PROTOCOL = 255


def known(form: str) -> bool:
    """Whether the kernel can make devices of this form, by itself or with a module that it loads for that.

    The request is for a device that is impossible: the kernel refuses it with EINVAL if it knows the form, else with
    EOPNOTSUPP. OSError for anything else.
    """
    impossible = netlink.attribute(IFLA_IPTUN_PROTO, bytes([_NO_PROTOCOL]))
    info = netlink.attribute(IFLA_INFO_KIND, form.encode() + b"\0")
    info += netlink.attribute(IFLA_INFO_DATA | netlink.NESTED, impossible)
    body = LINK.pack(0, 0, 0, 0, 0) + netlink.attribute(IFLA_LINKINFO | netlink.NESTED, info)
    with netlink.route() as route:
        (refusal,) = route.change([Message(RTM_NEWLINK, netlink.CREATE | netlink.EXCLUSIVE, body)])
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
                _change(route, codec.link(RTM_DELLINK, other.name), f"remove {other.name}", errno.ENODEV)
        held = {device.name: device for device in _devices(route, alias)} if adopts else held
        former = held.get(wanted.name)
        if former and not former.is_ours:
            raise ForeignError(f"{wanted.name} is there and not lbctl's", hint=f"ip link del {wanted.name}")
        if former and (former.form, former.local) != (wanted.form, wanted.local):
            _change(route, codec.link(RTM_DELLINK, former.name), f"remove {former.name}")
            former = None
        if former is None:
            _change(route, _new(wanted), f"make the {wanted.form} device {wanted.name}")
        try:
            marked = codec.link(RTM_NEWLINK, wanted.name, ("IFLA_IFALIAS", alias), ("IFLA_MTU", wanted.mtu_bytes))
            _change(route, marked, f"set up {wanted.name}")
            for name, value in wanted.settings:
                sysctl.write(name, value)
            _change(route, codec.link(RTM_NEWLINK, wanted.name, state=IFF_UP), f"take {wanted.name} up")
        except (KernelError, OSError):
            if former is None:
                route.change([codec.link(RTM_DELLINK, wanted.name)])
            raise


def remove(name: str, alias: str = ALIAS) -> None:
    """Remove a device; an absent one or another's is left alone, without an error. KernelError, OSError."""
    with netlink.route() as route:
        if any(device.name == name and device.is_ours for device in _devices(route, alias)):
            _change(route, codec.link(RTM_DELLINK, name), f"remove {name}", errno.ENODEV)


def _change(route: Route, message: Message, what: str, *harmless: int) -> None:
    (refusal,) = route.change([message])
    if refusal and refusal.errno not in harmless:
        raise KernelError(f"can't {what}: {refusal.strerror}") from refusal


def _new(wanted: TunnelDevice) -> Message:
    setting = f"IFLA_{wanted.form.upper()}_"
    local, protocol = (f"{setting}LOCAL", wanted.local), (f"{setting}PROTO", _PROTOCOLS[wanted.form])
    made = codec.kind(wanted.form, local, protocol)
    return codec.link(RTM_NEWLINK, wanted.name, made, flags=netlink.CREATE | netlink.EXCLUSIVE)


def _devices(route: Route, alias: str) -> Iterator[TunnelDevice]:
    asked = LINK.pack(0, 0, 0, 0, 0) + netlink.attribute(IFLA_EXT_MASK, NUMBER.pack(RTEXT_FILTER_SKIP_STATS))
    for link in route.dump(RTM_GETLINK, asked):
        _family, _type, _index, flags, _changed = LINK.unpack_from(link)
        found = netlink.attributes(link[LINK.size :])
        info = netlink.attributes(found.get(IFLA_LINKINFO, b""))
        form = netlink.text(info.get(IFLA_INFO_KIND, b""))
        data = netlink.attributes(info.get(IFLA_INFO_DATA, b""))
        local = data.get(IFLA_IPTUN_LOCAL)
        if form not in _PROTOCOLS or local is None or any(data.get(IFLA_IPTUN_REMOTE, b"")):
            continue
        name = netlink.text(found[IFLA_IFNAME])
        yield TunnelDevice(
            name, form, str(ip_address(local)), int.from_bytes(found[IFLA_MTU], sys.byteorder),
            is_up=bool(flags & IFF_UP), is_ours=found.get(IFLA_IFALIAS, b"").rstrip(b"\0") == alias.encode(),
        )  # fmt: skip
