# SPDX-License-Identifier: Apache-2.0
"""What routers hear of a node's VIPs: the routes that there are, and what an agent says speaks against others."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from reconciler.kernel.port import Kernel
from reconciler.kinds.announcement import Announcement, AnnouncementKind
from reconciler.model import LEAVING_METRIC
from reconciler.telling import Form
from reconciler.wish import announcing


@dataclass(frozen=True, slots=True)
class Announced:
    """`state`: announced, degraded, leaving or withdrawn. `metric` and `table` None: there is no route."""

    vip: str
    state: str
    metric: int | None
    table: int | None
    why: str


def announcements(kernel: Kernel, instance_dir: Path) -> list[Announced]:
    """In the order of their addresses, IPv4 before IPv6. Raises FilesError."""
    withheld = announcing.read(instance_dir / announcing.FILE).withheld
    rows = [row for row in AnnouncementKind(kernel).read({}).resources if isinstance(row, Announcement)]
    found = [
        Announced(
            str(row.address), _state(row.metric, str(row.address) in withheld), row.metric, row.table,
            "; ".join(withheld.get(str(row.address), ())),
        )
        for row in rows
    ]  # fmt: skip
    gone = withheld.keys() - {row.vip for row in found}
    found += [Announced(vip, Form.WITHDRAWN.value, None, None, "; ".join(withheld[vip])) for vip in gone]
    return sorted(found, key=lambda row: (ip_address(row.vip).version, int(ip_address(row.vip))))


def _state(metric: int, is_withheld: bool) -> str:
    if metric == LEAVING_METRIC:
        return Form.LEAVING.value
    return (Form.DEGRADED if is_withheld else Form.ANNOUNCED).value
