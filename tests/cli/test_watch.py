# SPDX-License-Identifier: Apache-2.0
"""`lbctl watch` from its arguments to its texts; the packets are in tests/packets/test_watch.py."""

import argparse
import json
import struct
from ipaddress import ip_address

import pytest

from reconciler.cli.watch import _check, _match, _place
from reconciler.errors import UsageError
from reconciler.explain.capture import read_capture
from reconciler.explain.headers import headers
from reconciler.explain.pcapng import Writer
from reconciler.explain.watched import Told
from reconciler.kernel.watching import Match
from reconciler.render.style import Style
from reconciler.render.watched import as_json, comment, line
from tests.packets.frames import At, tcp

SYN = tcp(At("198.51.100.7", 40_000), At("20.20.20.1", 80), "S")


def told(**changed):
    facts = {"packet": headers(SYN), "interface": "front", "verdict": "request", "service": "20.20.20.1:80/tcp",
             "ring": "web/maglev", "slot": 3, "endpoint": "10.2.0.11:8080", "left": headers(SYN)}  # fmt: skip
    return Told(**(facts | changed))


def test_places_with_and_without_ports():
    assert _place("198.51.100.7") == (ip_address("198.51.100.7"), 0)
    assert _place("198.51.100.7:80") == (ip_address("198.51.100.7"), 80)
    for text in ("2001:db8::7", "[2001:db8::7]"):
        assert _place(text) == (ip_address("2001:db8::7"), 0)
    assert _place("[2001:db8::7]:53") == (ip_address("2001:db8::7"), 53)
    for text in ("", "web", "1.2.3.4:70000", "1.2.3.4:", "[1.2.3:4", "1.2.3.4.5", "\x1b[2J", "1.2.3.4/24"):
        with pytest.raises(UsageError, match="is no address"):
            _place(text)
    with pytest.raises(UsageError, match="IPv6"):
        _match(argparse.Namespace(source="1.2.3.4", vip="2001:db8::1"))
    asked = argparse.Namespace(source="1.2.3.4", vip=None)
    assert _match(asked) == Match(ip_address("1.2.3.4"))


def test_what_would_not_end_or_be_too_much_is_refused():
    fine = {"rate": 100, "count": None, "lasts": 60, "format": "text"}
    _check(argparse.Namespace(**fine))
    for wrong in ({"rate": 0}, {"rate": 10**6}, {"count": 0}, {"lasts": 86_400}):
        with pytest.raises(UsageError):
            _check(argparse.Namespace(**(fine | wrong)))


def test_a_line_says_what_became_of_the_packet_and_hostile_names_are_shown_as_text():
    text = line(told(), 0.25, Style())
    assert text.endswith(f"198.51.100.7:40000 → 20.20.20.1:80, 40 bytes: {comment(told())}")
    assert comment(told()) == "request, web/maglev slot 3, endpoint 10.2.0.11:8080"
    assert ".250000 front tcp syn" in text
    dropped = told(verdict="undefined", ring="", slot=None, endpoint="", service="", left=[])
    assert comment(dropped) == "undefined (dropped)"
    hostile = told(ring="a\x1b[2J\nb", interface="x\ny")
    for shown in (line(hostile, 0.0, Style()), comment(hostile), as_json(hostile, 0.0)):
        assert shown.isprintable()
    assert json.loads(as_json(told(), 0.0))["slot"] == 3


def test_pcapng_is_read_back_with_times_and_comments(tmp_path):
    writer, path, at_ns = Writer(), tmp_path / "flow.pcapng", 1_700_000_000_123_456_789
    content = writer.head()
    content += writer.packet("front", at_ns, SYN[:50], len(SYN), "request, slot 3 →", is_inbound=True)
    content += writer.packet("back", at_ns, SYN, len(SYN), "", is_inbound=False)
    content += writer.packet("front", at_ns, SYN[:51], len(SYN), "x", is_inbound=True)
    path.write_bytes(content)
    captured = read_capture(path)
    assert [(each.frame, each.length) for each in captured] == [
        (SYN[:50], len(SYN)), (SYN, len(SYN)), (SYN[:51], len(SYN))
    ]  # fmt: skip
    assert "request, slot 3 →".encode() in content
    assert struct.pack("<II", at_ns >> 32, at_ns & 0xFFFFFFFF) in content


def test_scapy_reads_it_too(tmp_path):
    from scapy.utils import RawPcapNgReader

    path = tmp_path / "flow.pcapng"
    path.write_bytes(Writer().head() + Writer().packet("front", 5 * 10**9, SYN, len(SYN), "why", is_inbound=True))
    with RawPcapNgReader(str(path)) as reader:
        content, metadata = reader._read_packet()
    assert content == SYN and metadata.wirelen == len(SYN)
    assert (metadata.tshigh << 32 | metadata.tslow) / metadata.tsresol == 5.0


@pytest.mark.kernel
def test_without_a_program_it_says_so(lbctl):
    assert "no program is loaded" in lbctl("watch", "flow", "198.51.100.7", code=1)
