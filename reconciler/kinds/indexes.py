# SPDX-License-Identifier: Apache-2.0
"""Rows of maps that belong to interfaces, which the kernel knows by number and people by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from reconciler.kernel.port import Kernel

_GONE = "interface "
"""This word and its number name an interface that is gone; no real name has a space in it."""

_NAME = re.compile(r"(?!\.\.?$)[^/\s\x00-\x1f]{1,15}")


def flaw_of(name: str) -> str:
    """Why a text can't be the name of an interface (dev_valid_name in net/core/dev.c); empty if it can."""
    return "" if _NAME.fullmatch(name) else f"{name!r} is no name of an interface"


def names(kernel: Kernel) -> Mapping[int, str]:
    """The name of each interface, by its number."""
    return {link.index: link.name for link in kernel.links()}


def name_of(index: int, known: Mapping[int, str]) -> str:
    """The name of an interface. One that is gone is named by its number: a row may outlive its interface."""
    return known.get(index, f"{_GONE}{index}")


def is_gone(name: str) -> bool:
    """Whether a name stands for an interface that the node no longer has."""
    return name.startswith(_GONE)


def index_of(name: str, known: Mapping[int, str]) -> int | None:
    """The reverse of `name_of`; None if there is no such interface."""
    if is_gone(name):
        return int(name.removeprefix(_GONE))
    return next((index for index, found in known.items() if found == name), None)
