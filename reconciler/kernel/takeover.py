# SPDX-License-Identifier: Apache-2.0
"""One program takes over from another, some of whose maps are others, while packets come in all the time.

The new maps were filled when the new program was loaded. What the former program wrote since is carried over once more
just before the interfaces change programs, and for the last time just after that. In between, one program alone may
know a connection, so each has the other in its map `other`, and asks it about those that it does not know.

That map is pinned as long as it holds a program. If this process is killed, the programs go on asking each other, and
the next one that finds the pin ends the takeover.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from reconciler.dataplane.layout import OTHER
from reconciler.kernel import bpf, generations, holders, maps, xdp
from reconciler.kernel.carrying import CARRIED, Carrier
from reconciler.kernel.generations import Generation
from reconciler.kernel.instance import Instance

OTHER_PIN = "other"
"""The pin of the new program's map `other`; the former program's has a number after it."""

_ROUNDS = 4
"""How often changes are carried over before the swap, at most: each round has only those to carry that came during the
one before."""
_FEW = 64
"""So few changes take no time worth another round."""
_FIRST = bytes(4)
_NUMBER = struct.Struct("=I")


def is_unfinished(instance: Instance) -> bool:
    """Whether a takeover was begun and not ended."""
    return any(name.startswith(OTHER_PIN) for name in instance.pinned())


@contextmanager
def taking_over(instance: Instance) -> Iterator[None]:
    """Within this, interfaces may change from earlier programs of the instance to the pinned one.

    Raises KernelError or OSError before the block if that can't be prepared.
    """
    finish(instance)
    program = holders.pinned_program(instance)
    new = generations.of_program(program) if program else None
    former = _formers(instance, new) if new else []
    if new is None or not former:
        yield
        return
    with ExitStack() as stack:
        carriers = [carrier for one in former for carrier in _carriers(one, new, stack)]
        for carrier in carriers:
            carrier.prepare()
        _introduce(instance, new, former[0], stack)
        for _ in range(_ROUNDS):
            if sum(carrier.follow() for carrier in carriers) <= _FEW:
                break
        try:
            yield
        finally:
            _part(instance, besides=OTHER_PIN)
            for carrier in carriers:
                carrier.finish()
            _part(instance)


def finish(instance: Instance) -> bool:
    """End a takeover that was cut off; returns whether there was one."""
    if not is_unfinished(instance):
        return False
    program = holders.pinned_program(instance)
    new = generations.of_program(program) if program else None
    running = {held.id for held in xdp.running()}
    with ExitStack() as stack:
        former = _noted(instance, stack)
        if new and former and former.program.id not in running:
            for carrier in _carriers(former, new, stack):
                carrier.finish()
        _part(instance)
    return True


def _formers(instance: Instance, new: Generation) -> list[Generation]:
    """The generations that run now and have other maps than the new one for what is carried over."""
    found: dict[int, Generation] = {}
    for held in xdp.running():
        if held.program and held.id != new.program.id and holders.are_kin(new.program, held.program):
            generation = generations.of_program(held.program)
            if generation and any(_differs(name, generation, new) for name in CARRIED):
                found[held.id] = generation
    return list(found.values())


def _differs(name: str, former: Generation, new: Generation) -> bool:
    numbers = [generation.description.ids.get(name) for generation in (former, new)]
    return None not in numbers and numbers[0] != numbers[1]


def _carriers(former: Generation, new: Generation, stack: ExitStack) -> Iterator[Carrier]:
    for name, carrier in CARRIED.items():
        if not _differs(name, former, new):
            continue
        opened = [generation.open(name) for generation in (former, new)]
        for fd in opened:
            if fd is not None:
                stack.enter_context(bpf.closing(fd))
        source, target = opened
        if source is not None and target is not None:
            yield carrier(
                name, maps.describe(source), former.description.maps[name], maps.describe(target),
                new.description.maps[name],
            )  # fmt: skip


def _introduce(instance: Instance, new: Generation, former: Generation, stack: ExitStack) -> None:
    """Let each of the programs ask the other one."""
    pairs = ((new, former, OTHER_PIN), (former, new, f"{OTHER_PIN}-{former.program.id}"))
    for one, two, pin in pairs:
        array, program = one.open(OTHER.name), bpf.open_program(two.program.id)
        for fd in (array, program):
            if fd is not None:
                stack.enter_context(bpf.closing(fd))
        if array is None or program is None or two.description.ids.get(OTHER.name) is None:
            continue  # it balances nothing that it remembers
        with instance.mounted():
            instance.pin(array, pin)
        maps.update_one(maps.describe(array), _FIRST, _NUMBER.pack(program))


def _noted(instance: Instance, stack: ExitStack) -> Generation | None:
    """The generation whose program is in the new one's map `other`."""
    fd = instance.open(OTHER_PIN)
    if fd is None:
        return None
    opened = maps.describe(stack.enter_context(bpf.closing(fd)))
    number = maps.lookup(opened, _FIRST)
    program = bpf.open_program(_NUMBER.unpack(number)[0]) if number else None
    if program is None:
        return None
    return generations.of_program(bpf.program_info(stack.enter_context(bpf.closing(program))))


def _part(instance: Instance, besides: str = "") -> None:
    """From now on the programs ask nobody, `besides` the one with this pin. The new one is last: by its pin a later
    process knows the takeover."""
    for name in sorted(name for name in instance.pinned() if name.startswith(OTHER_PIN) and name != besides)[::-1]:
        fd = instance.open(name)
        if fd is not None:
            with bpf.closing(fd), suppress(FileNotFoundError):
                maps.delete_one(maps.describe(fd), _FIRST)
        instance.unpin(name)
