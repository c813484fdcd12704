# SPDX-License-Identifier: Apache-2.0
"""Maps, rings and the program of an instance, with the real data plane."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from reconciler.dataplane import rows
from reconciler.dataplane.layout import (
    CHUNK_IDS,
    CHUNK_LINES,
    CONNECTIONS,
    ENDPOINT_COUNTERS,
    ENDPOINTS,
    MAPS,
    RING_CHUNKS,
    RING_NAMES,
    RINGS,
    SERVICES,
    VIPS,
)
from reconciler.dataplane.program import program_name
from reconciler.errors import BuildError, KernelError, UsageError
from reconciler.kernel import bpf, cpus, holders
from reconciler.kernel.real import RealKernel

pytestmark = pytest.mark.kernel

NAT = ("NAT",)
NAME = program_name(NAT)


def loaded(kernel: RealKernel) -> RealKernel:
    kernel.load_program(NAME, NAT)
    return kernel


def bpf_mounts(run_dir: Path) -> int:
    return sum(str(run_dir) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def in_another_process(run_dir: Path, expression: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Evaluate an expression about `kernel`, another RealKernel of the same instance; it prints the value."""
    script = (
        "from pathlib import Path; from reconciler.kernel.real import RealKernel; "
        f"kernel = RealKernel('lbk', Path({str(run_dir)!r})); print({expression})"
    )
    command = [*prefix, sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


# --- an instance that holds nothing --------------------------------------------------------------------


def test_a_node_without_a_data_plane_reads_as_empty_and_nothing_is_made(kernel: RealKernel, run_dir: Path) -> None:
    assert [kernel.dump(name) for name in MAPS] == [[]] * len(MAPS)
    assert kernel.loaded_program() is None
    assert kernel.words(RINGS.name) is None
    assert kernel.chunk(RING_CHUNKS.name, 1) is None
    assert kernel.delete(VIPS.name, [bytes(4)]) == [None]
    kernel.remove_chunks(RING_CHUNKS.name, [1])
    kernel.wait_for_programs(RING_CHUNKS.name)
    kernel.unload_program()
    kernel.remove_instance()
    assert list(run_dir.iterdir()) == []


def test_writing_without_a_data_plane_says_what_is_missing(kernel: RealKernel) -> None:
    (outcome,) = kernel.update(VIPS.name, [(bytes(4), bytes(4))])
    assert isinstance(outcome, KernelError)
    assert "no program is loaded" in outcome.message
    with pytest.raises(KernelError, match="no program is loaded"):
        kernel.add_chunk(RING_CHUNKS.name, 1)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-x", "x y"])
def test_a_name_that_would_leave_the_run_directory_is_refused(run_dir: Path, name: str) -> None:
    with pytest.raises(UsageError):
        RealKernel(name, run_dir)


# --- the program ---------------------------------------------------------------------------------------


def test_loading_makes_the_maps_of_the_layout_and_unloading_leaves_nothing(kernel: RealKernel, run_dir: Path) -> None:
    loaded(kernel)
    program = kernel.loaded_program()
    assert program is not None
    assert program.name == NAME
    pins = {path.name for path in (run_dir / "lbk/bpf").iterdir() if "." not in path.name}
    assert pins == {f"other-{program.id}", f"stages-{program.id}", "program"}
    assert {name for name in MAPS if kernel.capacity(name)} == {n for n, spec in MAPS.items() if spec.is_used(NAT)}
    kernel.unload_program()
    assert kernel.loaded_program() is None
    assert bpf.open_program(program.id) is None, "the program is still held"
    assert kernel.dump(VIPS.name) == []
    kernel.remove_instance()
    assert list(run_dir.iterdir()) == []
    assert bpf_mounts(run_dir) == 0


def test_maps_of_a_feature_are_made_only_with_it(kernel: RealKernel) -> None:
    kernel.load_program(program_name(()), ())
    (outcome,) = kernel.update(CONNECTIONS.name, [(bytes(CONNECTIONS.key_size), bytes(CONNECTIONS.value_size))])
    assert isinstance(outcome, KernelError)
    loaded(kernel)
    assert kernel.update(CONNECTIONS.name, [(bytes(CONNECTIONS.key_size), bytes(CONNECTIONS.value_size))]) == [None]


def test_another_program_takes_over_the_maps_with_their_rows(kernel: RealKernel) -> None:
    kernel.load_program(program_name(()), ())
    first = kernel.loaded_program()
    row = VIPS.pack(rows.Address(b"\x14\x14\x14\x01"), rows.Vip(1, 0))
    assert kernel.update(VIPS.name, [row]) == [None]
    loaded(kernel)
    second = kernel.loaded_program()
    assert first is not None and second is not None
    assert (first.name, second.name) == (program_name(()), NAME)
    assert kernel.dump(VIPS.name) == [row]


def test_a_program_that_does_not_compile_leaves_no_pins_and_the_former_program(
    kernel: RealKernel, run_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "src"
    broken.mkdir()
    (broken / "balancer.c").write_text("int lbctl_balance(struct xdp_md *ctx) { return nonsense; }")
    other = RealKernel("lbk", run_dir, broken)
    with pytest.raises(BuildError, match="undeclared identifier 'nonsense'"):
        other.load_program("lbctl_x", ())
    assert not (run_dir / "lbk").exists()
    loaded(kernel)
    with pytest.raises(BuildError):
        other.load_program("lbctl_x", ())
    assert kernel.loaded_program() is not None


def test_a_program_that_the_verifier_refuses_leaves_no_pins(run_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "balancer.c").write_text(
        "int lbctl_balance(struct xdp_md *ctx) { void *data = (void *)(long)ctx->data; return *(u32 *)data; }"
    )
    kernel = RealKernel("lbk", run_dir, source)
    with pytest.raises(BuildError, match="invalid access to packet"):
        kernel.load_program("lbctl_x", ())
    assert [path for path in (run_dir / "lbk/bpf").iterdir() if "." not in path.name] == []


def test_a_source_whose_maps_differ_from_the_layout_is_refused(run_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "balancer.c").write_text(
        "BPF_HASH(vips, u64, u32, 1);\n"
        "int lbctl_balance(struct xdp_md *ctx) { u64 key = 1; return vips.lookup(&key) ? XDP_DROP : XDP_PASS; }"
    )
    with pytest.raises(BuildError, match="declares map vips as HASH, keys of 8 bytes") as caught:
        RealKernel("lbk", run_dir, source).load_program("lbctl_x", ())
    assert "keys of 4 bytes" in caught.value.message


# --- maps ----------------------------------------------------------------------------------------------


def test_rows_come_back_from_every_type_of_map(kernel: RealKernel) -> None:
    loaded(kernel)
    service = (b"\x14\x14\x14\x01\x00\x50\x06\x00", SERVICES.value.pack(rows.Service(1, 2, 8080, 1, 1)))
    endpoint = ENDPOINTS.pack(rows.Number(131_071), rows.Endpoint(b"\x0a\x02\x00\x01", 0, 1))
    ring_name = (b"web/round-robin".ljust(128, b"\0"), b"\1".ljust(24, b"\0"))
    for spec, row in ((SERVICES, service), (ENDPOINTS, endpoint), (RING_NAMES, ring_name)):
        assert kernel.update(spec.name, [row]) == [None]
        assert kernel.dump(spec.name) == [row]
        assert kernel.delete(spec.name, [row[0], row[0]]) == [None, None]
        assert kernel.dump(spec.name) == []


def test_per_cpu_counters_read_as_the_values_of_all_cpus_and_are_reset_by_deleting(kernel: RealKernel) -> None:
    loaded(kernel)
    value = b"".join(struct.pack("=5Q24s", cpu, 1, 2, 3, 4, b"") for cpu in range(cpus.numbered_cpus()))
    key = struct.pack("=I", 70_000)
    assert kernel.update(ENDPOINT_COUNTERS.name, [(key, value)]) == [None]
    assert kernel.dump(ENDPOINT_COUNTERS.name) == [(key, value)]
    assert kernel.delete(ENDPOINT_COUNTERS.name, [key]) == [None]
    assert kernel.dump(ENDPOINT_COUNTERS.name) == []


def test_a_full_map_says_which_and_how_many_and_the_rest_is_written(kernel: RealKernel) -> None:
    loaded(kernel)
    capacity = VIPS.capacity
    drop, pass_ = VIPS.value.pack(rows.Vip(0, 0)), VIPS.value.pack(rows.Vip(1, 0))
    full = [(struct.pack("=I", n), drop) for n in range(capacity + 2)]
    outcomes = kernel.update(VIPS.name, [*full, (full[0][0], pass_)])
    assert outcomes[:capacity] == [None] * capacity
    assert [str(outcome) for outcome in outcomes[capacity : capacity + 2]] == [
        "map vips is full: it has room for 16,384 rows"
    ] * 2
    assert outcomes[-1] is None
    assert dict(kernel.dump(VIPS.name)) == dict(full[:capacity]) | {full[0][0]: pass_}


def test_a_row_beyond_an_array_is_an_error_of_that_row(kernel: RealKernel) -> None:
    loaded(kernel)
    value = ENDPOINTS.value.pack(rows.Endpoint(b"\x0a\x02\x00\x01", 0, 1))
    outcomes = kernel.update(ENDPOINTS.name, [(struct.pack("=I", n), value) for n in (1, ENDPOINTS.capacity, 2)])
    assert [outcome and str(outcome) for outcome in outcomes] == [
        None, "map endpoints has no such row: it has 131,072", None,
    ]  # fmt: skip
    assert len(kernel.dump(ENDPOINTS.name)) == 2


def test_another_process_sees_the_same(kernel: RealKernel, run_dir: Path) -> None:
    loaded(kernel)
    kernel.update(VIPS.name, [VIPS.pack(rows.Address(b"\x14\x14\x14\x01"), rows.Vip(1, 0))])
    kernel.add_chunk(RING_CHUNKS.name, 7)[5] = 9
    expression = "(kernel.loaded_program(), kernel.dump('vips'), kernel.chunk('ring_chunks', 7).tobytes()[:50])"
    done = in_another_process(run_dir, expression)
    assert done.stderr == ""
    assert done.stdout.strip() == repr(eval(expression))


def test_two_processes_that_load_at_once_mount_and_make_one_set(kernel: RealKernel, run_dir: Path) -> None:
    RealKernel("warm-up", run_dir).load_program(NAME, NAT)  # so that nothing has to be compiled below
    script = (
        "from pathlib import Path; from reconciler.kernel.real import RealKernel; "
        f"RealKernel('lbk', Path({str(run_dir)!r})).load_program({NAME!r}, ['NAT'])"
    )
    with kernel._instance.locked():
        children = [
            subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        for child in children:
            wait_until_waiting(child.pid, kernel._instance.directory)
    assert [child.communicate(timeout=60)[1] for child in children] == ["", ""]
    assert bpf_mounts(run_dir / "lbk") == 1
    program = kernel.loaded_program()
    assert program is not None
    with bpf.closing(bpf.open_program(program.id) or -1) as fd:
        used = set(bpf.program_info(fd).map_ids)
    pinned = set()
    for name in MAPS:
        with kernel._map(name) as opened:
            assert (opened is not None) == MAPS[name].is_used(NAT)
            if opened:
                pinned.add(opened.id)
    assert len(used - pinned) == 1, "the pinned program works on other maps than those that are described"


def opened_by(pid: int) -> set[str]:
    """What a process has open; it may close each of them meanwhile."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(path.readlink()))
    return found


def wait_until_waiting(pid: int, directory: Path) -> None:
    """Wait until a process has opened the directory, whose lock is the next that it wants."""
    give_up = time.monotonic() + 60
    while str(directory) not in opened_by(pid):
        assert time.monotonic() < give_up, "it never came to the lock"
        time.sleep(0.005)



# --- memory that programs and processes share ------------------------------------------------------------


def test_chunks_are_made_found_again_and_removed(kernel: RealKernel) -> None:
    loaded(kernel)
    name = RING_CHUNKS.name
    assert kernel.dump(name) == []
    made = kernel.add_chunk(name, 1)
    assert made.size == 8 * CHUNK_LINES
    made[[0, -1]] = 5, 2**64 - 1
    kernel.add_chunk(name, RING_CHUNKS.capacity - 1)
    assert [struct.unpack("=I", key)[0] for key, _ in kernel.dump(name)] == [1, RING_CHUNKS.capacity - 1]
    found = kernel.chunk(name, 1)
    assert found is not None
    assert found[[0, 1, -1]].tolist() == [5, 0, 2**64 - 1]
    found[1] = 6
    assert made[1] == 6
    kernel.wait_for_programs(name)
    with kernel._inner(name, 1) as opened:
        assert opened is not None
        former = opened.id
    for _ in range(2):
        kernel.remove_chunks(name, [1])
    assert kernel.chunk(name, 1) is None
    assert made[1] == 6, "who has a chunk keeps it"
    del made, found
    assert gone(former)


def test_there_is_no_chunk_beyond_the_last(kernel: RealKernel) -> None:
    loaded(kernel)
    with pytest.raises(KernelError):
        kernel.add_chunk(RING_CHUNKS.name, RING_CHUNKS.capacity)


def test_a_chunk_whose_number_was_overwritten_is_found_all_the_same(kernel: RealKernel) -> None:
    loaded(kernel)
    kernel.add_chunk(RING_CHUNKS.name, 1)[0] = 7
    program = holders.pinned_program(kernel._instance)
    assert program
    for wrong in (2**32 - 1, program.map_ids[0]):
        assert kernel.update(CHUNK_IDS.name, [(struct.pack("=I", 1), struct.pack("=I", wrong))]) == [None]
        found = kernel.chunk(RING_CHUNKS.name, 1)
        assert found is not None
        assert found[0] == 7


def gone(map_id: int) -> bool:
    """Whether the kernel frees a map, which it does some time after the last use."""
    give_up = time.monotonic() + 60
    while (fd := bpf.open_map(map_id)) is not None:
        os.close(fd)
        if time.monotonic() > give_up:
            return False
        time.sleep(0.001)
    return True


# --- where it is mounted -------------------------------------------------------------------------------


def test_within_ip_netns_exec_nothing_is_pinned_and_the_way_out_is_said(run_dir: Path, namespace: str) -> None:
    done = in_another_process(run_dir, f"kernel.load_program({NAME!r}, ['NAT'])", "ip", "netns", "exec", namespace)
    assert done.returncode == 1
    assert f"within `ip netns exec {namespace}` nothing can be pinned" in done.stderr
    assert f"lbctl --netns {namespace}" in done.stderr
    assert list(run_dir.iterdir()) == []


def test_an_instance_that_holds_something_is_not_removed(kernel: RealKernel) -> None:
    loaded(kernel)
    with pytest.raises(KernelError, match="still holds"):
        kernel.remove_instance()
    kernel.unload_program()
    kernel.remember_sysctl("net/ipv4/ip_forward", "0")
    with pytest.raises(KernelError, match="not restored yet: net/ipv4/ip_forward"):
        kernel.remove_instance()
    kernel.forget_sysctl("net/ipv4/ip_forward")
    kernel.remove_instance()


def test_without_rights_the_error_says_so(kernel: RealKernel) -> None:
    loaded(kernel)
    with as_nobody(), pytest.raises(KernelError) as caught:
        kernel.dump(VIPS.name)
    assert caught.value.hint == "run as root"


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_stranger_s_directory_and_link_among_the_pins_are_in_nobody_s_way(kernel: RealKernel, run_dir: Path) -> None:
    loaded(kernel)
    pins = run_dir / "lbk" / "bpf"
    (pins / "directory").mkdir()
    (pins / "link").symlink_to("/etc/passwd")
    assert kernel.attached_programs([]) == []
    kernel.unload_program()
    kernel.remove_instance()
    assert not pins.exists()
