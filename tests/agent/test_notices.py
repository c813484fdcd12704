# SPDX-License-Identifier: Apache-2.0
"""What others change is heard of and mended at once; what nobody asked about wakes nobody; lost notices mean a look at
all."""

import os
import socket
import subprocess
import threading
import time

import pytest

from reconciler.agent.notices import Found, Notices, keys_about
from reconciler.agent.wake import Wake
from reconciler.kernel import local_vips, neighbours, netns
from reconciler.kernel.notices import Listener, LostError, Notice
from reconciler.kernel.objects import LRO, LocalVip, Neighbour, OffloadState
from reconciler.kinds.sysctl import Sysctl
from reconciler.kinds.vlan_link import VlanLink
from reconciler.resource import Key
from tests.agent.conftest import edit

VIP = "20.20.20.1"
WAIT_S = 60.0


class Told:
    """In the place of the thread that listens."""

    def __init__(self, *found, lost=False):
        self.found, self.watched = Found(set(found), lost), None

    def take(self):
        found, self.found = self.found, Found()
        return found

    def watch(self, whole, view):
        self.watched = whole


def notice(node, *found, lost=False):
    """The agent hears; what it says then."""
    node.agent.notices = Told(*found, lost=lost)
    node.agent.round(Wake.KEYS)
    return node.told()


@pytest.fixture
def told(manifests, node):
    edit(manifests / "node.yaml", "  role: balancer\n", "  role: balancer\n  announce: {}\n")
    node.start()
    return node


def test_a_vip_a_route_a_setting_and_a_program_are_set_back_at_once(told):
    kernel = told.kernel
    kernel.vips = {vip for vip in kernel.vips if vip.address != VIP}
    assert "+ loopback 20.20.20.1" in notice(told, Notice("route", VIP, 255))
    kernel.announcements = {route for route in kernel.announcements if VIP not in route.to}
    assert "+ announcement 20.20.20.1 table 251" in notice(told, Notice("route", VIP, 251))
    name = "net/ipv4/conf/front/rp_filter"
    kernel.sysctls[name] = "1"
    assert f"~ sysctl {name}" in notice(told, Notice("setting", name))
    del kernel.attached["front"]
    assert "+ xdp front" in notice(told, Notice("link", "front"))


def test_an_offload_that_somebody_turns_on_is_off_again_at_once(manifests, node):
    edit(manifests / "node.yaml", "{name: front}", "{name: front, xdp: generic}")
    node.start()
    node.kernel.offload_states["front", LRO] = OffloadState(True)
    assert f"~ offload front {LRO}" in notice(node, Notice("link", "front"))
    assert not node.kernel.offload_states["front", LRO].is_on


def test_an_interface_that_comes_back_gets_its_program_and_its_settings(told):
    kernel = told.kernel
    del kernel.attached["front"]
    for name in ("rp_filter", "forwarding", "accept_local"):
        kernel.sysctls[f"net/ipv4/conf/front/{name}"] = "0"
    said = notice(told, Notice("link", "front"))
    assert "+ xdp front" in said
    assert kernel.sysctls["net/ipv4/conf/front/forwarding"] == "1"
    assert kernel.sysctls["net/ipv4/conf/back/forwarding"] == "1"


def test_what_is_as_it_should_be_or_not_ours_is_read_and_not_written(told):
    kernel = told.kernel
    kernel.writes.clear()
    reads = []
    kernel.local_vips = lambda *about, read=kernel.local_vips: reads.append(1) or read(*about)
    strangers = Notice("link", "docker0"), Notice("address", "172.17.0.1"), Notice("neighbour", "10.2.0.9", 0, "back")
    assert notice(told, *strangers, Notice("route", VIP, 255)) == ""
    assert kernel.writes == []
    assert len(reads) <= 1
    assert told.agent.notices.watched[Key("sysctl", "net/ipv4/conf/front/rp_filter")].value == "2"


def test_after_lost_notices_all_is_looked_at(told):
    kernel = told.kernel
    kernel.vips = {vip for vip in kernel.vips if vip.address != VIP}
    assert "+ loopback 20.20.20.1" in notice(told, lost=True)


def test_keys_of_an_interface_are_not_those_of_one_whose_name_begins_alike():
    whole = {key: Sysctl(key.id, "1") for key in (
        Key("sysctl", "net/ipv4/conf/eth1/rp_filter"), Key("sysctl", "net/ipv4/conf/eth10/rp_filter"))}  # fmt: skip
    assert [key.id for key in keys_about(Notice("link", "eth1"), whole)] == ["net/ipv4/conf/eth1/rp_filter"]


def test_an_address_that_a_vlan_of_ours_lost_is_about_the_vlan():
    link = VlanLink("eth0.5", "eth0", 5, 1500, ("10.5.0.1/24",))
    assert link.key in keys_about(Notice("address", "10.5.0.1"), {link.key: link})
    assert link.key in keys_about(Notice("link", "eth0.5"), {link.key: link})
    assert link.key not in keys_about(Notice("address", "10.5.0.11"), {link.key: link})


def test_a_trunk_that_comes_back_is_about_its_vlans_and_their_settings():
    link, other = VlanLink("eth0.5", "eth0", 5, 1500), VlanLink("eth1.5", "eth1", 5, 1500)
    settings = [Sysctl(f"net/ipv4/conf/{name}/rp_filter", "2") for name in ("eth0.5", "eth1.5")]
    whole = {each.key: each for each in (link, other, *settings)}
    assert set(keys_about(Notice("link", "eth0"), whole)) == {link.key, settings[0].key}


# --- the kernel itself -----------------------------------------------------------------------------------
@pytest.fixture
def namespace():
    name = f"lbn-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def listener(namespace):
    made = inside(namespace, Listener)
    yield made
    made.close()


def ip(namespace, *lines):
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def inside(namespace, call):
    """Run something in a thread that is in the namespace; its outcome, or its error."""
    outcome = []

    def run():
        netns.enter(namespace)
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@pytest.mark.kernel
def test_the_kernel_tells_of_others_changes_and_not_of_our_own(namespace, listener):
    ip(namespace, f"route add local {VIP} dev lo proto 251", "route add 10.9.0.1 dev lo proto 251 table 251",
       "route add 10.8.0.1 dev lo proto 99 table 99", "addr add 10.7.0.1/32 dev lo", "link add d0 type veth peer d1")
    assert listener.wait(WAIT_S)
    found = set(listener.read(()))
    assert found >= {Notice("route", VIP, 255), Notice("route", "10.9.0.1", 251), Notice("address", "10.7.0.1"),
                     Notice("link", "d0"), Notice("link", "d1")}  # fmt: skip
    assert not any(each.name == "10.8.0.1" for each in found)
    ip(namespace, "addr add 10.1.0.1/24 dev d0", "link set d0 up", "link set d1 up")
    list(listener.read(()))
    ip(namespace, "neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev d0", "neigh add 10.1.0.8 dev d0 lladdr "
       "02:00:00:00:00:08 nud permanent protocol 251", "neigh del 10.1.0.8 dev d0")
    about = [each for each in inside(namespace, lambda: list(listener.read({"10.1.0.9"}))) if each.what == "neighbour"]
    assert set(about) == {Notice("neighbour", "10.1.0.9", 0, "d0"), Notice("neighbour", "10.1.0.8", 0, "d0")}
    assert inside(namespace, lambda: local_vips.add([LocalVip("20.20.20.9", "route")])) == [None]
    assert inside(namespace, lambda: neighbours.keep([Neighbour("10.1.0.7", "d0")])) == [None]
    found = inside(namespace, lambda: list(listener.read({"10.1.0.7"})))
    assert not {"20.20.20.9", "10.1.0.7"} & {each.name for each in found}


@pytest.mark.kernel
def test_the_kernel_tells_of_offloads(namespace, listener):
    ip(namespace, "link add d0 type veth peer d1")
    list(listener.read(()))
    for state in ("on", "off"):
        words = ["ip", "netns", "exec", namespace, "ethtool", "-K", "d0", "gro", state]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        assert listener.wait(WAIT_S)
        assert Notice("link", "d0") in set(listener.read(()))


@pytest.mark.kernel
def test_a_buffer_that_runs_over_is_no_secret(namespace, listener):
    listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ip(namespace, *(f"route add local 20.21.{n // 250}.{n % 250 + 1} dev lo proto 251" for n in range(500)))
    with pytest.raises(LostError):
        list(listener.read(()))
    ip(namespace, f"route add local {VIP} dev lo proto 251")
    wanted, found = Notice("route", VIP, 255), set()
    deadline = time.monotonic() + WAIT_S
    while wanted not in found and time.monotonic() < deadline:
        listener.wait(1)
        found |= set(listener.read(()))
    assert wanted in found


@pytest.mark.kernel
def test_a_setting_that_somebody_changes_is_told_once(namespace):
    heard = threading.Event()
    told = Notices(heard.set, None)
    name = "net/ipv4/conf/lo/rp_filter"
    told.watch({Key("sysctl", name): Sysctl(name, "0")}, None)
    inside(namespace, lambda: subprocess.run(["sysctl", "-qw", f"{name}=0"], check=True))
    inside(namespace, told.start)
    inside(namespace, lambda: subprocess.run(["sysctl", "-qw", f"{name}=1"], check=True))
    assert heard.wait(WAIT_S)
    assert told.take().notices == {Notice("setting", name)}
    heard.clear()
    assert not heard.wait(3 * 0.1)  # it is told of once; a second time would come with the next look
    told.stop()
