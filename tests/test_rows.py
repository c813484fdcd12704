# SPDX-License-Identifier: Apache-2.0
"""Rows of maps: one declaration packs, reads, scans and describes them."""

import json
import random
import struct
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dataplane.layout import MAPS, SERVICES, SERVICES6, VIPS6
from reconciler.dataplane.row import U8, U16, U32, Port, RowType, dtype_of
from reconciler.dataplane.rows import Address, Service, ServiceKey

TYPES = {f"{spec.name} {part}": row for spec in MAPS.values() for part in ("key", "value", "inner")
         if (row := getattr(spec, part)) is not None}  # fmt: skip


class Sample(NamedTuple):
    port: Port
    many: U32
    weight: U16 = 100
    pad: U8 = 0


SAMPLE = RowType(Sample)


@pytest.mark.parametrize("name", TYPES)
@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_every_row_comes_back_from_its_bytes_and_its_bytes_from_the_row(name, seed):
    row = TYPES[name]
    content = random.Random(seed).randbytes(row.size)
    assert row.pack(row.unpack(content)) == content


@pytest.mark.parametrize("name", TYPES)
@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_scan_of_many_rows_sees_what_each_row_says(name, seed):
    row = TYPES[name]
    content = random.Random(seed).randbytes(3 * row.size)
    scanned = row.array(content)
    for place in range(3):
        one = row.unpack(content[place * row.size : (place + 1) * row.size])._asdict()
        for field, form in row.fields:
            assert scanned[field][place : place + 1].tobytes() == (
                one[field] if isinstance(one[field], bytes) else np.array(one[field], form).tobytes()
            )


def test_numbers_of_packets_are_in_network_byte_order_and_all_others_in_that_of_the_host():
    content = SAMPLE.pack(Sample(0x1234, 5, 6, 7))
    assert content == b"\x12\x34" + struct.pack("=IHB", 5, 6, 7)
    assert SAMPLE.unpack(content) == Sample(0x1234, 5, 6, 7)


def test_a_number_that_does_not_fit_is_an_error():
    for row in (Sample(65_536, 0), Sample(-1, 0), Sample(0, 1 << 32)):
        with pytest.raises((struct.error, OverflowError)):
            SAMPLE.pack(row)


def test_what_is_no_row_is_an_error():
    with pytest.raises(struct.error):
        SAMPLE.unpack(bytes(SAMPLE.size - 1))


def test_a_field_that_nobody_gave_a_value_has_its_default_or_zeros():
    assert SAMPLE.default == Sample(0, 0, 100, 0)
    assert SERVICES.value.default == Service(0, 0, 0, 0, 0)


def test_a_description_survives_being_written_down():
    told = json.loads(json.dumps(SAMPLE.describe()))
    assert told == [["port", ">u2"], ["many", "u4"], ["weight", "u2"], ["pad", "u1"]]
    assert dtype_of(told) == SAMPLE.dtype


@pytest.mark.parametrize("name", TYPES)
def test_every_description_leads_back_to_the_same_rows(name):
    assert dtype_of(json.loads(json.dumps(TYPES[name].describe()))) == TYPES[name].dtype


def test_rows_of_ipv6_differ_in_the_length_of_addresses_alone():
    assert dict(SERVICES6.key.describe()) == dict(SERVICES.key.describe()) | {"vip": "V16"}
    assert SERVICES6.key.pack(ServiceKey(bytes(range(16)), 80, 6)) == bytes(range(16)) + b"\0P\6\0"
    assert VIPS6.key.unpack(b"\1" * 16) == Address(b"\1" * 16)


def test_rows_are_split_as_they_were_joined():
    parts = [SAMPLE.pack(Sample(port, port)) for port in (1, 2, 3)]
    assert SAMPLE.split(b"".join(parts)) == parts
