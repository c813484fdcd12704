# SPDX-License-Identifier: Apache-2.0
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.health.checks.agent import MAX_PAGE_BYTES, in_json, in_metrics, said
from reconciler.health.outcome import Verdict
from reconciler.model import AgentFormat
from tests.health.run import LATE_S, outcome


@pytest.mark.parametrize(("line", "share"), [
    ("up", 100.0), ("READY", 100.0), ("75%", 75.0), ("up 99%", 99.0), ("up,75%", 75.0), ("  ready\t10%\r", 10.0),
    ("drain", 0.0), ("DRAIN 99%", 0.0), ("99% drain", 0.0), ("250%", 100.0), ("up maxconn:30", 100.0),
    ("75%#a comment", 75.0), ("up # down", 100.0), ("0%", 0.0), ("50% maxconn:1 up", 50.0),
])  # fmt: skip
def test_good_words(line, share):
    found = said(line)
    assert (found.verdict, found.error, found.share) == (Verdict.OK, "", share)


@pytest.mark.parametrize(("line", "words"), [
    ("down", "the agent says down"), ("DOWN#disk full", 'the agent says down: "disk full"'),
    ("up 50% failed # \x1b[31mtoo hot", 'the agent says failed: "\\x1b[31mtoo hot"'),
    ("maint", "the agent says maint"), ("stopped", "the agent says stopped"),
    ("", 'the agent says "", which means nothing'), ("hello", 'the agent says "hello", which means nothing'),
    ("-5%", 'the agent says "-5%", which means nothing'), ("#up", 'the agent says "#up", which means nothing'),
    ("maxconn:30", 'the agent says "maxconn:30", which means nothing'),
    ("9999999999999%", 'the agent says "9999999999999%", which means nothing'),
])  # fmt: skip
def test_bad_words(line, words):
    found = said(line)
    assert (found.verdict, found.error) == (Verdict.FAILED, words)


@given(st.text())
def test_any_line_has_some_meaning(line):
    found = said(line)
    assert found.error.isprintable()
    assert found.share is None or 0 <= found.share <= 100


def sending(*pieces):
    def talk(connection):
        for piece in pieces:
            connection.sendall(piece)

    return talk


def agent(port, **more):
    found = outcome("agent", port, **more)
    return found.verdict.name, found.error, found.share


def test_line(serve):
    assert agent(serve(sending(b"up 7", b"5%\n", b"down\n"))) == ("OK", "", 75.0)
    assert agent(serve(sending(b"75%"))) == ("OK", "", 75.0)
    assert agent(serve(sending())) == ("FAILED", 'the agent says "", which means nothing', None)


def test_endless_line(serve):
    def talk(connection):
        while True:
            connection.sendall(b"x" * 65_536)

    assert agent(serve(talk)) == ("FAILED", f'the agent says "{"x" * 60}…", which means nothing', None)


def test_dripped_line(serve):
    def talk(connection):
        for _ in range(300):
            connection.sendall(b" ")
            time.sleep(0.01)

    words = "connected, but the agent said nothing whole within 500 ms"
    assert agent(serve(talk), timeout_s=0.5) == ("FAILED", words, None)


def test_unreachable_agent(closed_port, frozen_port):
    assert agent(closed_port) == ("FAILED", "refused", None)
    assert agent(frozen_port, timeout_s=LATE_S)[0] == "FAILED"


def page(body, status=b"200 OK"):
    def talk(connection):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n" + body)

    return talk


JSON, METRICS = {"format": AgentFormat.JSON}, {"format": AgentFormat.PROMETHEUS}


def test_number_of_json(serve):
    port = serve(page(b'{"load": {"free": [1, 62.5]}}'))
    assert agent(port, value="load.free.1", **JSON) == ("OK", "", 62.5)
    assert agent(port, value="load.used", **JSON) == ("FAILED", "there is no number load.used on the page", None)
    assert agent(serve(page(b"{}", b"500 x")), value="x", **JSON) == ("FAILED", "HTTP 500, expected 200", None)


def test_number_of_metrics(serve):
    many = b"".join(b"# HELP m%d x\nm%d{a=\"b\"} %d\n" % (i, i, i) for i in range(5000))
    assert len(many) < MAX_PAGE_BYTES
    assert agent(serve(page(many)), value="m4321", **METRICS) == ("OK", "", 100.0)
    assert agent(serve(page(many)), value="m42", **METRICS) == ("OK", "", 42.0)


@pytest.mark.parametrize(("body", "number"), [
    (b"5", None), (b"", None), (b'{"a": {"b": 5}}', 5.0), (b'{"a": {"b": "5"}}', None), (b'{"a": {"b": true}}', None),
    (b'{"a": {"b": null}}', None), (b'{"a": 7}', None), (b"[" * 100_000, None), (b'{"a":' * 50_000, None),
    (b'{"a": {"b": 1' + b"0" * 4000 + b"}}", None), (b'{"a": {"b": 1' + b"0" * 200_000 + b"}}", None),
    (b"\xff\xfe", None), (b'{"a": {"b": -1e300}}', -1e300),
])  # fmt: skip
def test_json(body, number):
    assert in_json(body, "a.b") == number


@pytest.mark.parametrize(("body", "number"), [
    (b"up 1", 1.0), (b"# up 5\nup 1\nup 2", 1.0), (b'up{job="a b"} 3.5e1 1700000000\n', 35.0), (b"upper 1", None),
    (b"up", None), (b"up x", None), (b"up 1x", None), (b"an up 1", None), (b"up\t7\r\n", 7.0),
    (b"up " + b"1" * 100_000, None), (b"up" + b" " * 100_000, None), (b"up{" + b"}" * 100_000, None),
    (b"up " * 50_000, None),
])  # fmt: skip
def test_metrics(body, number):
    assert in_metrics(body, "up") == number


def test_a_metric_with_its_labels():
    body = b'up{job="a"} 1\nup{job="b"} 2\n'
    assert in_metrics(body, 'up{job="b"}') == 2.0


@pytest.mark.parametrize("number", ["NaN", "+Inf", "-Inf"])
def test_what_is_no_number_is_no_share(serve, number):
    found = agent(serve(page(b"up " + number.encode() + b"\n")), value="up", **METRICS)
    assert found == ("FAILED", "there is no number up on the page", None)


@given(st.binary(max_size=300), st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20))
def test_no_page_is_too_strange(body, name):
    in_json(body, name)
    in_metrics(body, name)
