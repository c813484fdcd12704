# SPDX-License-Identifier: Apache-2.0
"""The kernel's names, numbers and layouts of links, addresses, routes, next hops and neighbours, once for all that
speak rtnetlink(7). Names are those of include/uapi/linux: rtnetlink.h, if_link.h, if_addr.h, neighbour.h, nexthop.h,
if.h, if_tunnel.h. How messages are sent, and attributes put together, is in `netlink`."""

from __future__ import annotations

import socket
import struct

# Types of messages.
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWQDISC, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 44, 46
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP, RTM_GETNEXTHOPBUCKET = 104, 105, 106, 118

# What follows the header of a message.
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg: family, prefixlen, flags, scope, index
ROUTE = struct.Struct("=8BI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type
NEXT_HOP = struct.Struct("=4BI")  # struct nhmsg: family, scope, protocol, reserved, flags
FILTER = struct.Struct("=BxxxiIII")  # struct tcmsg: family, interface, handle, parent, info
HOP = struct.Struct("=HBBi")  # struct rtnexthop, in RTA_MULTIPATH: length, flags, hops, interface
MEMBER = struct.Struct("=IBBH")  # struct nexthop_grp, in NHA_GROUP: id, weight - 1, reserved
NUMBER = struct.Struct("=I")

# Attributes.
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 5, 10, 18, 20
IFLA_EXT_MASK, IFLA_PROMISCUITY, IFLA_LINK_NETNSID, IFLA_XDP, IFLA_TARGET_NETNSID = 29, 30, 37, 43, 46
IFLA_PROP_LIST, IFLA_ALT_IFNAME = 52, 53
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_VLAN_ID = 1
IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE, IFLA_IPTUN_PROTO = 2, 3, 9
IFLA_XDP_ATTACHED, IFLA_XDP_PROG_ID = 2, 4
IFA_ADDRESS, IFA_LOCAL, IFA_PROTO = 1, 2, 11
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH = 1, 4, 5, 6, 9
RTA_TABLE, RTA_MARK, RTA_VIA, RTA_NH_ID = 15, 16, 18, 30
NDA_DST, NDA_PROTOCOL, NDA_FLAGS_EXT = 1, 12, 15
NHA_ID, NHA_GROUP, NHA_GROUP_TYPE, NHA_OIF, NHA_GATEWAY, NHA_RES_GROUP = 1, 2, 3, 5, 6, 12
NHA_RES_GROUP_BUCKETS, NHA_RES_GROUP_IDLE_TIMER = 1, 2

# Values.
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_NOARP, IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x80, 0x10000
IFA_F_NODAD = 0x02
RTEXT_FILTER_SKIP_STATS = 1 << 3
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE = 1, 2, 6
RTPROT_KERNEL, RTPROT_BOOT = 2, 3
RTM_F_FIB_MATCH = 0x2000
NUD_INCOMPLETE, NUD_FAILED, NUD_PERMANENT = 0x01, 0x20, 0x80
NTF_PROXY, NTF_EXT_LEARNED, NTF_EXT_MANAGED = 0x8, 0x10, 0x1
NEXTHOP_GRP_TYPE_RES = 1

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}
"""The length of an address of a family."""
