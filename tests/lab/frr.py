# SPDX-License-Identifier: Apache-2.0
"""Real routing daemons on hosts of a lab: zebra, bgpd and bfdd of Debian's package frr."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab

_DAEMONS = Path("/usr/lib/frr")
_SOCKETS = Path("/run/frr")
_WAIT_S = 240.0


class Router:
    """The daemons of one host, without any configuration."""

    def __init__(self, lab: Lab, host: str) -> None:
        self.lab, self.host, self.directory = lab, host, _SOCKETS / lab.netns(host)
        self.directory.mkdir(parents=True)
        (self.directory / "frr.conf").write_text(f"hostname {host}\n")
        for path in (self.directory, self.directory / "frr.conf"):
            shutil.chown(path, "frr", "frr")
        self._children = [self._start("zebra")]
        wait_until(f"zebra on {host} answers", (self.directory / "zserv.api").exists, _WAIT_S)
        self._children += [self._start("bfdd"), self._start("bgpd")]

    def wait(self) -> None:
        """Wait until all of them can be asked."""
        for daemon in ("zebra", "bfdd", "bgpd"):
            wait_until(f"{daemon} on {self.host} answers", (self.directory / f"{daemon}.vty").exists, _WAIT_S)

    def _start(self, daemon: str) -> Any:
        own = ["--bfdctl", str(self.directory / "bfdd.sock")] if daemon == "bfdd" else []
        return self.lab.start(
            self.host, str(_DAEMONS / daemon), "-f", str(self.directory / "frr.conf"), *own,
            "-i", str(self.directory / f"{daemon}.pid"), "-z", str(self.directory / "zserv.api"),
            "--vty_socket", str(self.directory), "-P", "0", "--log", f"file:{self.directory / daemon}.log",
        )  # fmt: skip

    def stop(self) -> None:
        """End the daemons without a word to their neighbours, as when the machine dies."""
        for child in self._children:
            child.kill()
            child.wait()
        shutil.rmtree(self.directory)

    def show(self, what: str) -> Any:
        """What `show … json` says."""
        return json.loads(self._shell(f"{what} json"))

    def configuration(self) -> str:
        return self._shell("show running-config")

    def type(self, *lines: str) -> None:
        """Change the configuration, as a person would."""
        self._shell("configure terminal", *lines)

    def _shell(self, *lines: str) -> str:
        words = [word for line in lines for word in ("-c", line)]
        return self.lab.run(self.host, "vtysh", "--vty_socket", str(self.directory), *words)


@contextmanager
def routers(lab: Lab, *hosts: str) -> Iterator[dict[str, Router]]:
    """Daemons on these hosts, by the names of the hosts."""
    found: dict[str, Router] = {}
    try:
        for host in hosts:
            found[host] = Router(lab, host)
        for router in found.values():
            router.wait()
        yield found
    finally:
        for router in found.values():
            router.stop()
