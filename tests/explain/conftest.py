# SPDX-License-Identifier: Apache-2.0
"""The node of tests/packets, with its program on both interfaces, and `lbctl explain` as users call it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.main import main
from reconciler.dataplane import program
from reconciler.dataplane.layout import ENDPOINT_COUNTERS, MAPS, REMEMBERED, MapType
from reconciler.kernel import bpf
from reconciler.kernel.instance import Instance
from reconciler.kernel.real import RealKernel
from reconciler.kernel.trial import Outcome, Trial, trial
from tests.packets.balancer import FEATURES, NODE_MACS, Balancer, inside, namespace

Explain = Callable[..., Any]
Snapshot = dict[str, object]


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lbx-run")


@pytest.fixture(scope="session")
def loaded(run_dir: Path) -> Iterator[Balancer]:
    name = f"lbx-{os.getpid()}"
    kernel = RealKernel(name, run_dir)
    try:
        kernel.load_program(program.program_name(FEATURES), FEATURES)
        handle = kernel.loaded_program()
        assert handle
        descriptor = bpf.open_program(handle.id)
        assert descriptor
        with bpf.closing(descriptor), namespace(name):
            with inside(name):
                for interface in NODE_MACS:
                    kernel.attach(interface, "native", None)
            yield Balancer(kernel, descriptor, name)
    finally:
        kernel.unload_program()
        kernel.remove_instance()


@pytest.fixture
def balancer(loaded: Balancer) -> Iterator[Balancer]:
    yield loaded
    loaded.clear()
    for spec in (REMEMBERED, ENDPOINT_COUNTERS):
        loaded.kernel.delete(spec.name, [key for key, _ in loaded.kernel.dump(spec.name)])


@pytest.fixture
def explain(balancer: Balancer, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Explain:
    """Call the verb. Returns what it prints, or with `json=True` what it says to machines."""

    def call(*words: object, code: int = 0, as_json: bool = False) -> Any:
        format_ = ["--format", "json"] if as_json else []
        where = ["--run-dir", str(run_dir), "--instance", balancer.netns]
        with inside(balancer.netns):
            assert main([*where, "explain", *map(str, words), *format_]) == code
        output = capsys.readouterr()
        if code:
            return output.err
        assert output.err == ""
        return json.loads(output.out)["explanations"] if as_json else output.out

    return call


@pytest.fixture(scope="session")
def session_trial(loaded: Balancer, run_dir: Path) -> Iterator[Trial]:
    with trial(Instance(loaded.netns, run_dir)) as made:
        yield made


class Tried:
    """Trials of the loaded program, in its namespace."""

    def __init__(self, balancer: Balancer, made: Trial) -> None:
        self._balancer, self.trial = balancer, made

    def all(self, *frames: bytes, interface: str = "front") -> list[Outcome]:
        with inside(self._balancer.netns):
            return self.trial.run(frames, self._balancer._ifindex[interface])

    def one(self, frame: bytes, interface: str = "front") -> Outcome:
        (outcome,) = self.all(frame, interface=interface)
        return outcome


@pytest.fixture
def tried(balancer: Balancer, session_trial: Trial) -> Tried:
    return Tried(balancer, session_trial)


def snapshot(balancer: Balancer) -> Snapshot:
    """All that every map of the instance holds."""
    held: Snapshot = {}
    for spec in MAPS.values():
        rows = balancer.kernel.dump(spec.name)
        held[spec.name] = sorted(rows)
        if spec.type == MapType.ARRAY_OF_MAPS:
            indexes = [int.from_bytes(key, sys.byteorder) for key, _ in rows]
            chunks = {index: balancer.kernel.chunk(spec.name, index) for index in indexes}
            held |= {f"{spec.name} {index}": words.tobytes() for index, words in chunks.items() if words is not None}
    return held
