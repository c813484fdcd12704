# SPDX-License-Identifier: Apache-2.0
"""Lists of sources come, are exchanged and go, and rows of services lead to whole lists at every moment."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.config.load import load
from reconciler.dataplane.layout import SERVICE_MAPS, SERVICES, SOURCE_LISTS, SOURCES
from reconciler.importers import emit
from reconciler.importers.live import import_live
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.faulty import FaultyKernel
from reconciler.kinds.sources import SourceList
from reconciler.live import read_live
from reconciler.plan import plan
from reconciler.reconcile import node_view
from reconciler.resource import Key
from reconciler.view import view
from tests.strategies import fake_source

HERE, THERE = ("10.1.0.0/24", "2001:db8:1::/64"), ("10.1.0.0/25", "192.0.2.0/24")


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def allowing(fleet, *networks):
    (service,) = fleet.services
    return replace(fleet, services=(replace(service, allowed_sources=tuple(map(ip_network, networks))),))


def planned(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    return plan(desired, read_live(kernel, desired.resources))


def bring(kernel, fleet):
    """Apply, and see that nothing is left to do; the networks of each list, and what rows of services lead to."""
    apply(planned(kernel, fleet), kernel).raise_if_failed()
    assert planned(kernel, fleet).changes == ()
    return [r.networks for r in read_live(kernel).resources.values() if isinstance(r, SourceList)]


def led_to(kernel):
    """The numbers of lists that rows of services have."""
    return {row.sources for spec in SERVICE_MAPS.values() for _, row in spec.unpack(kernel.dump(spec.name))}


def nodes(kernel):
    return {key.list for key, _ in SOURCES.unpack(kernel.dump(SOURCES.name))}


def test_a_list_comes_is_exchanged_and_goes(web_fleet):
    kernel = FakeKernel()
    assert bring(kernel, web_fleet) == []
    assert bring(kernel, allowing(web_fleet, *HERE)) == [HERE]
    assert bring(kernel, allowing(web_fleet, *THERE)) == [THERE]
    assert led_to(kernel) == nodes(kernel) != {0}
    assert bring(kernel, web_fleet) == []
    assert (led_to(kernel), nodes(kernel)) == ({0}, set())


def test_every_write_leaves_each_service_with_a_whole_list(web_fleet):
    """Never one that lets nobody through, or everybody."""
    kernel = FakeKernel()
    bring(kernel, allowing(web_fleet, *HERE))
    whole = {number: rows_of(kernel, number) for number in nodes(kernel)}
    seen = set()

    def on_write():
        (number,) = led_to(kernel)
        whole.setdefault(number, rows_of(kernel, number))
        assert rows_of(kernel, number) == whole[number] != {}
        seen.add(number)

    kernel.on_write = on_write
    bring(kernel, allowing(web_fleet, *THERE))
    assert len(seen) == 2


def rows_of(kernel, number):
    return {key: row for key, row in SOURCES.unpack(kernel.dump(SOURCES.name)) if key.list == number}


def test_lists_that_hold_the_same_addresses_are_one(web_fleet):
    kernel = FakeKernel()
    bring(kernel, allowing(web_fleet, "10.0.0.0/8"))
    halves = allowing(web_fleet, "10.128.0.0/9", "10.1.0.0/16", "10.0.0.0/9")
    assert planned(kernel, halves).changes == ()


def test_what_somebody_changed_is_mended(web_fleet):
    kernel, fleet = FakeKernel(), allowing(web_fleet, *HERE)
    bring(kernel, fleet)
    whole = dict(kernel.maps[SOURCES.name])
    for spoil in (
        lambda rows: rows.clear(),
        lambda rows: rows.update({next(iter(rows)): b"\xff" * SOURCES.value_size}),
        lambda rows: rows.update({key[:4] + bytes(4): b"\xff" * SOURCES.value_size for key in list(rows)}),
        lambda rows: rows.update({b"\x09" + bytes(7): b"\xff" * SOURCES.value_size}),
        lambda rows: kernel.maps[SOURCE_LISTS.name].clear(),
        lambda rows: kernel.maps[SERVICES.name].update(
            {key: row[:-4] + bytes(4) for key, row in kernel.maps[SERVICES.name].items()}),
    ):  # fmt: skip
        spoil(kernel.maps[SOURCES.name])
        assert planned(kernel, fleet).changes
        apply(planned(kernel, fleet), kernel).raise_if_failed()
        assert bring(kernel, fleet) == [HERE]
        assert sorted(row[4:] for row in kernel.maps[SOURCES.name]) == sorted(key[4:] for key in whole)


def test_a_list_that_does_not_fit_leaves_the_service_as_it_is(web_fleet):
    kernel = FaultyKernel()
    bring(kernel, allowing(web_fleet, *HERE))
    before = dict(kernel.maps[SERVICES.name]), dict(kernel.maps[SOURCES.name])
    kernel.sizes[SOURCES.name] = len(kernel.maps[SOURCES.name]) + 1
    far = [f"{n}.0.0.0/24" for n in range(11, 99)]
    result = apply(planned(kernel, allowing(web_fleet, *far)), kernel)
    assert any("is full" in str(error) for error in result.failed.values())
    assert (kernel.maps[SERVICES.name], kernel.maps[SOURCES.name]) == before


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (HERE, THERE, "those of clients that are no longer allowed end at their next packet"),
        ((), HERE, "those of clients that are no longer allowed end at their next packet"),
        (THERE, (*HERE, *THERE), ""),
        (HERE, (), ""),
    ],
)
def test_a_plan_says_whose_connections_end(web_fleet, before, after, said):
    kernel = FakeKernel()
    bring(kernel, allowing(web_fleet, *before))
    goal = planned(kernel, allowing(web_fleet, *after))
    texts = [text for key, text in goal.effects().items() if key.kind == "service"]
    assert [text.removeprefix("open connections stay").removeprefix("; ") for text in texts if text] == [said]


def test_a_node_whose_program_asks_goes_on_asking(web_fleet):
    """Programs change before services do: with another one, a service that is to go would be for everybody."""
    kernel = FakeKernel()
    bring(kernel, allowing(web_fleet, *HERE))
    assert "ALLOWED_SOURCES" in node_view(web_fleet, None, kernel).features
    assert "ALLOWED_SOURCES" not in node_view(web_fleet, None, FakeKernel()).features


def test_an_import_of_a_node_has_its_lists(web_fleet, tmp_path):
    kernel = FakeKernel()
    bring(kernel, allowing(web_fleet, *HERE))
    for name, text in emit.files(import_live(read_live(kernel), "lb1").manifests, "a test").items():
        (tmp_path / name).write_text(text)
    (service,) = load(tmp_path).fleet.services
    assert tuple(map(str, service.allowed_sources)) == HERE
    kernel.maps[SOURCE_LISTS.name].clear()
    imported = import_live(read_live(kernel), "lb1")
    assert any("20.20.20.1" in str(notice) and "left out" in str(notice) for notice in imported.warnings)
    assert Key("sources", "lost list 1") in read_live(kernel).resources
