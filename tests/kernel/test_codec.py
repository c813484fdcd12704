# SPDX-License-Identifier: Apache-2.0
"""Messages that pyroute2 puts together: our own reading of attributes is the witness, and the kernel."""

from __future__ import annotations

import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import codec, neighbours, netlink, tunnels
from reconciler.kernel.notices import Listener, Notice
from reconciler.kernel.objects import Neighbour, TunnelDevice
from reconciler.kernel.rtnetlink import (
    ADDRESS,
    IFA_ADDRESS,
    IFA_LOCAL,
    IFA_PROTO,
    IFF_UP,
    IFLA_ALT_IFNAME,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_IPTUN_LOCAL,
    IFLA_IPTUN_PROTO,
    IFLA_LINKINFO,
    IFLA_PROP_LIST,
    LINK,
    NUMBER,
    ROUTE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_NH_ID,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWLINKPROP,
    RTM_NEWROUTE,
)

ODD = b"od\xffd"
"""A name of an interface that is no UTF-8."""


def ip(*words: str | bytes) -> bytes:
    return subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30).stdout


@pytest.mark.parametrize(("form", "local", "protocol"), [("ipip", "10.9.0.1", 4), ("ip6tnl", "fd09::1", 0)])
def test_a_tunnel_is_what_was_asked_for(form: str, local: str, protocol: int) -> None:
    made = tunnels._new(TunnelDevice("t0", form, local, 1400))
    assert (made.type, made.flags) == (RTM_NEWLINK, netlink.CREATE | netlink.EXCLUSIVE)
    parts = netlink.attributes(made.body, LINK.size)
    info = netlink.attributes(parts[IFLA_LINKINFO])
    data = netlink.attributes(info[IFLA_INFO_DATA])
    assert (parts[IFLA_IFNAME], info[IFLA_INFO_KIND]) == (b"t0\0", form.encode() + b"\0")
    assert data == {IFLA_IPTUN_LOCAL: ip_address(local).packed, IFLA_IPTUN_PROTO: bytes([protocol])}


def test_fields_that_nobody_names_are_zero() -> None:
    assert codec.link(RTM_DELLINK, 7).body == LINK.pack(0, 0, 7, 0, 0)
    assert codec.link(RTM_NEWLINK, 7, state=IFF_UP).body == LINK.pack(0, 0, 7, IFF_UP, IFF_UP)


@pytest.mark.parametrize("text", ["10.1.0.1/24", "2001:db8::1/64"])
def test_an_address_has_its_length_and_its_mark(text: str) -> None:
    address, length = text.split("/")
    packed = ip_address(address).packed
    made = codec.address(RTM_NEWADDR, text, 3, ("IFA_PROTO", 251), settings=2, scope=254)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    assert made.body[: ADDRESS.size] == ADDRESS.pack(family, int(length), 2, 254, 3)
    assert netlink.attributes(made.body, ADDRESS.size) == {IFA_LOCAL: packed, IFA_ADDRESS: packed, IFA_PROTO: b"\xfb"}


def test_a_route_may_lead_to_a_group_which_the_library_does_not_know_by_itself() -> None:
    made = codec.route(RTM_NEWROUTE, "10.9.0.0/16", {"proto": 251}, ("RTA_NH_ID", 7), ("RTA_GATEWAY", "10.1.0.9"))
    assert made.body[: ROUTE.size] == ROUTE.pack(socket.AF_INET, 16, 0, 0, 0, 251, 0, 0, 0)
    assert netlink.attributes(made.body, ROUTE.size) == {
        RTA_DST: bytes([10, 9, 0, 0]), RTA_NH_ID: NUMBER.pack(7), RTA_GATEWAY: bytes([10, 1, 0, 9])
    }  # fmt: skip


def test_names_keep_their_bytes() -> None:
    names = {"attrs": [("IFLA_ALT_IFNAME", ODD)]}
    made = codec.link(RTM_NEWLINKPROP, netlink.text(ODD), ("IFLA_PROP_LIST", names))
    parts = netlink.attributes(made.body, LINK.size)
    assert parts[IFLA_IFNAME] == ODD + b"\0"
    assert netlink.attributes(parts[IFLA_PROP_LIST])[IFLA_ALT_IFNAME] == ODD + b"\0"


@pytest.mark.parametrize(
    "attribute", [("IFLA_NONSENSE", 1), codec.kind("veth", codec.far_end("far", ("IFLA_NONSENSE", 1)))]
)
def test_what_the_library_does_not_know_is_not_left_out_without_a_word(attribute: codec.Attribute) -> None:
    with pytest.raises(KernelError, match="knows no IFLA_NONSENSE"):
        codec.link(RTM_NEWLINK, "d0", attribute)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ModuleNotFoundError("No module named 'nope'")])
def test_a_library_that_can_not_be_imported_now_can_be_later(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str) -> object:
        raise error

    codec.class_of.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(codec.importlib, "import_module", fail)
        with pytest.raises(KernelError, match="can't import pyroute2"):
            codec.link(RTM_DELLINK, 7)
        with pytest.raises(KernelError, match="can't import pyroute2"):
            Listener()
    assert codec.link(RTM_DELLINK, 7).type == RTM_DELLINK


def test_the_rest_of_the_library_is_not_imported_and_works_all_the_same() -> None:
    """By many threads at once, as in an agent."""
    code = (
        "import sys, threading\n"
        "from reconciler.kernel import codec, rtnetlink\n"
        "made = []\n"
        "calls = [lambda: codec.link(16, 'a', codec.kind('ipip')), lambda: codec.address(20, '10.0.0.1', 1),\n"
        "         lambda: codec.route(24, '10.0.0.0/8', {}, ('RTA_NH_ID', 1)), lambda: codec.message(36, 0, {})]\n"
        "threads = [threading.Thread(target=lambda call=call: made.append(call())) for call in calls * 4]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "print(len(made), len({*made}), sorted({'pyroute2', 'pyroute2.iproute', 'asyncio'} & {*sys.modules}))\n"
        "from pyroute2 import IPRoute\n"
        "with IPRoute() as route:\n"
        "    print([link.get('ifname') for link in route.get_links(index=1)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["16 4 []", "['lo']"], done.stderr


@pytest.mark.kernel
def test_the_kernel_s_own_words_are_in_the_error(inside: str) -> None:
    ip("link", "add", "d0", "type", "veth", "peer", "d1")
    with netlink.route() as route:
        outcomes = route.change([codec.link(RTM_NEWLINK, name, ("IFLA_MTU", mtu)) for name, mtu in (
            ("d0", 100_000), ("d0", 1400), ("nobody", 1400))])  # fmt: skip
    assert [error and error.strerror for error in outcomes] == [
        "Invalid argument: mtu greater than device maximum", None, "No such device"
    ]  # fmt: skip
    assert b"mtu 1400" in ip("link", "show", "d0")


@pytest.mark.kernel
def test_a_name_that_is_no_utf8_is_changed_and_heard_of(inside: str) -> None:
    listener = Listener()
    try:
        ip("link", "add", ODD, "type", "veth", "peer", "d1")
        assert Notice("link", netlink.text(ODD)) in list(listener.read(()))
        with netlink.route() as route:
            assert route.change([codec.link(RTM_DELLINK, netlink.text(ODD))]) == [None]
    finally:
        listener.close()
    assert {name for _, name in socket.if_nameindex()} == {"lo"}


@pytest.mark.kernel
def test_many_entries_are_changed_in_a_few_calls_and_nothing_stays_open(
    inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip("link", "add", "d0", "type", "veth", "peer", "d1")
    wanted = [Neighbour(f"10.1.{n // 250}.{n % 250 + 1}", "d0") for n in range(500)]
    sends: list[int] = []
    send = netlink.Route._send
    monkeypatch.setattr(netlink.Route, "_send", lambda own, messages: (sends.append(1), send(own, messages))[1])
    before = {*Path("/proc/self/fd").iterdir()}
    outcomes = neighbours.keep([*wanted, Neighbour("10.1.9.9", "nobody")])
    assert outcomes[:-1] == [None] * 500
    assert str(outcomes[-1]) == "there is no interface nobody"
    assert {(found.address, found.interface) for found in neighbours.read()[0]} == {(n.address, "d0") for n in wanted}
    assert {*Path("/proc/self/fd").iterdir()} == before
    assert len(sends) <= 10
