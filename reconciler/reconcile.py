# SPDX-License-Identifier: Apache-2.0
"""One round: what a fleet asks of a node, compared with the node, and carried out."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from reconciler import record, slots
from reconciler.apply import Notify, Result, apply
from reconciler.compile import compile_node
from reconciler.concerns import concerns_of
from reconciler.errors import FilesError, KernelError
from reconciler.kernel.port import Kernel
from reconciler.kinds.attachment import generic_interfaces
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.neighbour_proxy import NeighbourProxy
from reconciler.kinds.program import PROGRAM
from reconciler.kinds.tunnel import forms_of
from reconciler.live import read_live
from reconciler.lock import apply_lock
from reconciler.model import Fleet, Role
from reconciler.plan import Plan, plan
from reconciler.resource import Change, Desired, Live
from reconciler.ring_store import in_transition, settle
from reconciler.view import NodeView, view

RECORD = "applied.json"


def view_of(fleet: Fleet, node: str | None) -> NodeView:
    """What this node takes of the fleet (None: that of this host, or the only one). Raises UsageError."""
    return view(fleet, node, socket.gethostname())


def desired_of(fleet: Fleet, node: str | None, on: Kernel | Live | None = None) -> Desired:
    """What the fleet asks of this node. Raises UsageError if the node is not in it, UnsupportedError, KernelError.

    Where the kernel can't unpack tunnels, a program has to, and where a veth loses what native XDP sends, it is
    generic. So the kernel is asked; with a snapshot in its place, what is in there tells; with neither, it is taken
    to be able.
    """
    taken = view_of(fleet, node)
    sending = [face.name for face in taken.node.interfaces if taken.node.role is Role.BALANCER]
    forms = sorted(forms_of(taken))
    match on:
        case None:
            able, lossy = True, frozenset[str]()
        case Live():
            able, lossy = PROGRAM not in on.resources, generic_interfaces(on)
        case _:
            able = all(on.knows_tunnel(form) for form in forms)
            lossy = frozenset(name for name, is_native in on.far_ends(sending).items() if not is_native)
    return compile_node(replace(taken, decapsulates=bool(forms) and not able, lossy=lossy))


def plan_node(desired: Desired, kernel: Kernel, instance_dir: Path) -> Plan:
    """Read the node and compare. Writes nothing."""
    live = read_live(kernel, desired.resources.keys())
    planned = plan(desired, live, record.load(instance_dir / RECORD))
    return replace(planned, concerns=concerns_of(kernel, desired))


def settle_transitions(kernel: Kernel, instance_dir: Path) -> int:
    """End the transitions of slots that are over; returns how many slots that were."""
    if not in_transition(kernel):
        return 0
    with apply_lock(instance_dir):
        return settle(kernel, slots.now())


def carry_out(planned: Plan, kernel: Kernel, instance_dir: Path, notify: Notify) -> Result:
    """Apply a plan and write down what is in place now. Ends the transitions that are over, too.

    Raises UsageError, before any change, if another instance is on the node.
    """
    if planned.desired.resources:
        kernel.claim()
    result = apply(planned, kernel, notify)
    done = set(result.done)
    left = {change.key for change in planned.changes if change not in done}
    left |= planned.blocked.keys() | {held.change.key for held in planned.held}
    path = instance_dir / RECORD
    with contextlib.suppress(FilesError):  # of the disk: without the record, a plan can't tell drift from an edit
        record.save(path, planned.desired, record.load(path), left)
    settle(kernel, slots.now())
    if came := _vips_that_came(result.done):
        # Who doesn't hear of it asks again by itself, some time later: that is no failure of what is in place.
        with contextlib.suppress(KernelError):
            kernel.announce(came)
    return result


def _vips_that_came(done: Iterable[Change]) -> set[str]:
    """The VIPs that this balancer answers for from now on. An endpoint never says that it has one."""
    made = [change.after for change in done if change.before is None]
    return {
        str(found.address) for found in made
        if isinstance(found, NeighbourProxy) or (isinstance(found, LoopbackVip) and found.services)
    }  # fmt: skip
