# SPDX-License-Identifier: Apache-2.0
"""The routing daemon FRR of this machine, by its own shell: its running configuration, and lines typed into it.

With `--netns NAME`, the daemons of that namespace are asked, which have their sockets in /run/frr/NAME (`-N NAME`).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reconciler import children
from reconciler.errors import KernelError

SOCKETS = Path("/run/frr")
_CONFIGURATION = Path("/etc/frr")
_TIMEOUT_S = 60.0
_ACCEPTED = (0, 2)
"""`vtysh -f` ends with 2 also for lines that are no mistakes; what came of them is read back anyhow."""


def is_there(netns: str) -> bool:
    """Whether a daemon for BGP runs here."""
    return (SOCKETS / netns / "bgpd.vty").exists()


def running(netns: str) -> str | None:
    """The running configuration of all daemons; None if there is none. Raises KernelError."""
    return _shell(netns, "-c", "show running-config") if is_there(netns) else None


def load(netns: str, lines: Sequence[str]) -> None:
    """Type lines into the configuration, and keep it for the next start of the daemons. Raises KernelError."""
    with tempfile.NamedTemporaryFile("w", encoding="ascii", prefix="lbctl-frr-") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        _shell(netns, "-f", file.name)
    kept = _CONFIGURATION / netns / "frr.conf"
    if kept.exists():
        _shell(netns, "--config_dir", str(kept.parent), "-w")


def _shell(netns: str, *arguments: str) -> str:
    argv = ["vtysh", "--vty_socket", str(SOCKETS / netns), *arguments]
    try:
        done = children.run(argv, timeout_s=_TIMEOUT_S)
    except FileNotFoundError:
        raise KernelError("there is no vtysh, the shell of FRR", hint="apt install frr") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"FRR does not answer within {_TIMEOUT_S:g} s", hint="systemctl status frr") from None
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode not in _ACCEPTED:
        said = (done.stderr.decode("utf-8", "replace").strip() or text.strip() or "no reason").splitlines()[0]
        raise KernelError(f"FRR refuses: {said}", hint="is the user a member of the group frrvty?")
    return text
