# SPDX-License-Identifier: Apache-2.0
"""The states in a file: what is written in place is read whole, by others, also while it is being written."""

import threading
from ipaddress import ip_address

import pytest

from reconciler.errors import FilesError
from reconciler.health import roster, store
from reconciler.health.state import Health, State
from reconciler.health.store import ENTRY_BYTES, Progress, Store, clocks
from reconciler.health.target import asked
from reconciler.model import CheckType, Endpoint, HealthCheck, Pool, Protocol, Service

KEYS = [bytes([number]) * 16 for number in range(1, 200)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "health"


def test_what_was_written_is_read(path):
    now = clocks()
    writer = Store(path, [(KEYS[0], State(Health.UP, now.now_s - 5))])
    writer.put(KEYS[1], State(Health.DOWN, now.now_s - 1, error="refused"), now.now_s + 2, now)
    writer.tell(Progress(7, now.now_s, now.now_s + 4, 2, 1, 0.002, 9), now)
    found = store.read(path)
    assert found.entries[KEYS[0]].state.health is Health.UP
    assert found.entries[KEYS[1]].state.error == "refused"
    assert found.entries[KEYS[1]].next_s == pytest.approx(now.now_s + 2, abs=0.1)
    assert (found.progress.pid, found.progress.targets, found.progress.checks) == (7, 2, 9)
    assert found.progress.suspect_until_s == pytest.approx(now.now_s + 4, abs=0.1)
    writer.drop([KEYS[0], b"\7" * 16])
    assert store.read(path).entries.keys() == {KEYS[1]}
    writer.close()


def test_it_grows_and_uses_room_again(path):
    writer, now = Store(path), clocks()
    for key in KEYS:
        writer.put(key, State(Health.UP), None, now)
    size = path.stat().st_size
    writer.drop(KEYS[:100])
    for key in KEYS[:100]:
        writer.put(key, State(Health.DOWN), None, now)
    assert path.stat().st_size == size
    assert len(store.read(path).entries) == len(KEYS)
    writer.close()


def test_a_reader_never_sees_half_a_state(path):
    writer, ends = Store(path, [(KEYS[0], State(Health.UP, error="u" * 90))]), threading.Event()

    def write():
        while not ends.is_set():
            for state in (State(Health.DOWN, error="d" * 90), State(Health.UP, error="u" * 90)):
                writer.put(KEYS[0], state, None, clocks())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(300):
            (entry,) = store.read(path).entries.values()
            assert entry.state.error == {Health.UP: "u", Health.DOWN: "d"}[entry.state.health] * 90
    finally:
        ends.set()
        thread.join()
        writer.close()


@pytest.mark.parametrize("content", [b"", b"x" * 500, b"lbctlH01" + b"\0" * 300])
def test_what_is_no_such_file_counts_as_none(path, content):
    Store(path).close()
    path.write_bytes(content)
    assert store.read(path).entries == {}


def test_damage_is_left_out_and_the_rest_is_read(path):
    Store(path, [(key, State(Health.UP)) for key in KEYS[:3]]).close()
    data = bytearray(path.read_bytes())
    data[64 + ENTRY_BYTES + 20] ^= 0xFF
    path.write_bytes(data)
    assert store.read(path).entries.keys() == {KEYS[0], KEYS[2]}


def test_a_file_that_others_may_write_is_not_obeyed(path):
    Store(path).close()
    path.chmod(0o666)
    with pytest.raises(FilesError):
        store.read(path)


def line_of(pool):
    service = Service("web", (ip_address("20.20.20.1"),), Protocol.TCP, (80,), pool.name)
    return pool, ("web",), asked(pool, (service,))


def pool_of(name, count=2):
    endpoints = tuple(Endpoint(ip_address(f"10.2.0.{i}"), 8080) for i in range(count))
    return Pool(name, endpoints, HealthCheck(CheckType.TCP))


def test_the_roster_follows_edits_and_survives_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "run" / "checks.jsonl"
    lines = {name: line_of(pool_of(name)) for name in ("red", "blue", "green", "white")}
    writer = roster.Roster(path)
    writer.write(lines, lines)
    edited = lines | {"red": line_of(pool_of("red", 3))}
    del edited["blue"]
    writer.write({"red": edited["red"]}, edited)
    writer.write({"blue": None}, edited)
    with path.open("ab") as file:
        file.write(b'{"pool": "green", "che')
    found = roster.read(path)
    assert found.keys() == {"red", "green", "white"}
    assert len(found["red"].endpoints) == 3
    use, digest = found["green"].endpoints[1].targets[0]
    (expected,) = lines["green"][2][1]
    assert (use, digest) == (expected[0], expected[1].digest)
