# SPDX-License-Identifier: Apache-2.0
"""What was applied is written down; a small round adds a line."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from reconciler import record
from reconciler.apply import Result
from reconciler.errors import ApplyError, BlockedError, KernelError, PartialError
from reconciler.plan import fingerprint
from reconciler.resource import Desired, Key, Resource
from reconciler.safe import SHOWN


@dataclass(frozen=True, slots=True)
class Thing(Resource):
    kind: ClassVar[str] = "vip"

    name: str
    value: int = 0

    @property
    def id(self):
        return self.name


def desired(**values):
    things = [Thing(name, value) for name, value in values.items()]
    return Desired({thing.key: thing for thing in things})


def prints(state):
    return {key: fingerprint(thing) for key, thing in state.resources.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "applied.json"


def test_lines_that_are_added_count_for_more_than_those_before_them(path):
    record.save(path, desired(a=1, b=1, c=1), {}, ())
    record.add(path, desired(a=2, b=1), [Thing("a").key, Thing("c").key])
    record.add(path, desired(a=3, b=1, d=1), [Thing("a").key, Thing("d").key])
    assert dict(record.load(path)) == prints(desired(a=3, b=1, d=1))
    record.save(path, desired(a=1), record.load(path), ())
    assert dict(record.load(path)) == prints(desired(a=1))


def test_a_round_that_was_cut_off_costs_its_own_line_alone(path):
    record.save(path, desired(a=1), {}, ())
    record.add(path, desired(a=2, b=2), [Thing("b").key])
    path.write_bytes(path.read_bytes()[:-9])
    record.add(path, desired(a=2, c=2), [Thing("c").key])
    assert dict(record.load(path)) == prints(desired(a=1, c=2))


def test_a_line_is_added_to_a_file_that_was_lost(path):
    record.add(path, desired(a=1), [Thing("a").key])
    assert dict(record.load(path)) == prints(desired(a=1))


def test_a_file_that_grew_too_long_is_written_anew(path, monkeypatch):
    record.save(path, desired(a=1), {}, ())
    monkeypatch.setattr(record, "MAX_BYTES", 200)
    for value in range(20):
        record.add(path, desired(a=value), [Thing("a").key])
        assert dict(record.load(path)) == prints(desired(a=value))
    assert path.stat().st_size <= 300


def test_a_file_is_read_only_if_somebody_asks(path, monkeypatch):
    found = record.load(path)
    monkeypatch.setattr(record, "_load", lambda path: {Thing("a").key: "x"})
    assert found[Thing("a").key] == "x"


@pytest.mark.parametrize(
    ("field", "error"), [("failed", ApplyError), ("blocked", BlockedError), ("skipped", PartialError)]
)
def test_an_error_names_some_objects_and_a_number(field, error):
    many = {Key("service", f"{i:05}"): KernelError("no") if field == "failed" else "no" for i in range(10_000)}
    with pytest.raises(error) as caught:
        Result(**{field: many}).raise_if_failed()
    assert str(caught.value).count("service ") == SHOWN
    assert "and 9,980 more" in str(caught.value)
