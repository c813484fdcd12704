# SPDX-License-Identifier: Apache-2.0
"""Kernel settings below /proc/sys, and their values before we changed them.

Names have the form of paths (`net/ipv4/conf/eth0.100/rp_filter`), since names of interfaces may hold dots.
Those below net/ belong to the network namespace of the calling thread.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from reconciler import private
from reconciler.errors import FilesError, KernelError
from reconciler.kernel.instance import Instance

_ROOT = Path("/proc/sys")
_KNOWN = re.compile(
    r"net/ipv4/(?:ip_forward|fib_multipath_hash_policy)|net/ipv[46]/conf/(?!\.\.?/)[^/\0]{1,15}/"
    r"(forwarding|disable_ipv6|send_redirects|accept_local|rp_filter|arp_ignore|arp_announce|proxy_ndp)"
)
"""Every setting that lbctl ever changes. Root restores former values from a file, so other names in it are refused."""
_VALUE = re.compile(r"-?[0-9]{1,10}")


def is_known(name: str, value: str = "0") -> bool:
    """Whether lbctl may set a setting of this name to this value."""
    return bool(_KNOWN.fullmatch(name) and _VALUE.fullmatch(value))


def read(name: str) -> str | None:
    """The value of a setting, None if the kernel has none of this name. KernelError if it can't be read."""
    try:
        return _path(name).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError(f"can't read the setting {name}: {error.strerror}") from error


def write(name: str, value: str) -> None:
    """Change a setting. KernelError if there is none of this name or the kernel refuses the value."""
    _check(name, value)
    try:
        _path(name).write_text(value, encoding="utf-8")
    except FileNotFoundError as error:
        raise KernelError(f"the kernel has no setting {name}", hint="does the interface exist?") from error
    except OSError as error:
        raise KernelError(f"can't set {name} to {value!r}: {error.strerror}") from error


def _path(name: str) -> Path:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise KernelError(f"not the name of a setting: {name!r}")
    return _ROOT / name


def _check(name: str, value: str) -> None:
    if not is_known(name, value):
        raise KernelError(f"lbctl never sets {name!r} to {value!r}", hint="the settings stand in kernel/sysctl.py")


class Ledger:
    """The former values, in a file of the instance. They are gone after a reboot, and so are the changes."""

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
        _check(name, former)
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
    if strange := [name for name, value in content.items() if not is_known(name, value)]:
        raise ValueError(f"it holds a setting that lbctl never changes: {strange[0]!r}")
    return content
