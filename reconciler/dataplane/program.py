# SPDX-License-Identifier: Apache-2.0
"""The name of a build of the data plane, made from its source and the features that the node's manifests use.

The kernel keeps 15 characters of a program's name. They carry our mark and the digest, so the name of an attached
program shows whether it is ours and whether it is the one that the manifests ask for.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from reconciler.dataplane.stages import stages_of
from reconciler.paths import data_dir

NAME_PREFIX = "lbctl_"
DECAPSULATE = "DECAPSULATE"
"""The feature that selects another program: that of endpoints whose kernel can't unpack tunnels."""
MARK = "MARK"
"""The feature that selects the program at the prober's side of its veth, for TC."""
ALLOWED_SOURCES = "ALLOWED_SOURCES"
"""The feature of programs that ask who may use a service."""
STATELESS = "STATELESS"
"""The feature of programs that know nat without memory."""
AFFINITY = "AFFINITY"
"""The feature of programs that remember which endpoint a client had."""
MAIN_FILE = "balancer.c"

_ENTRY = "lbctl_balance"
_OTHERS = {DECAPSULATE: ("decap.c", "lbctl_decapsulate"), MARK: ("mark.c", "lbctl_mark")}
"""Features that select another program: its main file and its function."""

_INCLUDE = re.compile(r'^#include "([^"]+)"$')
_ASKED_FOR = re.compile(r"\bHAS\((\w+)\)")
_FEATURE = re.compile(r"[A-Z][A-Z0-9_]*")


def main_file(features: Collection[str]) -> str:
    """The file of bpf/ that the program with these features begins with."""
    return next((file for feature, (file, _) in _OTHERS.items() if feature in features), MAIN_FILE)


def entry(features: Collection[str]) -> str:
    """The function that packets enter by."""
    return next((function for feature, (_, function) in _OTHERS.items() if feature in features), _ENTRY)


@functools.cache
def source(directory: Path | None = None, main: str = MAIN_FILE) -> str:
    """The whole source as one text: the file `main` of `directory` (None: bpf/), its headers pasted in.

    BCC translates map accesses in the main file only: if an included header uses maps, the program compiles, but the
    kernel refuses it. The #line marks make the compiler's messages name the right file and line.
    Raises FileNotFoundError.
    """
    bpf = directory or data_dir("bpf")
    lines: list[str] = []
    for number, line in enumerate((bpf / main).read_text(encoding="utf-8").splitlines(), start=1):
        if header := _INCLUDE.match(line):
            lines += [f'#line 1 "{header[1]}"', (bpf / header[1]).read_text(encoding="utf-8").rstrip("\n")]
            lines.append(f'#line {number + 1} "{main}"')
        else:
            lines.append(line)
    return "\n".join([f'#line 1 "{main}"', *lines, ""])


def program_name(features: Collection[str]) -> str:
    """The name of the program with these features, e.g. `lbctl_3f9a12bc0`: 15 characters, all that fit.

    Features that the source never tests change neither the program nor its name.
    """
    text = source(main=main_file(features))
    digest = _hashed(text).copy()
    digest.update(repr(sorted(_asked_for(text).intersection(features))).encode())
    digest.update(repr(stages_of(features)).encode())
    return (NAME_PREFIX + digest.hexdigest())[:15]


def is_built_of(name: str, features: Collection[str]) -> bool:
    """Whether the program of this name is the one with these features, and all of them are names of features."""
    return all(map(_FEATURE.fullmatch, features)) and program_name(features) == name


@functools.cache
def _hashed(text: str) -> hashlib._Hash:
    return hashlib.sha256(text.encode())


@functools.cache
def _asked_for(text: str) -> frozenset[str]:
    """The features that a source asks for: bpf/features.h."""
    return frozenset(_ASKED_FOR.findall(text))


def is_ours(name: str) -> bool:
    """Whether a program of this name was loaded by lbctl."""
    return name.startswith(NAME_PREFIX)
