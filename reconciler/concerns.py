# SPDX-License-Identifier: Apache-2.0
"""Warnings for people about things that lbctl doesn't manage, but that may keep its resources from working."""

from __future__ import annotations

from contextlib import suppress

from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS
from reconciler.resource import Concern, Desired
from reconciler.ways import about_ways


def concerns_of(kernel: Kernel, desired: Desired) -> tuple[Concern, ...]:
    """The concerns of all kinds about this node. If the kernel doesn't answer a question, there is no concern about
    it."""
    found: list[Concern] = []
    for kind in KINDS:
        try:
            found += kind(kernel).concerns(desired.of_kind.get(kind.resource.kind, {}).values())
        except KernelError:
            continue
    with suppress(KernelError):
        found += about_ways(kernel, desired)
    return tuple(sorted(found))
