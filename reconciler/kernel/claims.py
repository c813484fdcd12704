# SPDX-License-Identifier: Apache-2.0
"""One instance a network namespace, one network namespace an instance.

Routes, addresses and neighbours carry the mark of lbctl, not of one instance, and former values of settings are true
of one namespace only. So an instance claims the namespace that it is in before its first change: by a note in its own
directory, and by one in the namespace (`ownership`), which instances of other run directories see, too.
"""

from __future__ import annotations

from reconciler.errors import UsageError
from reconciler.kernel import holders, ownership, place, xdp
from reconciler.kernel.instance import Instance
from reconciler.kernel.place import Place
from reconciler.kernel.refusal import refused


def check(instance: Instance, netns: str) -> None:
    """Raise UsageError if the instance is in another namespace, or another instance is in this one.

    `netns` is the name by which the calling thread came into its namespace, empty if it was there already.
    """
    here, own = place.here(netns), place.noted(instance.directory)
    if own and not own.is_same(here) and not _is_replaced(own, here):
        there = f"--netns {own.name} " if own.name else ""
        raise UsageError(
            f"instance {instance.name} is in {own}",
            hint="work on it there, or name another one with --instance; "
            f"if that namespace is gone: lbctl {there}--instance {instance.name} delete",
        )
    for other in place.neighbours(instance.directory, here):
        raise _shared(instance, other, f"--instance {other}")
    with refused("interfaces"):
        for owner in ownership.others(instance):
            raise _shared(instance, owner.name, f"--run-dir {owner.run_dir} --instance {owner.name}")
        for held in xdp.running():
            holder = holders.other_holder(instance, held)
            if holder:
                raise _shared(instance, holder.name, f"--run-dir {holder.directory.parent} --instance {holder.name}")


def claim(instance: Instance, netns: str) -> None:
    """Note that the namespace is this instance's. Raises UsageError as `check` does."""
    check(instance, netns)
    here, own = place.here(netns), place.noted(instance.directory)
    is_noted = own is not None and own.is_same(here)
    if not is_noted:
        place.note(instance.directory, here)
    with refused("the loopback"):
        ownership.note(instance)
    if is_noted:
        return
    try:
        check(instance, netns)  # if two instances claim it at once, each sees the other's note
    except UsageError:
        (instance.directory / place.NOTE).unlink(missing_ok=True)
        with refused("the loopback"):
            ownership.forget(instance)
        raise


def is_stale(instance: Instance, netns: str) -> bool:
    """Whether the instance claims another namespace than that of the calling thread."""
    own = place.noted(instance.directory)
    return own is not None and not own.is_same(place.here(netns))


def check_gone(instance: Instance, netns: str) -> None:
    """Raise UsageError if the instance's namespace has another name than `netns`, which is gone."""
    own = place.noted(instance.directory)
    if own and own.name != netns:
        raise UsageError(f"instance {instance.name} is in {own}, not in one called {netns}")


def _is_replaced(own: Place, here: Place) -> bool:
    """Whether the namespace `own` of an instance is gone, and `here` came in its place."""
    return own.name == here.name and (own.name != "" or not place.is_alive(own))


def _shared(instance: Instance, other: str, arguments: str) -> UsageError:
    return UsageError(
        f"instance {other} is in this network namespace, so instance {instance.name} can't be: "
        "VIPs are marked as lbctl's, not as one instance's",
        hint=f"lbctl {arguments} …; to take that one off: lbctl {arguments} delete",
    )
