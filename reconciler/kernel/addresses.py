# SPDX-License-Identifier: Apache-2.0
"""All addresses of interfaces, ours and others'. Works on the network namespace of the calling thread.

Layouts: include/uapi/linux/if_addr.h.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface

from reconciler.kernel import netlink
from reconciler.kernel.rtnetlink import ADDRESS, IFA_ADDRESS, IFA_LOCAL, RTM_GETADDR
from reconciler.safe import some

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def read() -> list[tuple[str, str]]:
    """Pairs of an interface and an address with its prefix length. OSError if the kernel refuses."""
    names = dict(socket.if_nameindex())
    found = []
    with netlink.route() as route:
        for family in _FAMILIES:
            for answer in route.dump(RTM_GETADDR, ADDRESS.pack(family, 0, 0, 0, 0)):
                held, length, _, _, index = ADDRESS.unpack_from(answer)
                marks = netlink.attributes(answer[ADDRESS.size :])
                if held == family and index in names:  # a kernel without IPv6 answers for all other families
                    address = ip_address(marks.get(IFA_LOCAL) or marks[IFA_ADDRESS])
                    found.append((names[index], f"{address}/{length}"))
    return found


def missing(wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The missing ones of these (interface, address with its prefix length), each with a text about what is there
    instead.

    An address without a prefix length may be on any interface. OSError if the kernel refuses.
    """
    held = read()
    exact = {(name, ip_interface(address)) for name, address in held}
    anywhere = {str(ip_interface(address).ip): f"{address} is on {name}" for name, address in held}
    absent = {}
    for interface, address in wanted:
        if ("/" in address and (interface, ip_interface(address)) in exact) or (
            "/" not in address and address in anywhere
        ):
            continue
        own = [a for name, a in held if name == interface and ip_interface(a).version == ip_interface(address).version]
        elsewhere = anywhere.get(str(ip_interface(address).ip))
        has = f"{interface} has {some(own)}" if own else f"{interface} has no address of this family"
        absent[interface, address] = elsewhere or (has if "/" in address else "no interface has it")
    return absent
