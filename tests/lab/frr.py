# SPDX-License-Identifier: Apache-2.0
"""Real routing daemons on hosts of a lab: zebra, bgpd and bfdd of Debian's package frr."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab

_DAEMONS = Path("/usr/lib/frr")
_WAIT_S = 60.0
TABLE = 251


class Router:
    """The daemons of one host."""

    def __init__(self, lab: Lab, host: str, directory: Path, config: str) -> None:
        self.lab, self.host, self.directory = lab, host, directory
        directory.mkdir(parents=True)
        (directory / "frr.conf").write_text(f"hostname {host}\n{config}")
        for path in (directory, directory / "frr.conf"):
            shutil.chown(path, "frr", "frr")
        self._children = []
        for daemon in ("zebra", "bfdd", "bgpd"):
            self._children.append(self._start(daemon))
            wait_until(f"{daemon} on {host} answers", (directory / f"{daemon}.vty").exists, _WAIT_S)

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

    def show(self, what: str) -> Any:
        """What `show … json` says."""
        return json.loads(self.lab.run(self.host, "vtysh", "--vty_socket", str(self.directory), "-c", f"{what} json"))

    def command(self, *lines: str) -> str:
        """Type lines into the shell of the daemons."""
        typed = [word for line in lines for word in ("-c", line)]
        return self.lab.run(self.host, "vtysh", "--vty_socket", str(self.directory), *typed)


def bgp(number: int, router_id: str, neighbours: Mapping[str, int], *, announces: bool) -> str:
    """The configuration of a host in the AS `number`, with its neighbours and theirs. A balancer announces its table,
    and nothing else; the other hosts take up to eight equal paths."""
    lines = [f"ip import-table {TABLE}"] if announces else []
    lines += [f"router bgp {number}", f" bgp router-id {router_id}", " no bgp ebgp-requires-policy",
              " bgp bestpath as-path multipath-relax"]  # fmt: skip
    for address, theirs in neighbours.items():
        lines += [f" neighbor {address} remote-as {theirs}", f" neighbor {address} timers 1 3",
                  f" neighbor {address} timers connect 1", f" neighbor {address} bfd"]  # fmt: skip
    lines += [" address-family ipv4 unicast", "  maximum-paths 8"]
    lines += [f"  redistribute table {TABLE}"] if announces else []
    return "\n".join([*lines, " exit-address-family", "exit", ""])


@contextmanager
def routers(lab: Lab, configs: Mapping[str, str]) -> Iterator[dict[str, Router]]:
    """Daemons on these hosts, by the names of the hosts."""
    with tempfile.TemporaryDirectory(prefix="lbctl-frr-") as made:
        shutil.chown(made, "frr", "frr")  # the daemons give up root
        found: dict[str, Router] = {}
        try:
            for host, config in configs.items():
                found[host] = Router(lab, host, Path(made) / host, config)
            yield found
        finally:
            for router in found.values():
                router.stop()
