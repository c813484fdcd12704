# SPDX-License-Identifier: Apache-2.0
"""Have clients of TCP speak whose endpoint is gone: one that waits for an answer would wait for ever.

A reset must have the very sequence number that its receiver expects (RFC 5961, section 3.2), and lbctl knows only the
upper bits of it. But whoever gets a segment from far outside of his window says what he expects (RFC 9293, section
3.10.7.4), and that packet, of a connection that the node doesn't know any more, is answered with a reset that fits. So
a client gets such a segment from the VIP. If its connection goes on after all, nothing happens to it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from reconciler.kernel.objects import Client

FAR_BACK = 1 << 30
"""The largest window there is (RFC 7323, section 2.3); so a segment that is so far back is in none."""
_ACK = 0x10
_HOPS = 64
_TCP = socket.IPPROTO_TCP


def rouse(clients: Iterable[Client]) -> None:
    """Send each a segment. OSError if the kernel lets nobody send such, but not for a client without a route."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as four,
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as six,
    ):
        for client in clients:
            sock = four if isinstance(client.address, IPv4Address) else six
            with suppress(OSError):
                sock.sendto(packet(client), (str(client.address), 0))


def packet(client: Client) -> bytes:
    """The packet for a client."""
    segment = _segment(client)
    ends = client.vip.packed + client.address.packed
    if isinstance(client.vip, IPv6Address):
        return struct.pack("!IHBB", 6 << 28, len(segment), _TCP, _HOPS) + ends + segment
    # The kernel fills in the identification and the checksum.
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, _HOPS, _TCP, 0) + ends + segment


def _segment(client: Client) -> bytes:
    fields = [client.vip_port, client.port, (client.expects - FAR_BACK) % (1 << 32), 0, 5 << 12 | _ACK, 0, 0, 0]
    form = struct.Struct("!HHIIHHHH")
    pseudo = client.vip.packed + client.address.packed + struct.pack("!II", form.size, _TCP)
    total = sum(_words(pseudo + form.pack(*fields)))
    total = (total & 0xFFFF) + (total >> 16)
    fields[6] = ~(total + (total >> 16)) & 0xFFFF
    return form.pack(*fields)


def _words(data: bytes) -> Iterator[int]:
    return (word for (word,) in struct.iter_unpack("!H", data))
