# SPDX-License-Identifier: Apache-2.0
"""One instance a network namespace, one network namespace an instance; and what is left when that is gone."""

import subprocess

import pytest

from reconciler.kernel import place
from reconciler.kernel.mark import protocol_of
from tests.cli.conftest import ip, make_node
from tests.kernel.conftest import entered

pytestmark = pytest.mark.kernel

FORWARD = "/proc/sys/net/ipv4/conf/front/forwarding"


@pytest.fixture
def second(netns):
    """Another namespace, with the same interfaces."""
    name = f"{netns}-b"
    make_node(name)
    yield name
    ip("netns", "del", name)


def setting(netns, path=FORWARD):
    command = ["ip", "netns", "exec", netns, "cat", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def vips(netns, instance=None):
    """The VIPs of an instance, by default of that of the namespace."""
    shown = ip("-n", netns, "route", "show", "table", "local", "proto", str(protocol_of(instance or netns)))
    return [line.split()[1] for line in shown.splitlines()]


@pytest.mark.parametrize("found_by", ["note", "program"])
def test_a_second_instance_is_refused_by_every_verb_and_nothing_is_touched(lbctl, manifests, netns, found_by):
    lbctl("apply", manifests, "--auto-approve")
    if found_by == "program":  # as former versions left it
        (lbctl.run_dir / netns / place.NOTE).unlink()
    held = vips(netns)
    other = ("--instance", "other")
    for words in (
        ("plan", manifests), ("apply", manifests, "--auto-approve"), ("run", manifests), ("get", "services"),
        ("delete", "--auto-approve"),
    ):  # fmt: skip
        text = lbctl(*other, *words, code=2)
        assert f"instance {netns} is in this network namespace" in text
        assert f"--instance {netns}" in text
    assert vips(netns) == held != []
    assert sorted(path.name for path in lbctl.run_dir.iterdir()) == [".state", netns]
    assert lbctl("plan", manifests).startswith("No changes.")


def test_an_instance_of_another_run_directory_is_found_by_its_program(lbctl, manifests, netns, tmp_path):
    lbctl("apply", manifests, "--auto-approve")
    text = lbctl("--run-dir", tmp_path / "elsewhere", "delete", "--auto-approve", code=2)
    assert f"--run-dir {lbctl.run_dir} --instance {netns}" in text
    assert vips(netns)


ENDPOINT = """\
{apiVersion: lbctl/v1, kind: Node, metadata: {name: web1}, spec: {role: endpoint, address: 10.2.0.1,
  interfaces: [{name: back}]}}
---
{apiVersion: lbctl/v1, kind: Node, metadata: {name: lb1}, spec: {interfaces: [{name: eth0}]}}
---
{apiVersion: lbctl/v1, kind: Pool, metadata: {name: web}, spec: {endpoints: [{address: 10.2.0.1}]}}
---
{apiVersion: lbctl/v1, kind: Service, metadata: {name: web}, spec: {vip: 20.20.20.1, ports: [80], mode: dsr-l2,
  pool: web}}
"""


def test_an_instance_without_a_program_is_found_by_its_note_in_the_namespace(lbctl, netns, tmp_path):
    (tmp_path / "endpoint").mkdir()
    (tmp_path / "endpoint" / "all.yaml").write_text(ENDPOINT)
    apply = ("apply", tmp_path / "endpoint", "--node", "web1", "--auto-approve")
    other = ("--run-dir", tmp_path / "elsewhere", "--instance", "other")
    lbctl(*apply)
    held = vips(netns)
    for words in (("delete", "--auto-approve"), apply):
        text = lbctl(*other, *words, code=2)
        assert f"instance {netns} is in this network namespace" in text
        assert f"--run-dir {lbctl.run_dir} --instance {netns}" in text
    assert vips(netns) == held != []
    assert f"altname lbctl:{netns}:" in ip("-n", netns, "link", "show", "lo")
    lbctl("delete", "--auto-approve")
    assert "altname" not in ip("-n", netns, "link", "show", "lo")
    lbctl(*other, *apply)
    assert vips(netns, "other") == held
    lbctl(*other, "delete", "--auto-approve")


def test_what_one_instance_made_is_not_another_ones_even_if_the_note_is_lost(lbctl, netns, tmp_path):
    (tmp_path / "endpoint").mkdir()
    (tmp_path / "endpoint" / "all.yaml").write_text(ENDPOINT)
    apply = ("apply", tmp_path / "endpoint", "--node", "web1", "--auto-approve")
    other = ("--run-dir", tmp_path / "elsewhere", "--instance", "other")
    lbctl(*apply)
    held = vips(netns)
    shown = ip("-n", netns, "link", "show", "lo")
    (note,) = (word for word in shown.split() if word.startswith(f"lbctl:{netns}:"))
    ip("-n", netns, "link", "property", "del", "dev", "lo", "altname", note)
    assert "Nothing of lbctl's is on this node." in lbctl(*other, "delete", "--auto-approve")
    assert "local route on lo, protocol number" in lbctl(*other, *apply, code=6)
    assert vips(netns) == held != []
    lbctl(*other, "delete", "--auto-approve")
    assert vips(netns) == held
    assert "--adopt takes over loopback 20.20.20.1" in lbctl(*other, *apply, "--adopt")
    assert (vips(netns), vips(netns, "other")) == ([], held)
    assert lbctl(*other, "plan", tmp_path / "endpoint", "--node", "web1").startswith("No changes.")
    lbctl(*other, "delete", "--auto-approve")


def test_where_one_is_taken_off_another_may_come(lbctl, manifests, netns):
    lbctl("--instance", "other", "apply", manifests, "--auto-approve")
    assert "instance other is in this" in lbctl("apply", manifests, "--auto-approve", code=2)
    lbctl("--instance", "other", "delete", "--auto-approve")
    lbctl("apply", manifests, "--auto-approve")


def test_an_instance_works_in_its_own_namespace_only(lbctl, manifests, netns, second):
    lbctl("apply", manifests, "--auto-approve")
    before = setting(second)
    for words in (("plan", manifests), ("delete", "--auto-approve")):
        text = lbctl("--netns", second, "--instance", netns, *words, code=2)
        assert f"instance {netns} is in the network namespace {netns}" in text
    assert setting(second) == before
    assert setting(netns) == "1"


def test_an_instance_whose_namespace_is_gone_can_be_removed(lbctl, manifests, second):
    lbctl("--netns", second, "apply", manifests, "--auto-approve")
    ip("netns", "del", second)
    try:
        assert "is gone" in lbctl("--netns", second, "delete", "--auto-approve")
        assert not (lbctl.run_dir / second).exists()
        assert "can't open the network namespace" in lbctl("--netns", second, "delete", "--auto-approve", code=1)
    finally:
        ip("netns", "add", second)


def test_an_instance_of_a_namespace_that_came_anew_restores_nothing_of_the_former_one(lbctl, manifests, second):
    lbctl("--netns", second, "apply", manifests, "--auto-approve")
    ip("netns", "del", second)
    make_node(second)
    subprocess.run(["ip", "netns", "exec", second, "sh", "-c", f"echo 1 > {FORWARD}"], check=True)
    lbctl("--netns", second, "apply", manifests, "--auto-approve")
    lbctl("--netns", second, "delete", "--auto-approve")
    assert setting(second) == "1"
    assert not (lbctl.run_dir / second).exists()


def test_a_namespace_is_known_by_more_than_its_name_and_number(netns):
    with entered(netns):
        first = place.here(netns)
    assert first.cookie
    assert not first.is_same(place.here(""))
    assert first.is_same(place.Place(first.cookie, 0, "another name"))
    assert not first.is_same(place.Place(first.cookie + 1, first.inode, netns))
    assert first.is_same(place.Place(0, first.inode, netns)), "a kernel that gives no cookies"


def test_an_interface_that_is_gone_takes_its_settings_along(lbctl, manifests, netns):
    lbctl("apply", manifests, "--auto-approve")
    ip("-n", netns, "link", "del", "back")
    lbctl("delete", "--auto-approve")
    assert not (lbctl.run_dir / netns).exists()
    ip("-n", netns, "link", "add", "back", "type", "veth", "peer", "name", "back-far")
