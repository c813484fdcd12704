# SPDX-License-Identifier: Apache-2.0
"""Kinds of live objects, one file each. A new file with a `KIND` is all it takes to add one."""

from __future__ import annotations

import importlib
import pkgutil

from reconciler.kinds.base import Kind


def _discover() -> tuple[type[Kind], ...]:
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return tuple(sorted((m.KIND for m in modules if hasattr(m, "KIND")), key=lambda kind: kind.phase))


KINDS = _discover()
PHASES = {kind.resource.kind: kind.phase for kind in KINDS}
RESOURCES = {kind.resource.kind: kind.resource for kind in KINDS}
