# SPDX-License-Identifier: Apache-2.0
"""What all formats share: names, pools, ports, weights, and what is left out."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.config.fmt import canonical
from reconciler.config.source import SourceFile
from reconciler.importers import emit
from reconciler.importers.assemble import assemble
from reconciler.importers.draft import Endpoint, Notices, Service
from reconciler.importers.names import MAX_LENGTH, Names, label

WEB = Service(
    line=7,
    vips=(ip_address("20.20.20.1"),),
    protocol="tcp",
    ports=(range(80, 81),),
    mode="nat",
    algorithm="round-robin",
    endpoints=tuple(Endpoint(ip_address(f"10.2.0.{i}"), 8080, line=8) for i in (1, 2)),
)


def at(port, **changes):
    return replace(WEB, ports=(range(port, port + 1),), **changes)


def to(*endpoints):
    return tuple(Endpoint(ip_address(address), port, weight, line=8) for address, port, weight in endpoints)


def specs(kind, *drafts):
    return [m["spec"] for m in assemble(drafts, Notices()).manifests if m["kind"] == kind]


def warnings(*drafts):
    return [notice.message for notice in assemble(drafts, Notices()).warnings if notice.line]


def test_services_with_the_same_endpoints_share_a_pool():
    assert [spec["pool"] for spec in specs("Service", at(80), at(443))] == ["tcp-20-20-20-1-80"] * 2
    assert len(specs("Pool", at(80), at(443))) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"endpoints": to(("10.2.0.1", 8080, 1), ("10.2.0.2", 8080, 2))},
        {"endpoints": to(("10.2.0.1", 8080, 1))},
        {"check": {"type": "ping"}},
    ],
)
def test_services_whose_endpoints_or_checks_differ_have_pools_of_their_own(other):
    assert len(specs("Pool", at(80), at(443, **other))) == 2


@pytest.mark.parametrize(
    ("endpoints", "target_port", "ports"),
    [
        (to(("10.2.0.1", 80, 1), ("10.2.0.2", None, 1)), None, [None, None]),
        (to(("10.2.0.1", 8080, 1), ("10.2.0.2", 8080, 1)), 8080, [None, None]),
        (to(("10.2.0.1", 8080, 1), ("10.2.0.2", None, 1)), None, [8080, 80]),
        (to(("10.2.0.1", 8080, 1), ("10.2.0.1", 8081, 1)), None, [8080, 8081]),
    ],
)
def test_ports_are_written_where_they_say_something(endpoints, target_port, ports):
    draft = at(80, endpoints=endpoints)
    assert specs("Service", draft)[0].get("targetPort") == target_port
    assert [e.get("port") for e in specs("Pool", draft)[0]["endpoints"]] == ports


def test_a_target_port_is_not_written_for_several_ports():
    draft = replace(WEB, ports=(range(80, 83),))
    assert "targetPort" not in specs("Service", draft)[0]
    assert [e["port"] for e in specs("Pool", draft)[0]["endpoints"]] == [8080, 8080]


@pytest.mark.parametrize("mode", ["dsr-l2", "dsr-l3"])
def test_ports_that_a_mode_can_not_translate_are_left_out(mode):
    draft = at(80, mode=mode, algorithm="maglev")
    assert "targetPort" not in specs("Service", draft)[0]
    assert all("port" not in e for e in specs("Pool", draft)[0]["endpoints"])
    assert len(warnings(draft)) == 2


@pytest.mark.parametrize(
    ("check", "found"),
    [
        ({"type": "tcp"}, {"type": "tcp"}),
        ({"type": "udp"}, {"type": "udp", "port": 8080}),
        ({"type": "tcp", "port": 9}, {"type": "tcp", "port": 9}),
        ({"type": "ping"}, {"type": "ping"}),
    ],
)
def test_a_check_has_the_port_that_was_said_or_that_nothing_else_says(check, found):
    assert specs("Pool", at(80, check=check))[0]["healthCheck"] == found


def test_a_check_of_endpoints_with_ports_of_their_own_goes_there():
    draft = at(80, check={"type": "tcp"}, endpoints=to(("10.2.0.1", 8080, 1), ("10.2.0.2", 8081, 1)))
    assert specs("Pool", draft)[0]["healthCheck"] == {"type": "tcp"}


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=6).filter(any))
def test_weights_end_below_the_limit_with_the_shares_that_they_gave(weights):
    draft = at(80, endpoints=to(*((f"10.2.0.{i}", 80, weight) for i, weight in enumerate(weights, 1))))
    found = [e.get("weight", 1) for e in specs("Pool", draft)[0]["endpoints"]]
    assert max(found) <= 1000
    assert [bool(weight) for weight in found] == [bool(weight) for weight in weights]
    if max(weights) <= 1000:
        assert found == weights
    for weight, was in zip(found, weights, strict=True):
        assert abs(weight / max(found) - was / max(weights)) <= 1 / max(found)


def test_services_that_wait_for_their_endpoints_wait_for_their_own():
    drafts = (at(80, endpoints=()), at(81, endpoints=()))
    assert [spec["pool"] for spec in specs("Service", *drafts)] == ["tcp-20-20-20-1-80", "tcp-20-20-20-1-81"]
    assert specs("Pool", *drafts) == [{"endpoints": []}] * 2


def test_a_pool_is_shared_only_where_its_check_goes_to_one_port():
    servers = {"check": {"type": "tcp"}, "endpoints": to(("10.2.0.1", None, 1))}
    assert len(specs("Pool", at(80, **servers), at(81, **servers))) == 2
    assert len(specs("Pool", at(80, **servers), at(80, vips=(ip_address("20.20.20.2"),), **servers))) == 1


def test_what_was_not_possible_names_the_scheduler_that_asked_for_it():
    draft = at(80, mode="dsr-l3", algorithm="least-connections", scheduler="wlc (the default)", endpoints=())
    assert warnings(draft) == [
        "20.20.20.1:80/tcp: in mode dsr-l3 the balancer sees no replies and can't count connections, "
        "as wlc (the default) needs: maglev is written"
    ]


def test_many_services_on_one_vip_take_no_quadratic_time():
    drafts = [at(port, endpoints=()) for port in range(1, 20_001)]
    drafts += [replace(WEB, line=9, ports=(range(1000, 2000),))]
    kept = assemble(drafts, notices := Notices()).manifests
    assert len(kept) == 40_000
    assert "VIP and port belong to the service of line 7 already" in notices[0].message


def test_weights_of_an_algorithm_that_ignores_them_are_left_out():
    draft = at(
        80,
        scheduler="rr",
        unweighted=True,
        endpoints=to(("10.2.0.1", 80, 5), ("10.2.0.2", 80, 9), ("10.2.0.3", 80, 0)),
    )
    assert [e.get("weight", 1) for e in specs("Pool", draft)[0]["endpoints"]] == [1, 1, 0]
    assert warnings(draft) == ["20.20.20.1:80/tcp: rr ignores weights, round-robin does not: they are left out"]


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "fe80::1"]
)
def test_addresses_that_no_machine_can_have_are_left_out(address):
    assert specs("Service", at(80, vips=(ip_address(address),))) == []
    assert specs("Pool", at(80, mode="dsr-l3", endpoints=to((address, None, 1)))) == [{"endpoints": []}]


@pytest.mark.parametrize(("mode", "left"), [("nat", 1), ("fullnat", 1), ("dsr-l2", 1), ("dsr-l3", 2)])
def test_families_mix_only_in_tunnels(mode, left):
    draft = at(80, mode=mode, endpoints=to(("10.2.0.1", 80, 1), ("2001:db8::1", 80, 1)))
    assert len(specs("Pool", draft)[0]["endpoints"]) == left


def test_a_service_whose_ports_belong_to_another_is_left_out():
    overlapping = replace(WEB, line=9, ports=(range(70, 90),))
    other_protocol = at(80, protocol="udp")
    assert len(specs("Service", WEB, overlapping, other_protocol)) == 2
    assert warnings(WEB, overlapping) == [
        "20.20.20.1:70-89/tcp: VIP and port belong to the service of line 7 already: this one is left out"
    ]


def test_a_vip_is_no_endpoint():
    draft = at(80, endpoints=to(("10.2.0.1", 80, 1), ("20.20.20.9", 80, 1)))
    other = at(80, vips=(ip_address("20.20.20.9"),))
    assert specs("Pool", draft, other)[0]["endpoints"] == [{"address": "10.2.0.1"}]


def test_the_same_input_gives_the_same_names_whatever_follows():
    first = [m["metadata"]["name"] for m in assemble([at(80, name="Shop_1")], Notices()).manifests]
    more = assemble([at(80, name="Shop_1"), at(81, name="shop 1")], Notices()).manifests
    assert first == ["shop-1", "shop-1"]
    assert [m["metadata"]["name"] for m in more if m["kind"] == "Service"] == ["shop-1", "shop-1-2"]


@given(st.text())
def test_a_label_is_one_or_nothing(text):
    found = label(text)
    assert len(found) <= MAX_LENGTH
    assert found.strip("-") == found
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert label(found) == found


@given(st.lists(st.sampled_from(["a", "a-2", "b" * 63, "b" * 62]), max_size=30))
def test_names_are_unique_and_of_legal_length(wanted):
    names = Names()
    found = [names.take(name) for name in wanted]
    assert len(set(found)) == len(found)
    assert all(label(name) == name for name in found)


def test_many_manifests_are_written_piece_by_piece_into_one_canonical_text():
    manifests = assemble([at(port) for port in range(1, 2 * emit.AT_ONCE)], Notices()).manifests
    text = emit.text(manifests, "a test")
    assert canonical(SourceFile("", text)) == (text, [])
    assert text.count("\n---\n") == len(manifests) - 1 and text.count("# Imported from a test.\n") == 1
    assert emit.text(manifests[:1], "x").splitlines()[0] == "# Imported from x."


@pytest.mark.parametrize(
    ("mode", "algorithm", "written"),
    [
        ("nat", "round-robin", {"by": "client", "timeout": "6m"}),
        ("fullnat", "source-hash", {"by": "client", "timeout": "6m"}),
        ("dsr-l2", "maglev", {"by": "client"}),
        ("dsr-l3", "source-hash", None),
    ],
)
def test_persistence_is_affinity_and_its_time_is_left_out_where_no_client_is_remembered(mode, algorithm, written):
    to_port = tuple(replace(endpoint, port=None) for endpoint in WEB.endpoints)
    draft = at(80, mode=mode, algorithm=algorithm, affinity="6m", endpoints=to_port)
    (spec,) = specs("Service", draft)
    assert spec.get("affinity") == written
    assert any("no time runs out" in message for message in warnings(draft)) == mode.startswith("dsr")
