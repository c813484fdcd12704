# SPDX-License-Identifier: Apache-2.0
"""Real VRRP daemons on hosts of a lab: Debian's package keepalived."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reconciler.kernel import keepalived
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab

_WAIT_S = 240.0


class Daemon:
    """The daemon of one host; its configuration has to be there already."""

    def __init__(self, lab: Lab, host: str) -> None:
        self.lab, self.name = lab, lab.netns(host)
        processes = keepalived.PROCESS.with_suffix("")
        processes.mkdir(exist_ok=True)
        self._pid = processes / f"{self.name}.pid"
        self._child: Any = lab.start(
            host, "keepalived", "--dont-fork", "--vrrp", "-f", str(keepalived.path(self.name)), "-p", str(self._pid),
            "-r", str(processes / f"{self.name}.vrrp.pid"), "--no-syslog",
        )  # fmt: skip
        wait_until(f"keepalived runs on {host}", lambda: keepalived.is_running(self.name), _WAIT_S)

    def stop(self) -> None:
        """End it. It gives up its addresses."""
        self._child.terminate()
        self._child.wait()


@contextmanager
def daemons(lab: Lab, *hosts: str) -> Iterator[dict[str, Daemon]]:
    """Daemons on these hosts, by the names of the hosts."""
    found: dict[str, Daemon] = {}
    try:
        for host in hosts:
            found[host] = Daemon(lab, host)
        yield found
    finally:
        for host in hosts:
            if host in found:
                found[host].stop()
            shutil.rmtree(keepalived.path(lab.netns(host)).parent, ignore_errors=True)
            for file in keepalived.PROCESS.with_suffix("").glob(f"{lab.netns(host)}.*"):
                file.unlink(missing_ok=True)
