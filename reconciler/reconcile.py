# SPDX-License-Identifier: Apache-2.0
"""One round: compare the resources that a fleet asks of a node with those of the node, and carry out the
difference."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from reconciler import progress, record, support
from reconciler.apply import Notify, Result, apply
from reconciler.compile import Compiled, compiled
from reconciler.concerns import concerns_of
from reconciler.config.load import no_garbage_collection
from reconciler.connections import clients_of
from reconciler.dataplane import slots
from reconciler.dataplane.program import ALLOWED_SOURCES, STATELESS
from reconciler.errors import FilesError, KernelError
from reconciler.kernel.objects import LoadedProgram
from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS
from reconciler.kinds.attachment import generic_interfaces
from reconciler.kinds.endpoint import numbers_of
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.neighbour_proxy import NeighbourProxy
from reconciler.kinds.program import PROGRAM, Program
from reconciler.kinds.tunnel import forms_of
from reconciler.live import read_live, read_node
from reconciler.lock import apply_lock
from reconciler.model import Fleet, Role
from reconciler.plan import Plan, plan
from reconciler.resource import Change, Desired, Key, Live, Resource
from reconciler.ring_store import in_transition, settle
from reconciler.view import NodeView, renewed, view
from reconciler.wish.known import known
from reconciler.wish.wish import Wish

RECORD = "applied.json"


def view_of(fleet: Fleet, node: str | None) -> NodeView:
    """This node's part of the fleet (None: the node of this host, or the only one). Raises UsageError."""
    return view(fleet, node, socket.gethostname())


def desired_of(
    fleet: Fleet, node: str | None, on: Kernel | Live | None = None, wish: Wish | None = None
) -> Desired:
    """As `compiled_of`: just the resources."""
    return compiled_of(fleet, node, on, wish=wish).desired


def compiled_of(
    fleet: Fleet, node: str | None, on: Kernel | Live | None = None, before: Compiled | None = None,
    wish: Wish | None = None,
) -> Compiled:  # fmt: skip
    """The resources that the fleet asks of this node, and that checks and drains leave of it; `before` is what an
    earlier fleet asked of it. Without a `wish`, nothing is known of endpoints. Raises UsageError if the fleet lacks
    the node, UnsupportedError, KernelError."""
    taken = node_view(fleet, node, on)
    with progress.step("working out what the node needs"):
        return compiled((wish or Wish()).of(taken), before)


def known_wish(instance_dir: Path) -> Wish:
    """With what an agent, or whoever drained endpoints, has written down. Raises FilesError."""
    return Wish(known(instance_dir, RECORD))


def node_view(
    fleet: Fleet, node: str | None, on: Kernel | Live | None = None, before: tuple[Fleet, NodeView] | None = None
) -> NodeView:
    """This node's part of the fleet, with the facts of the node that matter. Raises UsageError if the fleet lacks the
    node, KernelError.

    If the kernel can't unpack tunnels, a program does it; if a veth would lose packets that native XDP sends, the
    program runs in generic mode there; and maps never shrink by themselves. `on` answers what the node holds: the
    kernel, or a snapshot by its resources. With neither, the kernel is assumed to unpack tunnels and no veth to lose
    packets. `before` is another fleet with its view, of the same node: what is the same in both is not looked at.
    """
    taken = (before and renewed(fleet, *before)) or view_of(fleet, node)
    if taken.node.role is Role.BALANCER:
        support.refuse(taken.node.name, support.of_fallbacks(taken))
    sending = [face.name for face in taken.node.interfaces if taken.node.role is Role.BALANCER]
    forms = sorted(forms_of(taken))
    loaded: Resource | LoadedProgram | None
    silent: tuple[str, ...] = ()
    match on:
        case None:
            able, lossy, loaded = True, frozenset[str](), None
        case Live():
            able, lossy, loaded = PROGRAM not in on.resources, generic_interfaces(on), on.resources.get(PROGRAM)
        case _:
            loaded = on.loaded_program()
            able = all(on.knows_tunnel(form) for form in forms)
            lossy = frozenset(name for name, is_native in on.far_ends(sending).items() if not is_native)
            silent = silent_gateways(taken, on)
    held, asks, was_stateless = None, False, False
    if isinstance(loaded, Program | LoadedProgram) and loaded.layout:
        held = loaded.sizes
        asks = taken.node.role is Role.BALANCER and ALLOWED_SOURCES in (loaded.features or ())
        was_stateless = taken.node.role is Role.BALANCER and STATELESS in (loaded.features or ())
    return replace(
        taken, decapsulates=bool(forms) and not able, lossy=lossy, held=held, silent_gateways=silent,
        asks_for_sources=asks, was_stateless=was_stateless,
    )  # fmt: skip


def silent_gateways(view: NodeView, kernel: Kernel) -> tuple[str, ...]:
    """The gateways of a balancer that announces its VIPs, and the balancers that a router has routes to, as far as
    they don't answer. Raises KernelError."""
    asked = {str(hop.address) for hop in view.hops}
    if view.node.announce is not None:
        asked |= {str(face.gateway) for face in view.node.interfaces if face.gateway}
    return tuple(kernel.unanswered(sorted(asked))) if asked else ()


def plan_node(desired: Desired, kernel: Kernel, instance_dir: Path) -> Plan:
    """Read the whole node and compare. Writes nothing."""
    with no_garbage_collection():
        live = read_node(kernel, desired)
        with progress.step("comparing"):
            planned = plan(desired, live, record.load(instance_dir / RECORD))
        return replace(planned, concerns=concerns_of(kernel, desired))


def plan_keys(
    desired: Desired, kernel: Kernel, known: Mapping[Key, Resource], applied: Mapping[Key, str], keys: Collection[Key]
) -> Plan:
    """As `plan_node`, but read and compare only these keys; otherwise the node holds the `known` resources. `applied`
    are the fingerprints of what was applied before. Looks for no concerns."""
    live = read_live(kernel, desired.resources, only=keys).over(known, keys)
    return plan(desired, live, applied, keys)


def survey(kernel: Kernel, desired: Desired) -> Iterator[Collection[Key]]:
    """Look at the whole node, slice by slice: the keys of which it seems to hold something else than it should. Others
    may write between two slices, so the keys have to be read again."""
    yield ()
    of_kind = desired.of_kind
    yield ()
    for kind in KINDS:
        yield from kind(kernel).look(of_kind.get(kind.resource.kind, {}))


def settle_transitions(kernel: Kernel, instance_dir: Path, *, is_locked: bool = False) -> int:
    """End the transitions of slots that are over; returns the number of these slots. `is_locked`: the caller holds the
    lock of the instance."""
    if not in_transition(kernel):
        return 0
    with contextlib.nullcontext() if is_locked else apply_lock(instance_dir):
        return settle(kernel, slots.now())


def carry_out(
    planned: Plan, kernel: Kernel, instance_dir: Path, notify: Notify, late: Collection[Key] = ()
) -> Result:
    """Apply a plan and write down the resources that are in place then; those of the `late` keys are left for later. A
    plan about all keys also ends the transitions that are over.

    Raises UsageError, before any change, if another instance is on the node.
    """
    if planned.desired.resources:
        kernel.claim()
    result = apply(planned, kernel, notify)
    left = open_keys(planned, result).union(late)
    path = instance_dir / RECORD
    with contextlib.suppress(FilesError):  # a full disk: plans then can't tell drift from an edit
        if planned.keys is None:
            record.save(path, planned.desired, record.load(path), left)
        else:
            record.add(path, planned.desired, [key for key in planned.keys if key not in left])
    if planned.keys is None:
        settle(kernel, slots.now())
    if came := _vips_that_came(result.done):
        # Not a failure: machines that miss the announcement ask for the VIP's MAC again some time later.
        with contextlib.suppress(KernelError):
            kernel.announce(came)
    if ended := [change.after for change in result.done if _is_ended(change)]:
        with contextlib.suppress(KernelError):  # not a failure, either: they learn it with their next packet
            numbers = numbers_of(kernel, [row for row in ended if isinstance(row, EndpointRow)])
            kernel.rouse(clients_of(kernel, numbers.tolist()))
    return result


def _is_ended(change: Change) -> bool:
    """Whether connections of an endpoint have ended that were there."""
    return change.before is not None and isinstance(change.after, EndpointRow) and change.after.disabled


def open_keys(planned: Plan, result: Result) -> frozenset[Key]:
    """The keys that are not in the state that the plan leads to."""
    left = frozenset(change.key for change in planned.changes) - {change.key for change in result.done}
    return left | planned.blocked.keys() | {held.change.key for held in planned.held}


def _vips_that_came(done: Iterable[Change]) -> set[str]:
    """The VIPs and sources that this balancer answers for from now on; none on an endpoint, which never announces
    VIPs."""
    made = [change.after for change in done if change.before is None]
    held = [vip for vip in made if isinstance(vip, LoopbackVip) and (vip.services or vip.is_source)]
    answered = [proxy for proxy in made if isinstance(proxy, NeighbourProxy)]
    return {*(str(vip.address) for vip in held), *(str(proxy.address) for proxy in answered)}
