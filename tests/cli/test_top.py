# SPDX-License-Identifier: Apache-2.0
"""Rates of services, endpoints and verdicts: what is counted, how it looks at any width, what keys do."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path

import pytest

from reconciler.cli.top_views import ORDERS, Measured, Views, page
from reconciler.dataplane.layout import ENDPOINT_COUNTERS, SERVICE_COUNTERS, VERDICTS, Verdict
from reconciler.dataplane.rows import Number, Packets, Traffic
from reconciler.errors import KernelError
from reconciler.readings.rates import sample, verdict_rates
from reconciler.render.style import Style
from reconciler.render.top import cut, short
from tests.agent.conftest import NODE, POOLS, SERVICES, Node
from tests.strategies import fake_source

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 2.0
WEB, MAIL = "20.20.20.1:80/tcp", "20.20.20.2:25/tcp"
MAIL_ENDPOINT = "10.2.0.3:2525"


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)
    directory = tmp_path / "manifests"
    directory.mkdir()
    for name, text in (("node", NODE), ("services", SERVICES), ("pools", POOLS)):
        (directory / f"{name}.yaml").write_text(text)
    node = Node(directory, tmp_path / "run" / "lba")
    node.start()
    return node.kernel


def count(kernel, spec, row, value):
    held = spec.value.default._replace(**value._asdict())
    assert kernel.update(spec.name, [spec.pack(Number(row), held)]) == [None]


def measured(node):
    """Two samples, two seconds apart: the service and the endpoint of mail, whatever rows they have, get the most."""
    from reconciler.kinds.endpoint import numbered_rows
    from reconciler.kinds.service import indexed_rows

    service = {each.row.id: each.index for each in indexed_rows(node)}
    endpoint = {each.row.id: each.number for each in numbered_rows(node)}
    count(node, SERVICE_COUNTERS, service[MAIL], Traffic(1, 10, 100, 10, 100))
    before = sample(node, 100.0)
    count(node, SERVICE_COUNTERS, service[MAIL], Traffic(11, 2010, 250_100, 1010, 100))
    count(node, SERVICE_COUNTERS, service[WEB], Traffic(20, 200, 20_000, 0, 0))
    count(node, ENDPOINT_COUNTERS, endpoint[MAIL_ENDPOINT], Traffic(10, 2000, 250_000, 1000, 0))
    count(node, VERDICTS, Verdict.REQUEST, Packets(2200))
    count(node, VERDICTS, Verdict.UNDEFINED, Packets(7))
    return Measured(node, before, sample(node, 100.0 + SECONDS))


def views(explain=lambda service, endpoint: f"{service.id} {endpoint}"):
    return Views(explain)


def frame(views, measured, width=80, height=24):
    lines = views.frame(measured, "lbctl top", width, height, Style())
    return [re.sub("\x1b\\[[0-9;]*m", "", line) for line in lines]


def test_rates_are_growth_a_second_and_the_busiest_comes_first(node):
    now = measured(node)
    found = now.services("requests")
    assert [each.row.id for each in found] == [MAIL, WEB]
    rates = found[0].rates
    assert (rates.connections, rates.request_packets, rates.request_bits) == (5.0, 1000.0, 1_000_000.0)
    assert (rates.reply_packets, rates.reply_bits) == (500.0, 0.0)
    assert [each.row.id for each in now.services("connections")] == [WEB, MAIL]
    assert now.endpoints("requests")[0].endpoint == MAIL_ENDPOINT


def test_a_row_that_was_given_to_another_begins_from_zero(node):
    first = measured(node)
    fell = Measured(node, replace(first.after, at_s=0.0), replace(first.before, at_s=1.0))
    assert [each.rates.request_packets for each in fell.services("requests")] == [10.0, 0.0]
    assert verdict_rates(sample(node, 0.0), sample(node, 1.0)) == {Verdict.REQUEST: 0.0, Verdict.UNDEFINED: 0.0}


def test_keys_lead_to_endpoints_and_an_explanation_and_back(node):
    shown, now = views(), measured(node)
    assert frame(shown, now)[4].startswith(MAIL)
    shown.press("right")
    lines = frame(shown, now)
    assert f"endpoints of {MAIL}" in lines[2] and "SHARE" in lines[3]
    assert lines[4].split()[:2] == [MAIL_ENDPOINT, "100.0%"]
    shown.press("e")
    assert f"{MAIL} {MAIL_ENDPOINT}" in frame(shown, now)[3]
    shown.press("left")
    shown.press("left")
    assert "services, by requests" in frame(shown, now)[2]
    shown.press("down")
    assert WEB in frame(shown, now)[-2]
    shown.press("3")
    lines = frame(shown, now)
    assert lines[4].split() == ["undefined", "3.5", "7"]
    assert lines[-2] == Verdict.UNDEFINED.meaning
    for order in [*list(ORDERS)[1:], "requests"]:
        shown.press("s")
        assert shown.order == order
    shown.press("p")
    shown.press("?")
    assert shown.is_paused and not shown.ended
    shown.press("q")
    assert shown.ended


def test_what_can_not_be_explained_is_said_where_the_explanation_would_be(node):
    def fails(service, endpoint):
        raise KernelError("no program is loaded", hint="lbctl apply")

    shown, now = views(fails), measured(node)
    frame(shown, now)
    shown.press("e")
    assert frame(shown, now)[3:5] == ["error: no program is loaded", "hint: lbctl apply"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (20, 3)])
def test_every_frame_fits_the_screen(node, width, height):
    shown = views(lambda service, endpoint: "\n".join(f"a line \x1b[2J of text {n} " + "x" * 300 for n in range(99)))
    now = measured(node)
    for key in ("", "right", "e", "page down", "end", "left", "2", "3", "end", "1"):
        shown.press(key)
        lines = frame(shown, now, width, height)
        assert all(len(line) <= width and line.isprintable() for line in lines), key
        assert len(lines) <= max(height, 8)


def test_the_page_for_files_has_all_lists_in_80_columns(node):
    text = page(measured(node), "lbctl top", "requests", 80, Style(), 1)
    assert all(len(line) <= 80 for line in text)
    assert text[1].startswith("15 conn/s") and "drops 3.5/s" in text[1]
    assert [line.split()[0] for line in text if line.isupper()] == ["SERVICE", "ENDPOINT", "VERDICT"]
    assert "… and 1 more" in text


def test_numbers_are_short_and_long_names_lose_their_middle():
    numbers = {0: "0", 0.25: "0.2", 9.96: "10", 999.4: "999", 999.6: "1.0k", 12_345: "12k", 4.2e9: "4.2G",
               1e30: "lots"}  # fmt: skip
    assert {number: short(number) for number in numbers} == numbers
    assert cut("[2001:db8:1:2:3:4:5:6]:65535/tcp", 13) == "[2001:…35/tcp"


@pytest.mark.kernel
def test_one_frame_where_nobody_turns_pages_and_a_screen_that_is_left_as_it_was(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    assert "20.20.20.1:80/tcp" in lbctl("top")

    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler.cli.main", "--netns", netns, "--run-dir", lbctl.run_dir, "top"],
        cwd=CHECKOUT, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    seen = await_text(ours, b"services, by requests")
    os.write(ours, b"\r")
    seen += await_text(ours, b"endpoints of 20.20.20.1:80/tcp")
    os.write(ours, b"\x1b[Be")
    seen += await_text(ours, b"slot 0 of")
    os.write(ours, b"q")
    seen += await_text(ours, b"\x1b[?1049l")
    assert process.wait(timeout=60) == 0
    assert termios.tcgetattr(theirs) == before
    assert seen.startswith(b"\x1b[?1049h") and b"Traceback" not in seen
    for number in (ours, theirs):
        os.close(number)


def await_text(terminal, text):
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 65536)
    return seen
