# SPDX-License-Identifier: Apache-2.0
"""Connections of nat outlive a flood of ten times what the table is made for, though they are silent meanwhile."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT

from .conftest import LabMaker
from .test_nat import ENDPOINTS, VIP, write

pytestmark = pytest.mark.kernel

MADE_FOR = 1_000


def connected(number: int) -> http.client.HTTPConnection:
    made = http.client.HTTPConnection(str(VIP), 80, timeout=30)
    made.request("GET", f"/{number}")
    made.getresponse().read()
    return made


def flood(count: int) -> None:
    """SYNs of so many clients, which have a wrong checksum, so that no endpoint answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(count):
            client = IPv4Address("198.18.0.0") + number
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, client.packed, VIP.packed)
            syn = ip + struct.pack("!HHIIBBHHH", 40_000, 80, number, 0, 0x50, 2, 1_000, 0, 0)
            for _ in range(3):  # as clients do that get no answer
                raw.sendto(syn, (str(VIP), 0))


def began(lab: Lab) -> int:
    """How many connections the service has counted."""
    (service,) = json.loads(lab.lbctl("get", "services", "-o", "json").stdout)["items"]
    return int(service["connections"])


def assert_silent_connections_outlive_a_flood(lab: Lab) -> None:
    kept = [netns.inside(lab.netns(CLIENT), connected, number) for number in range(50)]
    netns.inside(lab.netns(CLIENT), flood, 10 * MADE_FOR)
    wait_until("the flood is through", lambda: began(lab) >= 9 * MADE_FOR)
    for connection in kept:
        local = connection.sock.getsockname()
        connection.request("GET", "/again")
        assert connection.getresponse().status == 200
        assert connection.sock.getsockname() == local, "it is the same connection"
        connection.close()
    netns.inside(lab.netns(CLIENT), connected, 99).close()


def test_silent_connections_outlive_a_flood(start_lab: LabMaker, tmp_path: Path) -> None:
    write(tmp_path / "manifests", "two-arm", "round-robin", *ENDPOINTS)
    path = tmp_path / "manifests" / "web.yaml"
    path.write_text(path.read_text().replace("  interfaces:", f"  capacity: {{flows: {MADE_FOR}}}\n  interfaces:"))
    fleet = load(tmp_path / "manifests").fleet
    assert fleet
    lab = start_lab(fleet)
    lab.serve_http()
    lab.apply(tmp_path / "manifests")
    assert_silent_connections_outlive_a_flood(lab)
