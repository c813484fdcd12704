# SPDX-License-Identifier: Apache-2.0
"""The agent's page: what it shows, that names are text, that it needs no script, and what a browser makes of it."""

import copy
import html.parser
import http.client

import pytest

from reconciler.agent.journal import Identity, Journal, State
from reconciler.agent.page import Sources, content
from reconciler.agent.web import is_own_name, serving
from reconciler.errors import KernelError
from reconciler.render.page import MAX_ROWS, page, part, policy
from tests.agent.conftest import Node
from tests.browser import CHROMIUM, dom, width_needed

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e\"'&{{7*7}}"
SECTIONS = {"services", "endpoints", "transitions", "changes", "pending"}


class Read(html.parser.HTMLParser):
    """Elements and texts; AssertionError where elements are not closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, text):
        self.texts.append(text)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def node(manifests, tmp_path):
    node = Node(manifests, tmp_path / "run" / "lba")
    node.start()
    return node


def status(**state):
    journal = Journal()
    journal.identity = Identity(1, "0.1.0", "lb1", "host", "default", "/etc/lbctl")
    journal.publish(State("Synced", "Healthy", "a" * 64, "a" * 64, 12, 0, **state))
    return journal.status()


def sources(node, told=None):
    return Sources(
        lambda: told or status(), lambda: node.agent.latest.desired, lambda: node.kernel, node.agent.instance_dir
    )


def shown(node, told=None, live=False):
    return page(content(sources(node, told)), live=live)


def hostile_status():
    told = copy.deepcopy(status())
    event = {"time": "2026-01-02T03:04:05", "level": "error", "message": HOSTILE, "about": HOSTILE, "hint": HOSTILE,
             "reason": HOSTILE, "origin": HOSTILE, "effect": HOSTILE}  # fmt: skip
    return told | {"conditions": [event], "changes": [event], "paused": HOSTILE,
                   "agent": told["agent"] | {"node": HOSTILE, "source": HOSTILE}}  # fmt: skip


def test_it_has_services_endpoints_with_shares_and_what_would_change(node):
    text = shown(node)
    read = Read(text)
    assert {attributes["id"] for attributes in read.all("h2")} >= SECTIONS
    for expected in ("20.20.20.1:80/tcp", "10.2.0.1:8080", "web/round-robin 66.7%", "Synced", "No slot of a ring"):
        assert expected in text, expected
    assert "Nothing: the node is as the manifests say." in text
    row = node.kernel.maps["services"].popitem()
    text = shown(node)
    assert "+ service 20.20.20." in text
    node.kernel.maps["services"].update([row])


def test_hostile_texts_are_shown_and_are_no_elements(node):
    text = shown(node, hostile_status())
    read = Read(text)
    assert not read.all("script") and not read.all("img")
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert "".join(read.texts).count("alert(1)") >= 6
    assert "\x1b" not in text and "\u202e" not in text
    assert "{{7*7}}" in "".join(read.texts)


def test_it_can_be_used_by_keyboard_on_a_phone_and_without_a_script(node):
    read = Read(shown(node))
    assert ("main", {"id": "main"}) in read.elements
    assert read.all("html") == [{"lang": "en"}] and "width=device-width" in read.all("meta")[1]["content"]
    assert read.all("a")[0] == {"class": "skip", "href": "#main"}
    targets = {attributes["id"] for _, attributes in read.elements if "id" in attributes}
    assert {a["href"][1:] for a in read.all("a") if a["href"].startswith("#")} <= targets
    wide = [attributes for attributes in read.all("div") if attributes.get("class") == "wide"]
    assert wide and all(each["tabindex"] == "0" and each["aria-labelledby"] in targets for each in wide)
    assert all(th["scope"] == "col" for th in read.all("th"))
    assert not [m for m in read.all("meta") if m.get("http-equiv")]
    renewed = [m for m in Read(shown(node, live=True)).all("meta") if m.get("http-equiv")]
    assert renewed == [{"http-equiv": "refresh", "content": "5"}]


def test_tables_are_bounded():
    table = part(["a"], [[n] for n in range(10_000)], "lbctl get services")
    assert len(table["rows"]) == MAX_ROWS and table["more"] == 10_000 - MAX_ROWS


def ask(port, path, host="127.0.0.1", method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_the_policy_forbids_everything_but_its_own_style_and_others_names_are_refused(node):
    def fails(_is_live):
        raise KernelError(HOSTILE)

    with serving(("127.0.0.1", 0), lambda: "lbctl_x 1\n", lambda live: shown(node, live=live)) as port:
        for path, says in (("/", "/?live"), ("/?live", 'http-equiv="refresh"'), ("/?other", "/?live")):
            answer, body = ask(port, path)
            assert answer.status == 200 and says in body
            assert answer.headers["Content-Security-Policy"] == policy()
            assert "'unsafe" not in policy() and policy().startswith("default-src 'none'")
        assert ask(port, "/metrics")[1] == "lbctl_x 1\n"
        for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example", "[::1].evil"):
            assert ask(port, "/", host)[0].status == 403, host
        for method, path in (("POST", "/"), ("PUT", "/"), ("GET", "/x")):
            assert ask(port, path, method=method)[0].status in (404, 501)
    with serving(("127.0.0.1", 0), str, fails) as port:
        answer, body = ask(port, "/")
        assert answer.status == 503 and "<script" not in body
    assert all(map(is_own_name, ("localhost", "127.0.0.1:80", "[::1]:80", "10.0.0.1", "LOCALHOST:1")))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_shows_it_runs_nothing_and_has_no_complaint(node):
    """At the width of a phone; what the console says (a violation of the policy, a fault) would be in its log."""
    with serving(("127.0.0.1", 0), str, lambda live: shown(node, hostile_status(), live)) as port:
        elements, log = dom(f"http://127.0.0.1:{port}/")
    read = Read(elements)
    assert {attributes["id"] for attributes in read.all("h2")} >= SECTIONS
    assert not read.all("script") and not read.all("img")
    assert "CONSOLE" not in log, log


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.parametrize("width", [320, 390, 700, 1000])
def test_nothing_has_to_be_moved_sideways_however_long_names_are(node, width):
    told = hostile_status()
    told["agent"] |= {"source": "/etc/" + "x" * 200}
    told["changes"][0] |= {"message": "+ service " + "y" * 200, "origin": "z" * 100 + ".yaml:1"}
    assert width_needed(shown(node, told), width) <= width
