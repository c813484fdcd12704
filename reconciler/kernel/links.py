# SPDX-License-Identifier: Apache-2.0
"""Network interfaces, and which of them are VLANs of others. Works on the namespace of the calling thread.

Layouts: include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from reconciler.kernel import netlink
from reconciler.kernel.objects import Link
from reconciler.kernel.rtnetlink import (
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_PROMISCUITY,
    IFLA_VLAN_ID,
    LINK,
    RTM_GETLINK,
)


def read() -> list[Link]:
    """All interfaces. OSError if the kernel refuses."""
    with netlink.route() as route:
        return [_with_state(_link(answer), answer) for answer in route.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0))]


def _with_state(link: Link, answer: bytes) -> Link:
    _, _, _, flags, _ = LINK.unpack_from(answer)
    found = netlink.attributes(answer[LINK.size :])
    master = found.get(IFLA_MASTER)
    return replace(
        link, is_up=bool(flags & IFF_UP), master=int.from_bytes(master, sys.byteorder) if master else None,
        is_promiscuous=any(found.get(IFLA_PROMISCUITY, b"")),
    )  # fmt: skip


def _link(answer: bytes) -> Link:
    _, _, index, _, _ = LINK.unpack_from(answer)
    found = netlink.attributes(answer[LINK.size :])
    mac, mtu = found.get(IFLA_ADDRESS, b""), int.from_bytes(found[IFLA_MTU], sys.byteorder)
    name = netlink.text(found[IFLA_IFNAME])
    info = netlink.attributes(found.get(IFLA_LINKINFO, b""))
    if info.get(IFLA_INFO_KIND, b"").rstrip(b"\0") != b"vlan" or IFLA_LINK not in found or IFLA_LINK_NETNSID in found:
        return Link(name, index, mac=mac, mtu_bytes=mtu)
    tag = netlink.attributes(info[IFLA_INFO_DATA])[IFLA_VLAN_ID]
    trunk = int.from_bytes(found[IFLA_LINK], sys.byteorder)
    return Link(name, index, trunk, int.from_bytes(tag, sys.byteorder), mac=mac, mtu_bytes=mtu)
