# SPDX-License-Identifier: Apache-2.0
"""A bare Debian in a directory, with file systems of its own: what is done there leaves nothing here.

All of it happens in a mount namespace of this process, which goes with it.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STORE = CHECKOUT / ".vm"
PACKAGES = (
    "python3,python3-yaml,python3-jinja2,python3-numpy,libbpf1,libatomic1,python3-bpfcc,linux-headers-amd64,git,"
    "python3-venv,systemd,systemd-sysv,sudo,iproute2,ethtool,ca-certificates,openssl,openssh-server"
)
"""What the package depends on and recommends, which apt would bring from a mirror; and what a Debian that somebody
works with has, for tests.systemd."""
CAPABILITIES = "+bpf,+perfmon,+net_admin,+net_raw,+sys_admin"
"""Those of packaging/lbctl.service."""

_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_TIMEOUT_S = 1800
"""For what hangs. To compile six data planes with all features takes a minute, and many on a machine that is busy."""


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def base(codename: str) -> Path:
    """A bare system with what the package needs, as an archive. It is made once, from Debian's mirror."""
    archive = STORE / f"{codename}.tar"
    if not archive.exists():
        STORE.mkdir(exist_ok=True)
        say(f"Making a bare Debian {codename} (a few minutes, once)")
        made = archive.with_suffix(".new")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "--format=tar", codename]
        with made.open("wb") as output:
            subprocess.run([*command, "-"], check=True, stdout=output)
        made.rename(archive)
    return archive


def own_mounts() -> None:
    """From now on, what this process mounts is seen by it and its children only."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class System:
    """The system in `root`. Commands run in a network namespace, as a user, with nothing of this one's environment."""

    def __init__(self, root: Path, archive: Path) -> None:
        self.root = root
        root.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", root, "--exclude=./dev/*"], check=True)
        for kind, name in (("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run"), ("tmpfs", "tmp")):
            subprocess.run(["mount", "-t", kind, kind, root / name], check=True)
        for name, numbers in _DEVICES.items():  # of its own: this one's are never mounted there
            os.mknod(root / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
            (root / "dev" / name).chmod(0o666)

    def remove(self) -> None:
        """Take the system away; nothing that is still mounted there is entered."""
        for _ in range(2):
            for path in sorted(self._mounted(), reverse=True):
                subprocess.run(["umount", "--lazy", path], check=False)
        if not self._mounted():
            subprocess.run(["rm", "-rf", "--one-file-system", self.root], check=False)

    def _mounted(self) -> list[str]:
        """The places below the root where something is mounted."""
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        return [path for path in (line.split()[4] for line in lines) if path.startswith(f"{self.root}/")]

    def argv(self, command: Sequence[str], netns: str = "", user: str = "") -> list[str]:
        words = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        words += ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root"]
        words += ["chroot", str(self.root)]
        if user == "lbctl":  # as the unit starts the agent
            words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs",
                      f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}",
                      f"--bounding-set=-all,{CAPABILITIES}"]  # fmt: skip
        elif user == "nobody":
            words += ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        return [*words, *command]

    def run(self, *command: str, netns: str = "", user: str = "", code: int = 0) -> str:
        """What a command prints. AssertionError unless it ends with this exit code."""
        done = subprocess.run(
            self.argv(command, netns, user), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if code else "")

    def start(self, *command: str, netns: str = "", user: str = "", log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                self.argv(command, netns, user), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )


class Timer:
    """How long the steps of the manual took."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._since:.0f} s"
