# SPDX-License-Identifier: Apache-2.0
"""From one node's part of the manifests to the resources that its kernel must hold."""

from __future__ import annotations

from reconciler.kinds import KINDS
from reconciler.resource import Desired, Key, Resource, Span
from reconciler.support import require_supported
from reconciler.view import NodeView


def compile_node(view: NodeView) -> Desired:
    """Every resource that this node must hold, and where each was asked for. Pure. Raises UnsupportedError."""
    require_supported(view)
    resources: dict[Key, Resource] = {}
    origins: dict[Key, Span] = {}
    for kind in (kind for kind in KINDS if view.node.role in kind.roles):
        for resource, origin in kind.desired(view):
            resources[resource.key] = resource
            origins[resource.key] = origin
    return Desired(resources, origins, view.node.name)
