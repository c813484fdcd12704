# SPDX-License-Identifier: Apache-2.0
"""The segments that make clients speak: whole packets, whose numbers are in no window."""

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from reconciler.kernel.objects import Client
from reconciler.kernel.rouse import FAR_BACK, packet

CLIENTS = [
    Client(ip_address("10.9.0.1"), 40_000, ip_address("20.20.20.1"), 80, 0x1234_0000),
    Client(ip_address("2001:db8:9::1"), 40_000, ip_address("2001:db8::1"), 443, 0),
]


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_segment_from_the_vip_is_far_behind_what_the_client_expects(client):
    header = IP if client.vip.version == 4 else IPv6
    found = header(packet(client))
    assert (found.src, found.dst) == (str(client.vip), str(client.address))
    assert (found[TCP].sport, found[TCP].dport, str(found[TCP].flags)) == (client.vip_port, client.port, "A")
    assert (client.expects - found[TCP].seq) % 2**32 == FAR_BACK
    given = found[TCP].chksum
    del found[TCP].chksum
    assert header(bytes(found))[TCP].chksum == given
