# SPDX-License-Identifier: Apache-2.0
"""What people are warned of: nothing that lbctl holds, but what may keep from working what it holds."""

from __future__ import annotations

from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS
from reconciler.resource import Concern, Desired, Resource


def concerns_of(kernel: Kernel, desired: Desired) -> tuple[Concern, ...]:
    """The concerns of all kinds about this node. A question that the kernel doesn't answer raises none."""
    wanted: dict[str, list[Resource]] = {}
    for resource in desired.resources.values():
        wanted.setdefault(resource.kind, []).append(resource)
    found: list[Concern] = []
    for kind in KINDS:
        try:
            found += kind(kernel).concerns(wanted.get(kind.resource.kind, []))
        except KernelError:
            continue
    return tuple(sorted(found))
