# SPDX-License-Identifier: Apache-2.0
"""Interfaces that lose packets although the right program is attached to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from reconciler.kernel.port import Kernel
from reconciler.resource import Concern, Key


def about_veths(kernel: Kernel, native: Collection[Key]) -> Iterator[Concern]:
    """`native` are the interfaces that a program sends from in native mode."""
    far_ends = kernel.far_ends([key.id for key in native])
    for key in native:
        if not far_ends.get(key.id, True):
            yield Concern(
                key,
                f"{key.id} is a veth, and its far end is not seen to run a native XDP program: then packets that "
                "native XDP sends out there vanish, though they count as forwarded",
                "leave `xdp` out, or say `xdp: generic`; or let the far end run a native program that passes all",
            )


def about_links(kernel: Kernel, attached: Collection[Key]) -> Iterator[Concern]:
    """`attached` are the interfaces that a program runs on."""
    links = {link.name: link for link in kernel.links()}
    names = {link.index: name for name, link in links.items()}
    for key in attached:
        link = links.get(key.id)
        if link is None:
            continue
        if not link.is_up:
            hint = f"ip link set {key.id} up"
            yield Concern(key, f"{key.id} is down: no packet comes in or leaves by it", hint)
        if link.master is not None:
            master = names.get(link.master, "another interface")
            yield Concern(
                key,
                f"{key.id} is a port of {master}: to the kernel, packets come in by that one, whose settings "
                "lbctl doesn't manage",
                f"name {master} in the manifests in place of its ports",
            )
