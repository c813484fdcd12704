# SPDX-License-Identifier: Apache-2.0
"""Which node, instance and machine a plan is for: a saved one must not be carried out elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Which node, instance and machine a plan is for. A plan that was made from a snapshot knows only the node."""

    node: str
    instance: str = ""
    host: str = ""
    layout: str = ""
    """The digest of the maps' layout that the version of lbctl knows which made the plan."""

    def difference(self, here: Target) -> str:
        """The difference from the present target, e.g. `node lb1, and this is lb2`; empty if there is none."""
        for what, own, theirs in (
            ("node", self.node, here.node),
            ("instance", self.instance, here.instance),
            ("host", self.host, here.host),
            ("layout", self.layout, here.layout),
        ):
            if own and theirs and own != theirs:
                return f"{what} {own}, and this is {theirs}"
        return ""

    def __str__(self) -> str:
        known = (("node", self.node), ("instance", self.instance), ("host", self.host),
                 ("layout", self.layout))  # fmt: skip
        return ", ".join(f"{what} {name}" for what, name in known if name)
