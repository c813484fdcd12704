# SPDX-License-Identifier: Apache-2.0
"""Captures are read as scapy wrote them, and what is none says so."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import PcapNgWriter, PcapWriter, wrpcap

from reconciler.errors import UsageError
from reconciler.explain.capture import Captured, read_capture
from tests.packets.frames import At, tcp, udp

FRAMES = [
    tcp(At("10.1.0.2", 4000), At("20.20.20.1", 80), "S"),
    udp(At("10.1.0.2", 4001), At("20.20.20.1", 53)),
    tcp(At("10.1.0.2", 4000), At("20.20.20.1", 80), "PA", b"odd"),
]
WHOLE = [Captured(frame, len(frame)) for frame in FRAMES]


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_pcap(tmp_path: Path, endianness: str, nano: bool) -> None:
    path = tmp_path / "some.pcap"
    with PcapWriter(str(path), endianness=endianness, nano=nano, linktype=1) as writer:
        writer.write([Ether(frame) for frame in FRAMES])
    assert read_capture(path) == WHOLE


def test_pcapng(tmp_path: Path) -> None:
    path = tmp_path / "some.pcapng"
    with PcapNgWriter(str(path)) as writer:
        writer.write([Ether(frame) for frame in FRAMES])
    assert read_capture(path) == WHOLE


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", 12 + len(body))
    return struct.pack(f"{order}I", kind) + size + body + size


def test_pcapng_of_another_byte_order_with_simple_packets_and_unknown_blocks(tmp_path: Path) -> None:
    path = tmp_path / "some.pcapng"
    path.write_bytes(
        block(">", 0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
        + block(">", 5, b"statistics")
        + block(">", 1, struct.pack(">HHI", 1, 0, 20))
        + block(">", 3, struct.pack(">I", len(FRAMES[0])) + FRAMES[0][:20])
    )
    assert read_capture(path) == [Captured(FRAMES[0][:20], len(FRAMES[0]))]


def test_a_short_snap_length_leaves_part_of_the_frame(tmp_path: Path) -> None:
    path = tmp_path / "some.pcap"
    with PcapWriter(str(path), snaplen=30, linktype=1) as writer:
        writer.write_header(None)
        writer.write_packet(FRAMES[0][:30], caplen=30, wirelen=len(FRAMES[0]))
    assert [(len(c.frame), c.length) for c in read_capture(path)] == [(30, len(FRAMES[0]))]


def test_a_frame_without_its_ethernet_header_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "some.pcap"
    wrpcap(str(path), [Ether(FRAMES[0]), Raw(FRAMES[1][:13])], linktype=1)
    with pytest.raises(UsageError, match="of frame 2 only 13 bytes"):
        read_capture(path)


def test_a_frame_in_a_vlan_is_the_one_that_scapy_makes() -> None:
    packet = Ether(FRAMES[0])
    tagged = bytes(Ether(src=packet.src, dst=packet.dst) / Dot1Q(vlan=7) / packet.payload)
    assert Captured(FRAMES[0], 2_000).tagged(7) == Captured(tagged, 2_004)
    assert WHOLE[0].tagged(None) == WHOLE[0]


def test_another_link_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raw.pcap"
    with PcapWriter(str(path), linktype=101) as writer:
        writer.write_header(None)
    with pytest.raises(UsageError, match="link type 101"):
        read_capture(path)


def test_every_cut_is_refused_or_ends_between_frames(tmp_path: Path) -> None:
    """Whatever is missing at the end, nothing but an error or the frames before it comes of it."""
    path = tmp_path / "some.pcap"
    for writer_class in (PcapWriter, PcapNgWriter):
        with writer_class(str(path)) as writer:
            writer.write([Ether(frame) for frame in FRAMES])
        content = path.read_bytes()
        for length in range(0, len(content), 3):
            path.write_bytes(content[:length])
            try:
                found = read_capture(path)
            except UsageError as error:
                assert error.message.startswith(str(path)), error
            else:
                assert found == WHOLE[: len(found)]
                assert len(found) < len(WHOLE)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", bytes(100), b"\x0a\x0d\x0d\x0a" + bytes(40)])
def test_what_is_no_capture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_capture(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.pcap: No such file"):
        read_capture(tmp_path / "none.pcap")


def test_what_has_no_end_takes_no_memory():
    with pytest.raises(UsageError, match="/dev/zero is larger than 64 MiB"):
        read_capture(Path("/dev/zero"))
