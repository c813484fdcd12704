# SPDX-License-Identifier: Apache-2.0
"""The description of maps is read as it was written, and rows of one layout become rows of another by their fields."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.dataplane import convert, description
from reconciler.dataplane.chunks import Place
from reconciler.dataplane.convert import converter, dtype_of, fields_converted
from reconciler.dataplane.description import Description, MapDescription, describe, layout_digest, read, written
from reconciler.dataplane.layout import MAPS, MapType
from reconciler.errors import KernelError

OURS = Description("cafe", ("NAT",), {n: describe(s) for n, s in MAPS.items()}, {"services": 7}, (1, 2, 3))


def test_a_description_is_read_as_it_was_written():
    assert read(written(OURS)) == OURS
    assert read(written(OURS) + bytes(5)) == OURS


def test_capacities_do_not_change_the_layout_and_fields_do():
    spec = MAPS["services"]
    layout = layout_digest({"services": describe(spec)})
    assert layout_digest({"services": describe(spec, 12)}) == layout
    narrower = MapDescription(spec.type, spec.flags, 1, tuple(spec.key.fields), tuple(spec.value.fields[1:]))
    assert layout_digest({"services": narrower}) != layout


def test_a_newer_layout_is_refused_with_the_way_out(monkeypatch):
    text = written(OURS)
    monkeypatch.setattr(description, "LAYOUT_VERSION", 0)
    with pytest.raises(KernelError, match="a newer version of lbctl runs this node") as caught:
        read(text)
    assert "nothing was changed" in caught.value.hint
    assert description.lineage(text) == "cafe"


def test_a_newer_layout_is_refused_even_if_nothing_else_of_it_is_known():
    with pytest.raises(KernelError, match="newer version"):
        read(b'{"version": 9, "lineage": "x"}')


@given(st.binary(max_size=40) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["version", "maps", "ids", "sizes", "lineage", "features"]), inner)
).map(lambda data: json.dumps(data).encode()))  # fmt: skip
def test_what_is_no_description_is_an_error_that_says_so(content):
    with pytest.raises(KernelError, match=r"can't be read|newer version"):
        read(content)


def converted(old, new, values, default=b""):
    rows = np.array(values, dtype_of(old))
    return np.frombuffer(fields_converted("m", old, new, default, rows.tobytes()), dtype_of(new))


OLD = (("address", "V4"), ("port", ">u2"), ("state", "u1"), ("pad", "u1"))
NEW = (("state", "u2"), ("address", "V16"), ("timeout", "u4"), ("port", ">u2"), ("pad", "V2"))


def test_common_fields_are_carried_over_wherever_they_are_and_new_ones_have_their_default():
    default = np.array([(0, bytes(16), 30, 0, bytes(2))], np.dtype([(n, f) for n, f in NEW])).tobytes()
    (row,) = converted(OLD, NEW, [([10, 0, 0, 1], 80, 3, 99)], default)
    assert row["state"] == 3
    assert bytes(row["address"]) == bytes([10, 0, 0, 1]) + bytes(12)
    assert row["timeout"] == 30
    assert row["port"] == 80
    assert not row["pad"].any()


@given(st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 65_535), st.integers(0, 255)), max_size=9))
def test_to_a_wider_layout_and_back_nothing_is_lost(rows):
    values = [(list(address), port, state, 0) for address, port, state in rows]
    wider = converted(OLD, NEW, values)
    back = fields_converted("m", NEW, OLD, b"", wider.tobytes())
    assert back == np.array(values, dtype_of(OLD)).tobytes()


@pytest.mark.parametrize(("value", "what"), [((300, [0] * 16, 0, 80, [0, 0]), "state"),
                                             ((1, [0] * 15 + [1], 0, 80, [0, 0]), "address")])  # fmt: skip
def test_what_does_not_fit_is_named_and_never_cut_off(value, what):
    with pytest.raises(KernelError, match=f"map m: 1 rows have a {what}"):
        converted(NEW, OLD, [value, (1, [1] * 4 + [0] * 12, 0, 1, [0, 0])])


def test_rows_whose_meaning_is_newer_are_refused():
    ahead = replace(OURS.maps["services"], meaning=2)
    with pytest.raises(KernelError, match="not what the rows of map services mean"):
        read(written(replace(OURS, maps={**OURS.maps, "services": ahead})))


def test_a_rule_of_its_own_leads_from_one_meaning_to_another(monkeypatch):
    old = describe(MAPS["services"])
    monkeypatch.setitem(convert.RULES, ("services", 1, 2), lambda old, new: lambda rows: (rows[0], b"new"))
    assert converter("services", old, replace(old, meaning=2))((b"key", b"old")) == (b"key", b"new")


def test_heads_of_rings_from_before_there_were_forms_of_slots_lead_where_they_led():
    new = describe(MAPS["rings"])
    head = Place(3, 1_000, 4_096, True).head.to_bytes(8, "little")
    assert converter("rings", replace(new, meaning=1), new)((bytes(4), head)) == (bytes(4), head)
    assert head == ((3 << 48) | (1_000 << 32) | (1 << 31) | 4_096).to_bytes(8, "little")


@pytest.mark.parametrize("change", [{"meaning": 2}, {"type": MapType.PERCPU_ARRAY}])
def test_another_meaning_and_another_kind_of_map_need_a_rule_of_their_own(change):
    old = describe(MAPS["services"])
    new = MapDescription(**{f: getattr(old, f) for f in MapDescription.__slots__} | change)
    with pytest.raises(KernelError, match="map services: no way is known"):
        converter("services", old, new)
