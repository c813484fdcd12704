# SPDX-License-Identifier: Apache-2.0
"""Kernel settings below /proc/sys.

Names have the form of paths (`net/ipv4/conf/eth0.100/rp_filter`), since names of interfaces may hold dots.
Those below net/ belong to the network namespace of the calling thread.
"""

from __future__ import annotations

import re
from pathlib import Path

from reconciler.errors import KernelError

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
