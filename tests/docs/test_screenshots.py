# SPDX-License-Identifier: Apache-2.0
"""The pictures in the documentation: made here of what lbctl shows of a node, never by hand.

`LBCTL_WRITE_EXPECTED=1 pytest tests/docs/test_screenshots.py` writes them anew; look at them before you commit them.
Fonts differ from machine to machine, so it is not asked that they are the same to the last pixel.
"""

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.agent.journal import Identity, Journal
from reconciler.agent.page import Sources, content
from reconciler.agent.report import Report
from reconciler.agent.state import state_of
from reconciler.config.load import load
from reconciler.reconcile import desired_of, plan_node
from reconciler.render.page import page
from reconciler.render.status import status_text
from reconciler.render.style import Style
from reconciler.render.text import plan_text
from reconciler.version import VERSION
from tests.agent.conftest import Node, edit, fixed_source
from tests.browser import CHROMIUM, console, picture, size

__all__ = ["fixed_source"]
CHECKOUT = Path(__file__).resolve().parents[2]
PICTURES = CHECKOUT / "docs" / "pictures"
EXAMPLE = CHECKOUT / "examples" / "configs" / "nat-tcp"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
COLUMNS = 80
SHAPES = {"page": (1000, 900), "page-phone": (390, 844), "plan": (720, 370), "status": (720, 420)}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node after an edit, with another one to come."""
    directory = tmp_path_factory.mktemp("shots")
    manifests = directory / "etc" / "lbctl"
    manifests.parent.mkdir()
    shutil.copytree(EXAMPLE, manifests)
    with pytest.MonkeyPatch.context() as patch:
        from tests.strategies import fake_source

        patch.setattr("reconciler.dataplane.program.source", fake_source)
        made = Node(manifests, directory / "run" / "lb1")
        made.journal = Journal(Identity(4242, VERSION, "lb1", "lb1", "default", "/etc/lbctl"))
        made.agent.report = made.agent.upkeep.report = Report(
            made._out, Style(), lambda: AT, listeners=[made.journal.hear]
        )
        made.start()
        edit(manifests / "pools.yaml", "port: 8080, weight: 2}", "port: 8080}")
        made.files_rested()
        made.journal.publish(replace(state_of(made.agent), next_look_s=30.0))
        yield made


def page_of(node):
    sources = Sources(
        node.journal.status, lambda: node.agent.latest.desired, lambda: node.kernel, node.agent.instance_dir
    )
    return page(content(sources) | {"now": "2026-01-02 03:04:05"}, live=False)


def made(name, node, path):
    """Make one picture of SHAPES."""
    width, height = SHAPES[name]
    style = Style(colour=True, columns=COLUMNS)
    if name.startswith("page"):
        picture(page_of(node), width, height, path)
    elif name == "status":
        picture(console(f"$ lbctl status\n{status_text(node.journal.status(), style)}"), width, height, path)
    else:
        edited = path.parent / "edited"  # an endpoint more; and somebody has taken the service away
        shutil.copytree(node.directory, edited)
        one = "    - {address: 10.2.0.12, port: 8080}"
        edit(edited / "pools.yaml", one, f"{one}\n{one.replace('12', '14')}")
        row = node.kernel.maps["services"].popitem()
        try:
            desired = desired_of(load(edited).fleet, None, node.kernel)
            planned = plan_node(desired, node.kernel, node.agent.instance_dir)
        finally:
            node.kernel.maps["services"].update([row])
        picture(console(f"$ lbctl plan /etc/lbctl\n{plan_text(planned, style)}"), width, height, path)


@pytest.mark.parametrize("name", SHAPES)
def test_a_picture_of_the_documentation_shows_what_lbctl_shows(name, node, tmp_path):
    path = tmp_path / f"{name}.png"
    made(name, node, path)
    assert size(path) == SHAPES[name] and path.stat().st_size > 10_000, "it is not empty"
    kept = PICTURES / path.name
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        PICTURES.mkdir(exist_ok=True)
        shutil.copy(path, kept)
    assert size(kept) == SHAPES[name], "LBCTL_WRITE_EXPECTED=1 writes it anew"
