# SPDX-License-Identifier: Apache-2.0
"""The structure of the house: rooms in an order, imports downhill only, and few doors to the outside."""

import ast
import struct
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from reconciler.kernel import rtnetlink
from reconciler.kinds import KINDS

PACKAGE = Path(__file__).parents[1] / "reconciler"

ROOMS = """
    version errors layered versions safe progress files limits paths clock children resource target standing
    private lock notes dataplane model telling peers view support
    config
    kernel
    health wish
    remembered connections loads served ports ring_store ring_names kinds
    compile ways concerns readings plan live record snapshot
    aim apply reconcile history
    explain diff importers render
    doctor
    agent lab docs
    cli
"""
"""From the ground up: a room may use those before it. A new one finds its place here first."""

DOORS = {"bcc": {"kernel"}, "pyroute2": set(), "scapy": set(), "watchdog": {"agent"}, "jinja2": {"config", "render"}}
"""Libraries, and the only rooms that may import them."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module):
    return module.split(".")[1]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports say where they lead from the top"
            if node.module == "reconciler":
                yield from (f"reconciler.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downhill_and_libraries_have_their_doors(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    order = ROOMS.split()
    if room == "__init__":
        return
    assert room in order, f"say in ROOMS where {room} stands"
    for module in imports(path):
        if module.startswith("reconciler."):
            used = room_of(module)
            assert order.index(used) <= order.index(room), f"{path}: {room} may not use {used}"
        library = module.partition(".")[0]
        assert room in DOORS.get(library, {room}), f"{path}: {library} is imported elsewhere only"


def test_no_modules_import_each_other_in_a_circle():
    """Not even in a function: who reads one of them has to read all."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    used = {name: {each for each in imports(path) if each in names} for name, path in names.items()}
    TopologicalSorter(used).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rows_of_maps_are_packed_and_read_as_named_types_only(path):
    """Who takes a row apart by position is not found when the row gets another field."""
    if path.parent.name != "dataplane":
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "struct" in ast.dump(node.func):
                formats = [part.attr for argument in node.args for part in ast.walk(argument)
                           if isinstance(part, ast.Attribute)]  # fmt: skip
                assert not {"key", "value", "inner"} & set(formats), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layouts_of_rtnetlink_are_written_down_once(path):
    if path.name != "rtnetlink.py":
        layouts = {layout.format for layout in vars(rtnetlink).values() if isinstance(layout, struct.Struct)}
        text = path.read_text(encoding="utf-8")
        assert not [layout for layout in layouts - {"=I"} if f'Struct("{layout}")' in text]


def test_pyroute2_has_one_door():
    """Which opens when it is first needed: no statement imports the library, as DOORS has it."""
    assert [path.name for path in MODULES if '"pyroute2' in path.read_text(encoding="utf-8")] == ["codec.py"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.resource.kind)
def test_the_text_of_a_resource_has_only_what_makes_two_of_them_differ(kind):
    """Fingerprints are made of it, and one that changed with nothing to do would make drift look like an edit."""
    assert [f.name for f in fields(kind.resource) if f.repr and not f.compare] == []


def test_every_room_is_there():
    assert {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__")} == set(ROOMS.split())
