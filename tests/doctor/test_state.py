# SPDX-License-Identifier: Apache-2.0
"""What a plan would mend is told in the words of an ailing node, with the line of the manifests."""

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.concerns import concerns_of
from reconciler.doctor.finding import Finding, as_data, as_text
from reconciler.doctor.router import of_router
from reconciler.doctor.state import _KINDS, of_plan
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import LRO, RX_VLAN, AttachedProgram, Neighbour, OffloadState
from reconciler.kinds import KINDS
from reconciler.kinds.offload import Offload
from reconciler.kinds.program import PROGRAM
from reconciler.kinds.snat import SNAT_KEYS
from reconciler.kinds.sysctl import Sysctl
from reconciler.live import read_live
from reconciler.model import Announce, Bgp, Interface, Node, Role, XdpMode
from reconciler.plan import plan
from reconciler.render.style import Style
from reconciler.resource import Concern, Span
from reconciler.view import view
from tests.strategies import fake_source


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def planned(fleet, kernel):
    desired = compile_node(view(fleet, None, ""))
    found = plan(desired, read_live(kernel, desired.resources))
    return replace(found, concerns=concerns_of(kernel, desired))


@pytest.fixture
def told(web_fleet):
    (node,) = web_fleet.nodes
    return replace(web_fleet, nodes=(replace(node, announce=Announce()),))


@pytest.fixture
def kernel(told):
    made = FakeKernel()
    apply(planned(told, made), made).raise_if_failed()
    assert list(of_plan(planned(told, made))) == []
    return made


@pytest.mark.parametrize("setting", ["rp_filter", "send_redirects", "accept_local", "forwarding"])
def test_a_setting_that_somebody_changed_is_named_with_its_consequence(told, kernel, setting):
    name = f"net/ipv4/conf/front/{setting}"
    kernel.sysctls[name] = "1" if kernel.sysctls[name] != "1" else "0"
    (found,) = of_plan(planned(told, kernel))
    assert found.name == setting.replace("_", "-")
    assert name in found.evidence and f"value {kernel.sysctls[name]}" in found.evidence


def test_offloads_that_somebody_turned_on_are_named_with_what_comes_of_it(told):
    vlan = Interface("front.7", trunk="front")
    faces = (Interface("front", XdpMode.GENERIC), Interface("back"), vlan)
    fleet = replace(told, nodes=(replace(told.nodes[0], interfaces=faces),))
    kernel = FakeKernel(vlans={"front.7": ("front", 7)})
    apply(planned(fleet, kernel), kernel).raise_if_failed()
    kernel.offload_states |= {("front", LRO): OffloadState(True), ("front", RX_VLAN): OffloadState(True)}
    found = list(of_plan(planned(fleet, kernel)))
    assert [each.name for each in found] == ["packets-merged", "tags-taken-off"]
    assert found[0].evidence == "offload front large-receive-offload is state on, and should be state off"
    kernel.offload_states = {("front", LRO): OffloadState(True, is_free=False)}
    (found,) = of_plan(planned(fleet, kernel))
    assert found.name == "packets-merged" and "its driver can't do otherwise" in found.evidence


@pytest.mark.parametrize(
    ("lose", "name"),
    [("vips", "vip-missing"), ("attached", "program-not-attached"), ("announcements", "not-announced")],
)
def test_an_object_that_is_lost_is_named(told, kernel, lose, name):
    getattr(kernel, lose).clear()
    found = list(of_plan(planned(told, kernel)))
    assert {each.name for each in found} == {name}
    assert all("is missing" in each.evidence for each in found)


def test_every_object_that_is_no_row_has_a_name_of_its_own():
    kinds = [kind for kind in KINDS if not (kind.is_in_maps or kind.resource.is_given)]
    assert {kind.resource.kind for kind in kinds} == {*_KINDS, Sysctl.kind, Offload.kind}


def test_routers_that_are_not_kept_are_no_rows(told, kernel):
    kernel.others_hops = {Neighbour("10.1.0.254", "front")}
    (found,) = of_plan(planned(told, kernel))
    assert found.name == "neighbour-not-kept"


def test_rows_of_the_data_plane_are_one_finding(told, kernel):
    for rows in kernel.maps.values():
        rows.clear()
    assert [found.name for found in of_plan(planned(told, kernel))] == ["rows-differ"]


def test_what_is_in_the_way_and_what_a_plan_warns_of_are_findings(told, kernel):
    kernel.attached.clear()
    stranger = AttachedProgram("front", "native", 7, "other", "somebody else", is_loaded=False, has_our_maps=False)
    kernel.foreign_programs["front"] = stranger
    kernel.down.add("back")
    names = [found.name for found in of_plan(planned(told, kernel))]
    assert "blocked" in names
    assert "xdp-concern" in names


def test_a_router_that_hashes_addresses_only_and_knows_no_way_is_told(web_fleet):
    router = Node("r", (Interface("front"),), role=Role.ROUTER, multipath=2)
    fleet = replace(web_fleet, nodes=(*web_fleet.nodes, router))
    desired = compile_node(view(fleet, "r", ""))
    kernel = FakeKernel(known_ways={"20.20.20.1": ""})
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    kernel.sysctls["net/ipv4/fib_multipath_hash_policy"] = "0"
    seen = of_router(fleet, view(fleet, "r", ""), kernel)
    found = [*of_plan(plan(desired, read_live(kernel, desired.resources))), *seen]
    assert [each.name for each in found] == ["ecmp-hash", "vip-unrouted"]


@pytest.mark.parametrize(("key", "name"), [(SNAT_KEYS[4], "ports-nearly-used"), (PROGRAM, "table-nearly-full")])
def test_what_runs_short_has_a_name_of_its_own(told, kernel, key, name):
    concern = Concern(key, "few are left", "have more")
    (found,) = of_plan(replace(planned(told, kernel), concerns=(concern,)))
    assert (found.name, found.evidence, found.way_out) == (name, "few are left", "have more")
    assert "new connections" in found.consequence


def test_texts_of_others_are_made_safe():
    found = Finding("mtu", "a\x1b[31mb\nc", "so", "out", Span("a\x1b.yaml", 3))
    text = as_text(found, Style())
    assert "\x1b" not in text
    assert len(text.splitlines()) == 4
    assert as_data(found)["place"] == {"file": "a\x1b.yaml", "line": 3}


def test_a_router_tells_which_balancers_announce_a_vip_and_which_do_not(web_fleet):
    (node,) = web_fleet.nodes
    balancers = [
        replace(node, name=f"lb{n}", interfaces=(Interface("front", addresses=(ip_interface(f"10.1.0.{n}/24"),)),),
                announce=Announce(), bgp=Bgp(65000 + n)) for n in (1, 2)
    ]  # fmt: skip
    faces = (Interface("front", addresses=(ip_interface("10.1.0.254/24"),)),)
    router = Node("r", faces, role=Role.ROUTER, multipath=2, bgp=Bgp(65000))
    fleet = replace(web_fleet, nodes=(*balancers, router))

    def told(*hops):
        kernel = FakeKernel(known_ways={"20.20.20.1": "front"}, known_hops={"20.20.20.1": list(hops)})
        return [(each.name, each.evidence) for each in of_router(fleet, view(fleet, "r", ""), kernel)]

    assert told("10.1.0.1", "10.1.0.2") == []
    assert told("10.1.0.2") == [
        ("announced-otherwise", "10.1.0.2 announces the VIP 20.20.20.1, and not lb1 (10.1.0.1)")
    ]  # fmt: skip
    assert told() == []  # that there is no way is told of by itself
