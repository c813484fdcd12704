# SPDX-License-Identifier: Apache-2.0
"""What was before we changed it: values of kernel settings, and offloads of interfaces. Nothing can be marked there,
so it is written down."""

from __future__ import annotations

import json
import os

from reconciler import private
from reconciler.errors import FilesError, KernelError
from reconciler.kernel.instance import Instance
from reconciler.kernel.offloads import parse_former
from reconciler.kernel.sysctl import is_known

ON = "on"


class Ledger:
    """The former values, in a file of the instance. They are gone after a reboot, and so are the changes. An offload
    that was changed was on."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._path = instance.directory / "former.json"

    def values(self) -> dict[str, str]:
        """Name → former value. KernelError if the file can't be read."""
        try:
            return _checked(json.loads(private.read(self._path) or b"{}"))
        except (FilesError, ValueError) as error:
            why = error.message if isinstance(error, FilesError) else f"{self._path}: {error}"
            raise KernelError(
                f"can't read the former values of kernel settings: {why}",
                hint="after removing the file, lbctl no longer restores them",
            ) from error

    def put(self, name: str, former: str) -> None:
        """Write down a setting's former value. KernelError if lbctl never changes this setting, or if that fails."""
        if not _is_known(name, former):
            hint = "the settings stand in kernel/sysctl.py"
            raise KernelError(f"lbctl never sets {name!r} to {former!r}", hint=hint)
        with self._instance.locked():
            self._write(self.values() | {name: former})

    def drop(self, name: str) -> None:
        """Forget a setting; no error if it is not written down. Raises KernelError."""
        if name not in self.values():
            return
        with self._instance.locked():
            left = {key: value for key, value in self.values().items() if key != name}
            if not left:
                self.discard()
                return
            try:
                self._write(left)
            except KernelError:  # a full disk: there is no room for another file, but in this one there is
                self._overwrite(left)

    def _overwrite(self, values: dict[str, str]) -> None:
        """Write fewer values into the existing file."""
        try:
            with self._path.open("r+b") as file:
                file.write(_text(values).ljust(os.fstat(file.fileno()).st_size))
        except OSError as error:
            raise KernelError(f"can't write {self._path}: {error.strerror}") from error

    def discard(self) -> None:
        """Forget all settings. Raises KernelError."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise KernelError(f"can't remove {self._path}: {error.strerror}") from error

    def _write(self, values: dict[str, str]) -> None:
        try:
            private.write(self._path, _text(values))
        except FilesError as error:
            raise KernelError(error.message, hint=error.hint) from error


def _text(values: dict[str, str]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode()


def _checked(content: object) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError("not an object of texts")
    if strange := [name for name, value in content.items() if not _is_known(name, value)]:
        raise ValueError(f"it holds a setting that lbctl never changes: {strange[0]!r}")
    return content


def _is_known(name: str, value: str) -> bool:
    return value == ON if parse_former(name) else is_known(name, value)
