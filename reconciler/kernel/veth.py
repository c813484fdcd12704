# SPDX-License-Identifier: Apache-2.0
"""Virtual Ethernet pairs. Frames that native XDP sends into one vanish, counted as sent, unless the far end runs a
program in native mode as well (veth_xdp_flush and veth_xdp_xmit in drivers/net/veth.c).

Works on the network namespace of the calling thread. Layouts: include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Collection

from reconciler.kernel import netlink
from reconciler.kernel.netlink import Route
from reconciler.kernel.rtnetlink import (
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_TARGET_NETNSID,
    IFLA_XDP,
    LINK,
    RTM_GETLINK,
)

_NATIVE_PROGRAM = 5
_UNSEEN = (errno.EPERM, errno.EACCES, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP)


def far_ends(interfaces: Collection[str]) -> dict[str, bool]:
    """The veth interfaces among these, each with whether its far end is seen to run a program in native mode.

    A far end in a namespace that we can't look into counts as running none. OSError if the kernel
    refuses to list our own interfaces.
    """
    found = {}
    with netlink.route() as route:
        for answer in route.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0)):
            held = netlink.attributes(answer[LINK.size :])
            name = netlink.text(held[IFLA_IFNAME])
            if name in interfaces and _kind(held) == b"veth":
                found[name] = _runs_native(_far_end(route, held))
    return found


def _kind(held: dict[int, bytes]) -> bytes:
    return netlink.attributes(held.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"").rstrip(b"\0")


def _far_end(route: Route, held: dict[int, bytes]) -> dict[int, bytes]:
    """The attributes of the far end; none if it is in a namespace that we can't look into."""
    if IFLA_LINK not in held:
        return {}
    body = LINK.pack(0, 0, int.from_bytes(held[IFLA_LINK], sys.byteorder), 0, 0)
    if IFLA_LINK_NETNSID in held:
        body += netlink.attribute(IFLA_TARGET_NETNSID, held[IFLA_LINK_NETNSID])
    try:
        return netlink.attributes(route.get(RTM_GETLINK, body)[LINK.size :])
    except OSError as error:
        if error.errno in _UNSEEN:
            return {}
        raise


def _runs_native(held: dict[int, bytes]) -> bool:
    return _NATIVE_PROGRAM in netlink.attributes(held.get(IFLA_XDP, b""))
