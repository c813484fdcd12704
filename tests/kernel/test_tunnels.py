# SPDX-License-Identifier: Apache-2.0
"""Devices that unpack tunnels, on the real kernel; those of a form that it doesn't know can't be tried on it."""

from dataclasses import replace

import pytest

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import sysctl, tunnels
from reconciler.kernel.objects import TunnelDevice

from .conftest import ip

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("inside")]

FORMS = {"ipip": "10.9.0.1", "ip6tnl": "fd09::1"}


def links() -> list[str]:
    return [line.split(":")[1].strip().partition("@")[0] for line in ip("-o", "link").splitlines()]


@pytest.fixture(params=FORMS)
def device(request: pytest.FixtureRequest) -> TunnelDevice:
    """One in a namespace of its own, not made yet."""
    if not tunnels.known(request.param):
        pytest.skip(f"this kernel makes no {request.param} devices")
    name = f"{request.param}-test"
    settings = ((f"net/ipv4/conf/{name}/rp_filter", "2"),)
    return TunnelDevice(name, request.param, FORMS[request.param], 1400, settings)


def ours() -> list[TunnelDevice]:
    return [device for device in tunnels.read() if device.is_ours]


@pytest.mark.parametrize("form", [*FORMS, "lbctl-nonsense"])
def test_asking_what_the_kernel_can_make_makes_nothing(form):
    before = links()
    known = tunnels.known(form)
    assert known is False or form in FORMS
    assert set(links()) - set(before) <= {"tunl0", "ip6tnl0"}  # of modules that were loaded just now


@pytest.mark.parametrize("form", FORMS)
def test_what_it_says_it_can_make_is_what_it_makes(form):
    device = TunnelDevice("probe", form, FORMS[form], 1400)
    if tunnels.known(form):
        tunnels.add(device)
        assert ours() == [device]
    else:
        with pytest.raises(KernelError, match=f"can't make the {form} device probe: Operation not supported"):
            tunnels.add(device)
        assert tunnels.read() == []


def test_a_device_is_read_back_as_it_was_asked_for(device):
    tunnels.add(device)
    assert ours() == [replace(device, settings=())]
    assert [sysctl.read(name) for name, _ in device.settings] == [value for _, value in device.settings]
    tunnels.add(device)
    assert ours() == [replace(device, settings=())]


def test_a_device_is_changed_in_its_place(device):
    tunnels.add(replace(device, mtu_bytes=1300))
    index = ip("-o", "link", "show", device.name).split(":")[0]
    ip("link", "set", device.name, "down")
    tunnels.add(device)
    assert ours() == [replace(device, settings=())]
    assert ip("-o", "link", "show", device.name).split(":")[0] == index


def test_a_setting_that_the_kernel_lacks_leaves_no_device_behind(device):
    with pytest.raises(KernelError):
        tunnels.add(replace(device, settings=(("net/ipv4/conf/nobody/rp_filter", "2"),)))
    assert ours() == [] and device.name not in links()


def test_the_devices_of_others_are_seen_and_left_alone(device):
    remote = ["remote", "any", "local", device.local]
    kind = ["ip6tnl", "mode", "any"] if device.form == "ip6tnl" else [device.form]
    ip("link", "add", device.name, "type", *kind, *remote)
    (theirs,) = (found for found in tunnels.read() if found.name == device.name)
    assert (theirs.form, theirs.local, theirs.is_ours) == (device.form, device.local, False)
    with pytest.raises(ForeignError, match=f"{device.name} is there and not lbctl's"):
        tunnels.add(device)
    tunnels.remove(device.name)
    assert device.name in links()


def test_removing_is_no_error_where_there_is_nothing(device):
    tunnels.add(device)
    tunnels.remove(device.name)
    tunnels.remove(device.name)
    assert device.name not in links()
