# SPDX-License-Identifier: Apache-2.0
"""Kernel settings below /proc/sys, and the values that they had before we changed them.

Names have the form of paths (`net/ipv4/conf/eth0.100/rp_filter`), since names of interfaces may hold dots.
Those below net/ belong to the network namespace of the calling thread.
"""

from __future__ import annotations

import json
from pathlib import Path

from reconciler.errors import KernelError
from reconciler.files import write_atomically
from reconciler.kernel.instance import Instance

_ROOT = Path("/proc/sys")


def read(name: str) -> str | None:
    """The value of a setting, None if the kernel has none of this name. KernelError if it can't be read."""
    try:
        return _path(name).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError(f"can't read the setting {name}: {error.strerror}") from error


def write(name: str, value: str) -> None:
    """Change a setting. KernelError if there is none of this name or the kernel refuses the value."""
    try:
        _path(name).write_text(value)
    except FileNotFoundError as error:
        raise KernelError(f"the kernel has no setting {name}", hint="does the interface exist?") from error
    except OSError as error:
        raise KernelError(f"can't set {name} to {value!r}: {error.strerror}") from error


def _path(name: str) -> Path:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"not the name of a setting: {name!r}")
    return _ROOT / name


class Ledger:
    """The former values, in a file of the instance. They are gone after a reboot, and so are the changes."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._path = instance.directory / "former.json"

    def values(self) -> dict[str, str]:
        """Name → former value. KernelError if the file can't be read."""
        try:
            return _checked(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise KernelError(
                f"can't read {self._path}, which holds the former values of kernel settings: {error}",
                hint="after removing it, lbctl no longer restores them",
            ) from error

    def put(self, name: str, former: str) -> None:
        """Write down what a setting was."""
        self._instance.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._instance.locked():
            self._write(self.values() | {name: former})

    def drop(self, name: str) -> None:
        """Forget a setting; no error if it is not written down."""
        if name in self.values():
            with self._instance.locked():
                self._write({key: value for key, value in self.values().items() if key != name})

    def _write(self, values: dict[str, str]) -> None:
        write_atomically(self._path, json.dumps(values, indent=1, sort_keys=True).encode())


def _checked(content: object) -> dict[str, str]:
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        return content
    raise ValueError("not an object of texts")
