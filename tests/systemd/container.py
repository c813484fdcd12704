# SPDX-License-Identifier: Apache-2.0
"""A container in which systemd is the first process, on this machine's kernel: as the virtual machine, in minutes.

It has mounts, processes, network, names and control groups of its own, and all capabilities. Its files are those of a
system with memory above them, so what is done there leaves nothing here.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.deb.system import CHECKOUT

_SERVICE = """\
[Unit]
Description=The command that this container was made for
After=multi-user.target

[Service]
Type=exec
WorkingDirectory={checkout}
Environment=PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8 HOME=/root
StandardOutput=append:/run/guest/output
StandardError=inherit
ExecStart=/bin/sh /run/guest/command
"""
_START = """\
set -eu
mount --make-rprivate /
mount -t tmpfs writable {work}
mkdir {work}/upper {work}/work {work}/root
mount -t overlay -o lowerdir={system},upperdir={work}/upper,workdir={work}/work root {work}/root
cd {work}/root
mount -t proc proc proc
mount -t sysfs sys sys
mount -t tmpfs run run
mount -t tmpfs tmp tmp
mount -t tmpfs dev dev
mkdir dev/pts dev/shm run/guest
mount -t devpts -o newinstance,ptmxmode=0666 pts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for each in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    mknod -m 0666 "dev/${{each%%:*}}" c $(echo "${{each#*:}}" | tr : ' ')
done
mkdir -p .{checkout}
mount --bind {checkout} .{checkout}
mount --bind {report} run/guest
units=etc/systemd/system
cp {report}/guest.service $units
mkdir -p $units/multi-user.target.wants
ln -s ../guest.service $units/multi-user.target.wants
for unit in systemd-firstboot.service apt-daily.timer apt-daily-upgrade.timer ssh.service; do
    ln -sf /dev/null $units/$unit
done
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id
echo guest > etc/hostname
hostname guest
echo 127.0.1.1 guest >> etc/hosts
ip link set lo up
mkdir .former
pivot_root . .former
umount -l /.former
mount --make-rshared /
exec env -i container=lbctl PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
"""
_NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc", "--cgroup")
_GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_LIMIT_S = 3000


def run(command: Sequence[str], system: Path) -> int:
    """Run a command in the checkout once the system is up; its output goes to this one's. The exit code."""
    with tempfile.TemporaryDirectory() as name:
        report, work = Path(name) / "report", Path(name) / "work"
        report.mkdir()
        work.mkdir()
        (report / "command").write_text(f"{shlex.join(command)}\nsystemctl exit $?\n", encoding="utf-8")
        (report / "guest.service").write_text(_SERVICE.format(checkout=CHECKOUT), encoding="utf-8")
        (report / "output").touch()
        start = _START.format(system=system, work=work, report=report, checkout=CHECKOUT)
        group = _group()
        follower = subprocess.Popen(["tail", "-n", "+1", "-f", str(report / "output")])
        try:
            with (report / "console").open("wb") as console:
                done = subprocess.run(
                    ["unshare", *_NAMESPACES, "sh", "-c", start], stdin=subprocess.DEVNULL, stdout=console,
                    stderr=console, timeout=_LIMIT_S, check=False, preexec_fn=lambda: _enter(group),
                )  # fmt: skip
            if not (report / "output").stat().st_size:
                print((report / "console").read_text(errors="replace"), file=sys.stderr)
        finally:
            follower.terminate()
            follower.wait()
            _remove(group)
        return done.returncode


def _group() -> Path:
    """A control group of this container's own, below that of this process, in version 2."""
    base = next(Path(path) for path in reversed(_GROUPS) if (Path(path) / "cgroup.procs").exists())
    made = base / f"lbctl-systemd-{os.getpid()}"
    made.mkdir()
    return made


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _remove(group: Path) -> None:
    """With all groups below it; nothing is left in them."""
    for path, _, _ in sorted(os.walk(group), reverse=True):
        Path(path).rmdir()
