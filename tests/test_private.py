# SPDX-License-Identifier: Apache-2.0
"""What lies in lbctl's own directories is root's word: nobody else may write, lock or replace it."""

import fcntl
import json
import os
import stat
import subprocess
import sys

import pytest

from reconciler import private, record
from reconciler.agent.single import only_agent
from reconciler.errors import FilesError, KernelError
from reconciler.files import write_output
from reconciler.kernel import place
from reconciler.kernel.instance import Instance
from reconciler.kernel.ledger import Ledger
from reconciler.kernel.sysctl import is_known
from reconciler.lock import apply_lock
from reconciler.resource import Desired

NOBODY = 65534
SETTING = "net/ipv4/ip_forward"


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_do_not_depend_on_the_umask(tmp_path, umask):
    run_dir = tmp_path / "some" / "run"
    instance = Instance("lb1", run_dir)
    with only_agent(instance.directory), apply_lock(instance.directory):
        Ledger(instance).put(SETTING, "0")
        record.save(instance.directory / "applied.json", Desired(), {}, {})
    assert (mode(run_dir), mode(instance.directory)) == (0o755, 0o711)  # others may neither list nor open it
    found = {path.name: mode(path) for path in instance.directory.iterdir()}
    assert found == dict.fromkeys(("lock", "agent.lock", "former.json", "applied.json"), 0o600)


def test_nobody_else_can_take_a_lock(tmp_path):
    """flock needs no more than an open file; a directory of a former version is closed as well."""
    tmp_path.chmod(0o755)
    directory = tmp_path / "lb1"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    (directory / "lock").touch(mode=0o644)
    with apply_lock(directory), Instance("lb1", tmp_path).locked():
        pass
    for path in (directory / "lock", directory):
        nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        tried = subprocess.run(
            [*nobody, "flock", "--nonblock", path, "true"], capture_output=True, text=True, timeout=30
        )
        assert "Permission denied" in tried.stderr


@pytest.mark.parametrize("how", ["directory", "above", "owner of the file", "mode of the file", "hard link", "link"])
def test_what_others_could_have_written_is_not_believed(tmp_path, how):
    run_dir = tmp_path / "run"
    directory = run_dir / "lb1"
    ledger = Ledger(Instance("lb1", run_dir))
    ledger.put(SETTING, "0")
    file = directory / "former.json"
    match how:
        case "directory":
            directory.chmod(0o777)
        case "above":
            run_dir.chmod(0o777)
        case "owner of the file":
            os.chown(file, NOBODY, NOBODY)
        case "mode of the file":
            file.chmod(0o666)
        case "hard link":
            os.link(file, tmp_path / "other")
        case "link":
            file.rename(tmp_path / "other")
            file.symlink_to(tmp_path / "other")
    with pytest.raises(KernelError, match="former values"):
        ledger.values()
    if how in ("directory", "above"):
        with pytest.raises(FilesError, match="could have been written by somebody else"):
            ledger.put(SETTING, "1")


def test_a_planted_link_does_not_make_root_write_elsewhere(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = tmp_path / "lb1"
    directory.mkdir(mode=0o700)
    for name in ("lock", "agent.lock", "applied.json"):
        (directory / name).symlink_to(victim)
    for hold in (apply_lock, only_agent):
        with pytest.raises(FilesError, match="can't open"):
            hold(directory).__enter__()
    record.save(directory / "applied.json", Desired(), {}, {})
    assert victim.read_text() == "precious"
    assert not (directory / "applied.json").is_symlink()
    assert private.read(directory / "applied.json") == b"[]"


def test_what_is_no_file_is_an_error_and_nobody_waits_for_it(tmp_path):
    directory = tmp_path / "lb1"
    directory.mkdir(mode=0o700)
    os.mkfifo(directory / "lock")
    with pytest.raises(FilesError, match="is no file"):
        apply_lock(directory).__enter__()
    (directory / "agent.lock").mkdir()
    with pytest.raises(FilesError, match="can't open"):
        only_agent(directory).__enter__()
    with pytest.raises(FilesError, match="is no file"):
        private.read(directory / "lock")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel/core_pattern", "1"), ("net/ipv4/conf/../../../kernel/panic", "1"), ("net/core/bpf_jit_enable", "1"),
        (SETTING, "|/tmp/evil"), (SETTING, ""), (SETTING, "1\n2"), ("net/ipv4/conf/eth0/rp_filter\n", "1"),
    ],
)  # fmt: skip
def test_only_settings_that_lbctl_changes_are_ever_restored(tmp_path, name, value):
    ledger = Ledger(Instance("lb1", tmp_path))
    private.write(tmp_path / "lb1" / "former.json", json.dumps({name: value}).encode())
    assert not is_known(name, value)
    with pytest.raises(KernelError, match="a setting that lbctl never changes"):
        ledger.values()


def test_who_is_told_to_end_stops_waiting_for_a_lock(tmp_path):
    """A process of its own, since being told to end is for good."""
    script = f"""
from pathlib import Path
from reconciler import private
from reconciler.kernel import place
from reconciler.kernel.instance import Instance
from reconciler.lock import apply_lock
private.stop_waiting()
run_dir = Path({str(tmp_path)!r})
for hold in (lambda: apply_lock(run_dir / "lb1"), lambda: Instance("lb1", run_dir).locked()):
    try:
        with hold():
            print("held")
    except private.FilesError as error:
        print(error.message)
"""
    with apply_lock(tmp_path / "lb1"):
        handle = os.open(tmp_path / "lb1", os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
        os.close(handle)
    assert done.stdout.splitlines() == ["told to end while waiting for another lbctl; nothing was changed"] * 2
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines() == ["held"] * 2, "free locks are taken all the same: what was begun is finished"


def test_output_goes_into_devices_pipes_and_through_links(tmp_path):
    device = tmp_path / "null"
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    write_output(device, b"plan")
    assert stat.S_ISCHR(device.stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_output(pipe, b"plan")
    assert os.read(reader, 10) == b"plan"
    os.close(reader)
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target.name)
    for content in (b"first", b"second"):
        write_output(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
        assert mode(target) == 0o600
    target.chmod(0o640)
    write_output(link, b"third")
    assert mode(target) == 0o640
    with pytest.raises(IsADirectoryError):
        write_output(tmp_path, b"plan")


STRANGER = """
import ctypes, os, subprocess, sys
pins, ready = sys.argv[1], int(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "none", os.path.dirname(os.path.dirname(pins))], check=True)
os.makedirs(pins)
subprocess.run(["mount", "-t", "bpf", "none", pins], check=True)
os.write(ready, b"x")
sys.stdin.read()
"""


@pytest.mark.kernel
def test_whoever_gets_the_number_of_a_killed_agent_does_not_decide_where_pins_are(tmp_path):
    """A stranger may have a bpffs of his own at the same path, in mounts of his own."""
    tmp_path.chmod(0o755)
    instance = Instance("lb1", tmp_path / "run")
    with only_agent(instance.directory):
        pass
    here, there = os.pipe()
    stranger = subprocess.Popen(
        ["unshare", "--mount", sys.executable, "-I", "-c", STRANGER, instance.pins, str(there)],
        stdin=subprocess.PIPE, pass_fds=[there],
    )  # fmt: skip
    try:
        os.close(there)
        assert os.read(here, 1) == b"x"
        (instance.directory / "agent.lock").write_text(f"{stranger.pid}\n")
        assert Instance("lb1", tmp_path / "run").pins == instance.pins
    finally:
        os.close(here)
        stranger.communicate(timeout=30)


def test_a_directory_of_somebody_else_is_no_place_for_ours(tmp_path):
    """Its owner could put another directory in the place of ours."""
    tmp_path.chmod(0o755)
    theirs = tmp_path / "run"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, NOBODY, NOBODY)
    with pytest.raises(FilesError, match=f"{theirs} could have been written by somebody else"):
        private.write(theirs / "lb1" / "file", b"")


@pytest.mark.parametrize("note", ['{"cookie": Infinity, "inode": 1, "name": ""}', "[" * 100_000, "[1]", "{}x"])
def test_a_damaged_note_of_the_namespace_names_its_file(tmp_path, note):
    private.write(tmp_path / "lb1" / place.NOTE, note.encode())
    with pytest.raises(KernelError, match=place.NOTE):
        place.noted(tmp_path / "lb1")
