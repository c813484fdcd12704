# SPDX-License-Identifier: Apache-2.0
"""Drains in their file, and the words by which people name endpoints."""

from ipaddress import ip_address

import pytest

from reconciler.errors import FilesError, UsageError
from reconciler.kernel.fake import FakeKernel
from reconciler.model import Endpoint, Pool
from reconciler.readings.draining import Place, chosen, parsed
from reconciler.wish import drains
from reconciler.wish.drains import KEPT_S, Drain, added, change, changes_s, ended, of_pool

ONE, TWO = ip_address("10.2.0.1"), ip_address("2001:db8::2")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / drains.FILE


def test_what_was_written_is_read(path):
    asked = (Drain(ONE, 80, "web", 5.0, 65.0, None, "ann", "disk"), Drain(TWO, began_s=7.0, deadline_s=9.0))
    assert change(path, lambda before: before + asked) == asked
    assert drains.read(path) == asked


def test_a_drain_takes_the_place_of_the_one_before_and_old_ones_are_forgotten():
    first, other = Drain(ONE, began_s=1.0), Drain(TWO, began_s=1.0, until_s=2.0)
    again = Drain(ONE, began_s=9.0, until_s=99.0)
    assert added((first, other), [again], 9.0) == (other, again)
    assert added((first, other), [again], 3.0 + KEPT_S) == (again,)


def test_a_drain_of_all_pools_is_not_ended_for_one(path):
    every, own = Drain(ONE), Drain(ONE, pool="web")
    assert [drain.is_on(9.0) for drain in ended((every, own), "web", ONE, None, 9.0)] == [True, False]
    assert [drain.is_on(9.0) for drain in ended((every, own), None, ONE, None, 9.0)] == [False, False]
    assert [drain.is_on(9.0) for drain in ended((every, own), None, TWO, None, 9.0)] == [True, True]


def test_of_several_drains_of_an_endpoint_the_one_that_lasts_longest_counts():
    pool = Pool("web", (Endpoint(ONE, 80), Endpoint(ONE, 81), Endpoint(TWO)))
    short, long = Drain(ONE, pool="web", until_s=5.0), Drain(ONE, 80, until_s=50.0)
    assert of_pool((short, long, Drain(TWO, pool="mail")), pool) == (long, short, None)
    assert of_pool((short, Drain(ONE)), pool)[0] == Drain(ONE)


def test_the_next_change_is_an_end_or_a_deadline():
    assert changes_s([Drain(ONE, until_s=50.0, deadline_s=20.0), Drain(TWO)], 10.0) == 20.0
    assert changes_s([Drain(ONE, until_s=50.0, deadline_s=20.0)], 30.0) == 50.0
    assert changes_s([Drain(ONE, until_s=50.0)], 60.0) == float("inf")


@pytest.mark.parametrize("content", [b"", b"{", b"[{}]", b'[{"address": "x"}]', b"[1]"])
def test_a_damaged_file_is_an_error_and_no_edit_overwrites_it(path, content):
    drains.write(path, ())
    path.write_bytes(content)
    path.with_name(drains.COPY).write_bytes(content)
    for use in (drains.read, lambda damaged: drains.change(damaged, lambda before: before)):
        with pytest.raises(FilesError, match="is damaged"):
            use(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_of_a_damaged_file_the_copy_counts_until_somebody_drains_again(path, content):
    drains.write(path, (Drain(ONE),))
    assert drains.damage(path) == ""
    path.write_bytes(content)
    assert drains.read(path) == (Drain(ONE),)
    assert "its copy counts, with 1 drains" in drains.damage(path)
    assert change(path, lambda before: (*before, Drain(TWO))) == (Drain(ONE), Drain(TWO))
    assert drains.damage(path) == ""
    path.unlink()
    assert drains.read(path) == ()  # which ends all of them


def test_a_file_that_others_may_write_is_not_obeyed(path):
    drains.write(path, ())
    path.chmod(0o666)
    with pytest.raises(FilesError):
        drains.read(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.2.0.1", (ONE, None)), ("10.2.0.1:80", (ONE, 80)), ("2001:db8::2", (TWO, None)),
        ("[2001:db8::2]:443", (TWO, 443)), ("10.2.0.1:0", None), ("10.2.0.1:70000", None), ("web1", None), ("", None),
        ("10.2.0.1:８０", None),
    ],
)  # fmt: skip
def test_endpoints_are_named_by_address_and_port(text, expected):
    assert parsed(text) == expected


def test_a_drain_can_be_ended_although_its_endpoint_has_left_the_node(tmp_path):
    kernel = FakeKernel()
    with pytest.raises(UsageError):
        chosen(kernel, tmp_path, "10.2.0.1")
    drained = [Drain(ONE, None, "web")]
    assert chosen(kernel, tmp_path, "10.2.0.1", drained) == [Place(ONE, None, None)]
    assert chosen(kernel, tmp_path, "web/10.2.0.1", drained) == [Place(ONE, None, "web")]
    with pytest.raises(UsageError):
        chosen(kernel, tmp_path, "mail/10.2.0.1", drained)


def test_a_place_without_a_port_is_about_every_port():
    assert Place(ONE, None, None).is_about("web", "10.2.0.1:80")
    assert Place(ONE, 80, "web").is_about("web", "10.2.0.1:80")
    assert not Place(ONE, 80, "web").is_about("mail", "10.2.0.1:80")
    assert not Place(ONE, 80, None).is_about("web", "10.2.0.1:81")
    assert not Place(ONE, None, None).is_about("web", "10.2.0.1:80 (row 7)")
