# SPDX-License-Identifier: Apache-2.0
"""One program takes over from another, some of whose maps are others, while packets come in all the time.

The new maps were filled when the new program was loaded. What the former program wrote since is carried over once more
just before the interfaces change programs, and for the last time just after that. In between, one program alone may
know a connection, so each has the other in its map `other`, and asks it about those that it does not know.

What stands there first is the other main program, by which user space knows it; then come its stages, which are
asked.

These maps stay pinned from their making until their program is no longer used: the kernel empties an array of programs
when its last descriptor or pin goes, and does so at some later time, even if it has been opened again by then (commit
da765a2f5993). If this process is killed, the programs go on asking each other, and the next process that finds one of
them asking ends the takeover.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from reconciler.dataplane.layout import OTHER, OTHER_STAGES, STAGES
from reconciler.dataplane.stages import StageNumber
from reconciler.errors import KernelError
from reconciler.kernel import bpf, generations, holders, maps, stages, xdp
from reconciler.kernel.carrying import CARRIED, Carrier
from reconciler.kernel.generations import Generation
from reconciler.kernel.instance import PROGRAM, Instance
from reconciler.kernel.maps import OpenMap

KEPT = (STAGES, OTHER)
"""The maps with programs in them that stay as long as their main program is used."""

_PIN = re.compile(rf"({'|'.join(spec.name for spec in KEPT)})-([0-9]+)")
"""The pin of such a map; the number is that of its program."""

_ROUNDS = 4
"""How often changes are carried over before the swap, at most: each round has only those to carry that came during the
one before."""
_FEW = 64
"""So few changes take no time worth another round."""
_FIRST = bytes(4)
_NUMBER = struct.Struct("=I")


def is_unfinished(instance: Instance) -> bool:
    """Whether a takeover was begun and not ended."""
    return any(_asked(instance, number) is not None for number in _pinned(instance))


def keep(instance: Instance, program_id: int, name: str, descriptor: int) -> None:
    """Pin a map of a program that is one of KEPT. Only within `instance.mounted()`."""
    instance.pin(descriptor, pin_of(program_id, name))


def keep_on(instance: Instance, generation: Generation) -> None:
    """Pin these maps of a generation whose pins went with their file system. Only within `instance.mounted()`."""
    for spec in KEPT:
        is_pinned = generation.program.id in _pinned(instance, spec.name)
        if not is_pinned and (fd := generation.open(spec.name)) is not None:
            with bpf.closing(fd):
                keep(instance, generation.program.id, spec.name, fd)


def sweep(instance: Instance) -> None:
    """Remove all pins but that of the program, and those of maps of programs that are used."""
    program = holders.pinned_program(instance)
    used = {program.id if program else None, *(held.id for held in xdp.running())}
    for name in instance.pinned():
        found = _PIN.fullmatch(name)
        if name != PROGRAM and not (found and int(found[2]) in used):
            instance.unpin(name)


@contextmanager
def taking_over(instance: Instance) -> Iterator[None]:
    """Within this, interfaces may change from earlier programs of the instance to the pinned one.

    Raises KernelError or OSError before the block if that can't be prepared.
    """
    finish(instance)
    sweep(instance)
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
        passed = stack.enter_context(maps.grace())
        _introduce(instance, new, former[0])
        for _ in range(_ROUNDS):
            if sum(carrier.follow() for carrier in carriers) <= _FEW:
                break
        try:
            yield
        finally:
            _end(instance, new, carriers, passed)


def finish(instance: Instance) -> bool:
    """End a takeover that was cut off; returns whether there was one."""
    if not is_unfinished(instance):
        return False
    program = holders.pinned_program(instance)
    new = generations.of_program(program) if program else None
    running = {held.id for held in xdp.running()}
    with ExitStack() as stack:
        former = _noted(instance, new) if new else None
        carriers = list(_carriers(former, new, stack)) if new and former and former.program.id not in running else []
        _end(instance, new, carriers, stack.enter_context(maps.grace()))
    return True


def _end(instance: Instance, new: Generation | None, carriers: Sequence[Carrier], passed: Callable[[], None]) -> None:
    """From now on the programs ask nobody; what they wrote since is carried over. The new one is last: by the program
    in its map a later process knows the takeover."""
    numbers = sorted(_pinned(instance), key=lambda number: new is not None and number == new.program.id)
    for number in numbers[:-1]:
        _forget(instance, number)
    passed()  # a driver may go on with the former program for the packets that it had at hand
    for carrier in carriers:
        carrier.finish()
    sweep(instance)
    for number in numbers[-1:]:
        _forget(instance, number)


def _formers(instance: Instance, new: Generation) -> list[Generation]:
    """The generations that run now and have other maps than the new one for what is carried over."""
    found: dict[int, Generation] = {}
    for held in xdp.running():
        if held.program and held.id != new.program.id and holders.are_kin(new.program, held.program):
            generation = generations.of_program(held.program)
            if generation and any(_differs(generation, name, new, to) for name, (to, _) in CARRIED.items()):
                found[held.id] = generation
    return list(found.values())


def _differs(former: Generation, name: str, new: Generation, to: str) -> bool:
    numbers = former.description.ids.get(name), new.description.ids.get(to)
    return None not in numbers and numbers[0] != numbers[1]


def _carriers(former: Generation, new: Generation, stack: ExitStack) -> Iterator[Carrier]:
    def beside(name: str) -> maps.OpenMap:
        opened = _opened(new, name, stack)
        if opened is None:
            raise KernelError(f"the program has no map {name}")
        return opened

    for name, (to, carrier) in CARRIED.items():
        if not _differs(former, name, new, to):
            continue
        source, target = _opened(former, name, stack), _opened(new, to, stack)
        if source and target:
            held, wanted = former.description.maps[name], new.description.maps[to]
            yield carrier(name, source, held, target, wanted, beside)


def _opened(generation: Generation, name: str, stack: ExitStack) -> maps.OpenMap | None:
    fd = generation.open(name)
    if fd is None:
        return None
    return maps.describe(stack.enter_context(bpf.closing(fd)), generation.description.maps[name].type)


def _introduce(instance: Instance, new: Generation, former: Generation) -> None:
    """Let each of the programs ask the other one."""
    if any(OTHER.name not in generation.description.ids for generation in (new, former)):
        return  # it balances nothing that it remembers
    for one, two in ((new, former), (former, new)):
        with instance.mounted():
            keep_on(instance, one)
        if (fd := instance.open(pin_of(one.program.id))) is not None:
            with bpf.closing(fd):
                _tell(maps.describe(fd), two)


def _tell(array: OpenMap, asked: Generation) -> None:
    """Write into a program's map `other` who is asked from now on."""
    programs = stages.numbers(asked)
    if array.shape.capacity <= OTHER_STAGES:  # an early version's, which asks only about NAT over IPv4
        rows = {0: programs.get(StageNumber.NAT4, asked.program.id)}
    else:
        rows = {0: asked.program.id, **{OTHER_STAGES + number: program for number, program in programs.items()}}
    # A version that knows fewer stages has room for these alone, and asks no others.
    rows = {row: number for row, number in rows.items() if row < array.shape.capacity}
    for row, number in rows.items():
        if (fd := bpf.open_program(number)) is not None:
            with bpf.closing(fd):
                maps.update_one(array, _NUMBER.pack(row), _NUMBER.pack(fd))


def _noted(instance: Instance, new: Generation) -> Generation | None:
    """The generation whose program is in the new one's map `other`."""
    number = _asked(instance, new.program.id)
    program = bpf.open_program(number) if number is not None else None
    if program is None:
        return None
    with bpf.closing(program):
        return generations.of_program(bpf.program_info(program))


def _asked(instance: Instance, number: int) -> int | None:
    """The number of the program that a program asks."""
    fd = instance.open(pin_of(number))
    if fd is None:
        return None
    with bpf.closing(fd):
        held = maps.lookup(maps.describe(fd), _FIRST)
        return _NUMBER.unpack(held)[0] if held else None


def _forget(instance: Instance, number: int) -> None:
    """From now on a program asks nobody."""
    fd = instance.open(pin_of(number))
    if fd is not None:
        with bpf.closing(fd):
            array = maps.describe(fd)
            for row in reversed(range(array.shape.capacity)):  # by the first one an unfinished takeover is known
                with suppress(FileNotFoundError):
                    maps.delete_one(array, _NUMBER.pack(row))


def pin_of(program_id: int, name: str = OTHER.name) -> str:
    """The name of the pin of a program's map."""
    return f"{name}-{program_id}"


def _pinned(instance: Instance, of: str = OTHER.name) -> set[int]:
    """The numbers of the programs whose maps `other`, or of this name, are pinned."""
    found = (_PIN.fullmatch(name) for name in instance.pinned())
    return {int(pin[2]) for pin in found if pin and pin[1] == of}
