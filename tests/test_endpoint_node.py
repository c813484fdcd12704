# SPDX-License-Identifier: Apache-2.0
"""What a node of role endpoint gets, and that it never speaks for a VIP that the balancer answers for."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest

from reconciler.apply import apply
from reconciler.errors import KernelError, LbctlError, UnsupportedError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import TunnelDevice
from reconciler.live import read_live
from reconciler.model import Endpoint, Fleet, Interface, Mode, Node, Pool, Protocol, Role, Service, VipBinding
from reconciler.plan import guard, plan
from reconciler.reconcile import desired_of
from reconciler.resource import Key, Live
from tests.strategies import fake_source

FRONT = Interface("front", mtu_bytes=1520)
VIP, OTHER_VIP, OWN = IPv4Address("20.20.20.21"), IPv4Address("20.20.20.22"), IPv4Address("10.2.0.11")
SILENT = {
    "sysctl net/ipv4/conf/front/arp_ignore": "1", "sysctl net/ipv4/conf/front/arp_announce": "2",
    "sysctl net/ipv4/conf/front/rp_filter": "2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def fleet(mode, *, vips=(VIP,), named=OWN, interfaces=(FRONT,), **node):
    return Fleet(
        (Service("web", vips, Protocol.TCP, (80,), "web", mode=mode),),
        (Pool("web", (Endpoint(named), Endpoint(IPv4Address("10.2.0.12")))),),
        (Node("web1", interfaces, role=Role.ENDPOINT, **({"address": OWN} | node)),
         Node("lb1", (Interface("front"),))),
    )  # fmt: skip


def written(desired):
    """Without what the node must have by itself."""
    return {key: resource for key, resource in desired.resources.items() if not resource.is_given}


def shown(desired):
    """Key → what a plan says of it, without the digests of the program."""
    described = {str(key): resource.describe() for key, resource in written(desired).items()}
    digests = ("build", "layout", "maps")
    return {key: ", ".join(text for name, text in d.items() if name not in digests) for key, d in described.items()}


def bring(kernel, wanted):
    """Apply; returns what became of it."""
    desired = desired_of(wanted, "web1", kernel)
    result = apply(plan(desired, read_live(kernel, desired.resources)), kernel)
    return desired, result


def held(kernel, desired):
    live = read_live(kernel, desired.resources)
    return {key: r for key, r in live.resources.items() if key in desired.resources or key.kind != "sysctl"}


# --- what each mode needs -----------------------------------------------------------------------------------
def test_dsr_l2_needs_the_vip_and_silence_about_it():
    assert shown(desired_of(fleet(Mode.DSR_L2), "web1")) == SILENT | {"loopback 20.20.20.21": "route"}


def test_dsr_l3_needs_a_tunnel_as_well_whose_mtu_leaves_room_for_the_outer_header():
    desired = desired_of(fleet(Mode.DSR_L3), "web1", FakeKernel())
    tunnel = desired.resources[Key("tunnel", "ipip 10.2.0.11")]
    assert shown(desired) == SILENT | {
        "sysctl net/ipv4/conf/all/rp_filter": "0", "loopback 20.20.20.21": "route",
        "tunnel ipip 10.2.0.11": f"{tunnel.device}, 1500",
    }  # fmt: skip
    assert tunnel.mtu_bytes == 1500 and len(tunnel.device) <= 15


def test_where_the_kernel_makes_no_tunnels_a_program_unpacks_them():
    desired = desired_of(fleet(Mode.DSR_L3), "web1", FakeKernel(tunnel_forms=frozenset()))
    assert shown(desired) == SILENT | {
        "loopback 20.20.20.21": "route", "program data-plane": "decapsulate", "unpacked 20.20.20.21": "",
        "xdp front": "native",
    }  # fmt: skip


def test_the_program_unpacks_for_vips_of_dsr_l3_alone():
    both = fleet(Mode.DSR_L3)
    l2 = replace(both.services[0], name="l2", vips=(OTHER_VIP,), mode=Mode.DSR_L2)
    kernel = FakeKernel(tunnel_forms=frozenset())
    keys = desired_of(replace(both, services=(*both.services, l2)), "web1", kernel).resources.keys()
    assert {key.id for key in keys if key.kind == "unpacked"} == {str(VIP)}
    assert {key.id for key in keys if key.kind == "loopback"} == {str(VIP), str(OTHER_VIP)}


def test_without_kernel_tunnels_and_interfaces_nothing_can_unpack():
    with pytest.raises(UnsupportedError, match="a program can only on `interfaces`") as raised:
        desired_of(fleet(Mode.DSR_L3, interfaces=()), "web1", FakeKernel(tunnel_forms=frozenset()))
    assert "list the interfaces that tunnels come in by" in raised.value.hint


def test_a_snapshot_tells_by_what_it_holds_who_unpacks():
    wanted, kernel = fleet(Mode.DSR_L3), FakeKernel(tunnel_forms=frozenset())
    desired, _ = bring(kernel, wanted)
    assert desired_of(wanted, "web1", read_live(kernel)) == desired
    assert desired_of(wanted, "web1", Live()) == desired_of(wanted, "web1")


@pytest.mark.parametrize("mode", [Mode.NAT, Mode.FULLNAT])
def test_modes_whose_replies_pass_the_balancer_need_nothing(mode):
    assert desired_of(fleet(mode), "web1").resources == {}


def test_pools_that_name_other_machines_need_nothing():
    assert desired_of(fleet(Mode.DSR_L3, named=IPv4Address("10.2.0.13")), "web1").resources == {}


def test_pools_may_name_an_endpoint_by_the_address_of_an_interface():
    own = (Interface("front", addresses=(IPv4Interface("10.2.0.11/24"),)),)
    assert shown(desired_of(fleet(Mode.DSR_L2, address=None, interfaces=own), "web1")).keys() > SILENT.keys()


def test_an_endpoint_that_declares_no_interfaces_is_silent_on_all():
    for mode, reverse_path in ((Mode.DSR_L2, "2"), (Mode.DSR_L3, "0")):
        settings = shown(desired_of(fleet(mode, interfaces=()), "web1"))
        assert settings["sysctl net/ipv4/conf/all/arp_ignore"] == "1"
        assert settings["sysctl net/ipv4/conf/all/rp_filter"] == reverse_path


def test_an_endpoint_takes_none_of_what_balancers_hold():
    kinds = {key.kind for key in desired_of(fleet(Mode.DSR_L2), "web1").resources}
    assert kinds.isdisjoint({"service", "ring", "endpoint", "settings", "program", "xdp", "vip", "unpacked"})


# --- applied ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("forms", [frozenset({"ipip", "ip6tnl"}), frozenset()], ids=["kernel", "program"])
@pytest.mark.parametrize("start", list(Mode))
@pytest.mark.parametrize("goal", list(Mode))
def test_it_arrives_from_any_mode_at_any_other(start, goal, forms):
    kernel = FakeKernel(tunnel_forms=forms)
    before = dict(kernel.sysctls)
    bring(kernel, fleet(start))
    desired, result = bring(kernel, fleet(goal, vips=(VIP, OTHER_VIP), vip_binding=VipBinding.ADDRESS))
    assert not result.failed and not result.skipped
    assert held(kernel, desired) == written(desired)
    assert plan(desired, read_live(kernel, desired.resources)).changes == ()
    _, result = bring(kernel, fleet(Mode.NAT))
    assert not result.failed and not result.skipped
    assert (kernel.vips, kernel.tunnel_devices, kernel.attached, kernel.program, kernel.former) == (
        set(), {}, {}, None, {}
    )  # fmt: skip
    assert before.items() <= kernel.sysctls.items()


class MuteKernel(FakeKernel):
    """Refuses to write settings whose names end as one of `stuck`; keeps VIPs if `keeps_vips`."""

    stuck: tuple[str, ...] = ()
    keeps_vips = False

    def write_sysctl(self, name, value):
        if name.endswith(self.stuck):
            raise KernelError(f"can't set {name}")
        super().write_sysctl(name, value)

    def remove_local_vips(self, vips):
        return [KernelError("kept")] * len(vips) if self.keeps_vips else super().remove_local_vips(vips)


@pytest.mark.parametrize("setting", ["arp_ignore", "arp_announce"])
def test_no_vip_comes_up_on_an_endpoint_that_would_speak_for_it(setting):
    kernel = MuteKernel()
    kernel.stuck = (setting,)
    _, result = bring(kernel, fleet(Mode.DSR_L2))
    assert kernel.vips == set()
    assert result.skipped[Key("loopback", str(VIP))] == f"needs sysctl net/ipv4/conf/front/{setting}"


def test_an_endpoint_stays_silent_while_a_vip_can_not_be_removed():
    kernel = MuteKernel()
    bring(kernel, fleet(Mode.DSR_L2))
    kernel.keeps_vips = True
    _, result = bring(kernel, fleet(Mode.NAT))
    assert Key("loopback", str(VIP)) in result.failed
    assert kernel.sysctls["net/ipv4/conf/front/arp_ignore"] == "1"
    kernel.keeps_vips = False
    bring(kernel, fleet(Mode.NAT))
    assert kernel.sysctls["net/ipv4/conf/front/arp_ignore"] == "0"


def test_what_others_did_to_a_tunnel_is_drift_and_mended():
    kernel = FakeKernel()
    desired, _ = bring(kernel, fleet(Mode.DSR_L3))
    (device,) = kernel.tunnel_devices.values()
    kernel.tunnel_devices[device.name] = replace(device, is_up=False, mtu_bytes=1400)
    kernel.sysctls[f"net/ipv4/conf/{device.name}/forwarding"] = "1"
    (change,) = plan(desired, read_live(kernel, desired.resources)).changes
    assert change.before.describe() == {
        "device": device.name, "MTU": "1400", "state": "down",
        "settings": f"net/ipv4/conf/{device.name}/forwarding 1",
    }  # fmt: skip
    bring(kernel, fleet(Mode.DSR_L3))
    assert kernel.tunnel_devices[device.name] == device
    assert kernel.sysctls[f"net/ipv4/conf/{device.name}/forwarding"] == "0"


def test_a_tunnel_of_somebody_else_to_the_same_address_is_in_the_way_and_left_alone():
    kernel = FakeKernel()
    theirs = TunnelDevice("tun7", "ipip", str(OWN), 1400, is_ours=False)
    kernel.tunnel_devices["tun7"] = theirs
    _, result = bring(kernel, fleet(Mode.DSR_L3))
    assert "ipip device tun7, which ends at 10.2.0.11 as well" in result.blocked[Key("tunnel", "ipip 10.2.0.11")]
    assert result.done == []
    bring(kernel, fleet(Mode.NAT))
    assert kernel.tunnel_devices == {"tun7": theirs}


def test_an_endpoint_does_not_lose_all_its_vips_to_an_empty_directory():
    kernel = FakeKernel()
    bring(kernel, fleet(Mode.DSR_L2))
    planned = plan(desired_of(fleet(Mode.NAT), "web1"), read_live(kernel))
    with pytest.raises(LbctlError, match="ask for no VIP at all, and 1 would be removed"):
        guard(planned, allow_empty=False)
    guard(planned, allow_empty=True)
