# SPDX-License-Identifier: Apache-2.0
"""Hears what others change on the node, and finds out which keys that concerns: drift is mended at once.

The kernel tells of links, addresses, routes and neighbours. It tells of no change of a setting, so the few settings
that matter are read ten times a second. All of it are hints: from time to time the whole node is looked at anyhow.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from reconciler.agent.report import Report
from reconciler.errors import KernelError
from reconciler.kernel import sysctl
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.notices import Listener, LostError, Notice
from reconciler.kinds.announcement import Announcement
from reconciler.kinds.hop_group import HopGroup
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.neighbour import Neighbour
from reconciler.kinds.sysctl import Sysctl
from reconciler.kinds.tunnel import Tunnel
from reconciler.kinds.vip_route import VipRoute
from reconciler.kinds.vlan_link import VlanLink
from reconciler.model import Role
from reconciler.resource import Key, Resource
from reconciler.view import NodeView

LISTENING = "notices of the kernel"
LOOK_S = 0.1
"""How long a changed setting may go unseen."""
MOST = 10_000
"""As many notices are remembered; with more, the whole node is looked at."""
_LOCAL, _MAIN = 255, 254
_OF_ROUTES = frozenset(("gateway-route", "blackhole", "vip-route"))
_SEPARATORS = re.compile("[/ ]")


@dataclass(slots=True)
class Found:
    """What has come since somebody asked. `is_lost`: and more than that, of which nothing is known."""

    notices: set[Notice] = field(default_factory=set)
    is_lost: bool = False


class Notices:
    """Of the namespace that `start` is called in. `ring` is called, from another thread, when something has come."""

    def __init__(self, ring: Callable[[], None], report: Report, mark: int = PROTOCOL) -> None:
        self._ring, self._report, self._mark = ring, report, mark
        self._lock = threading.Lock()
        self._found = Found()
        self._settings: dict[str, str] = {}
        self._gateways: frozenset[str] = frozenset()
        self._seen: dict[str, str | None] = {}
        self._about: object = None
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        try:
            listener = Listener(self._mark)
        except (OSError, KernelError) as error:
            text = error.strerror if isinstance(error, OSError) else None
            self._report.problem(LISTENING, text or str(error), "drift is found by looking, later")
            return
        self._thread = threading.Thread(target=self._listen, args=(listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        if self._thread is not None:
            self._thread.join()

    def watch(self, whole: Mapping[Key, Resource], view: NodeView | None) -> None:
        """From now on, these are the resources of the node as a whole, and this is its view."""
        if self._about is whole:
            return
        self._about = whole
        self._settings = {row.name: row.value for row in whole.values() if isinstance(row, Sysctl)}
        faces = view.node.interfaces if view and view.node.announce and view.node.role is Role.BALANCER else ()
        self._gateways = frozenset(str(face.gateway) for face in faces if face.gateway)

    def take(self) -> Found:
        """What has come."""
        with self._lock:
            found, self._found = self._found, Found()
        return found

    def _listen(self, listener: Listener) -> None:
        try:
            while not self._ends.is_set():
                found = Found(set(self._settings_that_differ()))
                if listener.wait(LOOK_S):
                    try:
                        found.notices.update(listener.read(self._gateways))
                    except LostError:
                        found.is_lost = True
                if found.notices or found.is_lost:
                    self._add(found)
        finally:
            listener.close()

    def _add(self, found: Found) -> None:
        with self._lock:
            self._found.notices |= found.notices
            self._found.is_lost |= found.is_lost
            if len(self._found.notices) > MOST:
                self._found = Found(is_lost=True)
        self._ring()

    def _settings_that_differ(self) -> Iterator[Notice]:
        """Each is told of once for each value that it gets."""
        for name, wanted in self._settings.items():
            try:
                value = sysctl.read(name)
            except KernelError:
                continue
            if value not in (wanted, None) and self._seen.get(name, wanted) != value:
                yield Notice("setting", name)
            self._seen[name] = value


def keys_about(notice: Notice, whole: Mapping[Key, Resource]) -> Iterator[Key]:
    """The keys that a notice may concern; `whole` are the resources of the node as a whole, beside those of services
    and pools."""
    match notice.what:
        case "link":
            # VLANs of ours come and go with their trunk, and their settings with them.
            vlans = {r.interface for r in whole.values() if isinstance(r, VlanLink) and r.trunk == notice.name}
            names = {notice.name, *vlans}
            yield from (key for key in whole if not names.isdisjoint(_SEPARATORS.split(key.id)))
            yield from (key for key, r in whole.items() if isinstance(r, Tunnel) and r.device == notice.name)
            # The kernel forgets next hops, and the routes by them, along with an interface.
            if any(isinstance(r, HopGroup) and notice.name in dict(r.hops).values() for r in whole.values()):
                yield from (key for key in whole if key.kind in (HopGroup.kind, VipRoute.kind))
        case "address":
            yield Key(LoopbackVip.kind, notice.name)
            made = (r for r in whole.values() if isinstance(r, VlanLink))
            yield from (r.key for r in made if any(a.partition("/")[0] == notice.name for a in r.addresses))
        case "route" if notice.name and notice.table == _LOCAL:
            yield Key(LoopbackVip.kind, notice.name)
        case "route" if notice.name:
            yield Key(Announcement.kind, f"{notice.name} table {notice.table}")
            if notice.table == _MAIN:
                yield from (key for key in whole if key.kind in _OF_ROUTES)
        case "route":
            yield from (key for key in whole if key.kind in _OF_ROUTES)
        case "neighbour":
            yield Key(Neighbour.kind, f"{notice.name} {notice.interface}")
        case "setting":
            yield Key(Sysctl.kind, notice.name)


