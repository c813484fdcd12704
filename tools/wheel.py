# SPDX-License-Identifier: Apache-2.0
"""Builds what is installed: the package under its own name, without what only a checkout needs.

In a checkout the package is the folder `reconciler/`. An installation shares its names with all other packages, and
`reconciler` could be anybody's, so there it is `lbctl`: this hook of hatchling copies the sources with that name put
in the place of the other. An editable installation, for developers, uses the checkout as it is.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OURS, INSTALLED = "reconciler", "lbctl"
_NAME = re.compile(rf"\b{OURS}\b")
LEFT_OUT = ("lab", "docs.py", "kernel/fake.py", "kernel/fake_frr.py", "kernel/faulty.py")
"""Topologies in namespaces, the generator of pages, kernels in memory: a node runs none of these."""


def renamed(root: Path, target: Path) -> None:
    """Copy the package to `target`, its name replaced in every module."""
    source = root / OURS
    left_out = {source / name for name in LEFT_OUT}
    for path in sorted(source.rglob("*.py")):
        if left_out.isdisjoint((path, *path.parents)):
            made = target / path.relative_to(source)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(_NAME.sub(INSTALLED, path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in ("bpf", "schema"):
        shutil.copytree(root / name, target / "_data" / name)


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """What hatchling calls."""

    _made: str = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self._made = tempfile.mkdtemp(prefix="lbctl-wheel-")
        renamed(Path(self.root), Path(self._made) / INSTALLED)
        build_data["force_include"][f"{self._made}/{INSTALLED}"] = INSTALLED

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._made:
            shutil.rmtree(self._made)
