# SPDX-License-Identifier: Apache-2.0
"""From native to generic XDP on an interface, or back. The kernel can't replace one by the other in a single step, so
for some milliseconds the interface runs no program. Packets that come in meanwhile are dropped, since connections
survive lost packets, but not the kernel's own answers to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from reconciler.errors import KernelError
from reconciler.kernel.objects import AttachedProgram
from reconciler.kernel.port import Kernel
from reconciler.kinds.service import indexed_rows

OPEN_ATTEMPTS = 6
"""How often it is tried to let an interface forward again."""


def switch_mode(kernel: Kernel, runs: AttachedProgram, mode: str) -> None:
    """Run the loaded program in another mode. Raises KernelError, after an attempt to go back to the former mode."""
    with _lost(kernel, runs.interface):
        kernel.detach(runs.interface, runs.mode, runs.id)
        try:
            kernel.attach(runs.interface, mode, None)
        except KernelError:
            kernel.attach(runs.interface, runs.mode, None)
            raise


@contextmanager
def _lost(kernel: Kernel, interface: str) -> Iterator[None]:
    """Within this, the kernel drops packets that are the program's: it sends no resets to clients of VIPs, and doesn't
    forward replies of NAT untranslated, to which clients would answer with resets."""
    rows = [indexed.row for indexed in indexed_rows(kernel)]
    places = [(row.protocol, str(row.vip), row.port) for row in rows if row.port]
    with kernel.hushed(places), _closed(kernel, interface):
        yield


@contextmanager
def _closed(kernel: Kernel, interface: str) -> Iterator[None]:
    """Within this, the kernel forwards no packet that comes in by the interface or by a VLAN of it."""
    links = kernel.links()
    own = {link.index for link in links if link.name == interface}
    names = [link.name for link in links if link.name == interface or link.trunk in own]
    settings = [f"net/{family}/conf/{name}/forwarding" for family in ("ipv4", "ipv6") for name in names]
    held = {setting: value for setting in settings if (value := kernel.read_sysctl(setting)) not in (None, "0")}
    try:
        for setting in held:
            kernel.write_sysctl(setting, "0")
        yield
    finally:
        _open_again(kernel, held)


def _open_again(kernel: Kernel, held: Mapping[str, str]) -> None:
    """Let them forward as before. A refusal may be over a moment later, and must not keep the others closed."""
    left = dict(held)
    for last in range(OPEN_ATTEMPTS, 0, -1):
        for setting, value in list(left.items()):
            try:
                kernel.write_sysctl(setting, value)
                del left[setting]
            except KernelError:
                if last == 1:
                    raise
