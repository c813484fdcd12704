# SPDX-License-Identifier: Apache-2.0
"""The VRRP daemon keepalived of this machine: its configuration file, and the file that it adds to its priority.

Our file begins with a mark, and any other is left alone. The daemon reads it again when it gets SIGHUP, and follows
the tracked file by inotify. With `--netns NAME`, the daemon of that namespace has its file in /etc/keepalived/NAME,
and its process number in /run/keepalived/NAME.pid (`keepalived -f …, -p …`). See keepalived.conf(5).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from reconciler import children, private
from reconciler.errors import FilesError, ForeignError, KernelError

DIRECTORY = Path("/etc/keepalived")
PROCESS = Path("/run/keepalived.pid")
TRACKED = "vrrp"
"""The name of the tracked file in the directory of an instance."""
PLACE = "(tracked file)"
"""Stands in a configuration for the path of that file."""

_MARK = "# lbctl "
_TIMEOUT_S = 30.0


def path(netns: str) -> Path:
    """The configuration file."""
    return DIRECTORY / netns / "keepalived.conf"


def is_running(netns: str) -> bool:
    """Whether a daemon runs that reads this file."""
    return _process(netns) is not None


def running(netns: str, instance_dir: Path) -> tuple[str | None, str]:
    """Our configuration, None if there is none; and of a file that is not ours, what it is. Raises KernelError."""
    try:
        text = path(netns).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        raise _refused(path(netns), error) from error
    first, _, rest = text.partition("\n")
    if first.startswith(_MARK) and not rest.strip():
        return None, ""  # what is left while a daemon that had one runs on
    if first != _mark(instance_dir):
        return None, f"the file {path(netns)}"
    return rest.replace(str(instance_dir / TRACKED), PLACE), ""


def load(netns: str, instance_dir: Path, text: str | None, *, adopts: bool = False) -> None:
    """Have the daemon work by a configuration, after it has checked that; None: by none, and it gives up all shared
    addresses. `adopts`: a file of others is put aside, and is back in its place after the configuration. Raises
    KernelError, ForeignError; then the former one is in force."""
    held, other = running(netns, instance_dir)
    if other and not adopts:
        hint = "move it away, leave VRRP to it, or lbctl apply --adopt"
        raise ForeignError(f"{path(netns)} is not lbctl's", hint=hint)
    if text is None and held is None:
        return
    aside = path(netns).with_suffix(".conf.before-lbctl")
    whole = f"{_mark(instance_dir)}\n{(text or '').replace(PLACE, str(instance_dir / TRACKED))}"
    if text is not None:
        _check(whole)
    try:
        path(netns).parent.mkdir(parents=True, exist_ok=True)
        if other:
            shutil.copy2(path(netns), aside)
        is_back = text is None and aside.exists()
        if is_back:
            aside.rename(path(netns))
        else:
            _put(path(netns), whole)
        process = _process(netns)
        if process is not None:
            os.kill(process, signal.SIGHUP)
        elif text is None and not is_back:
            path(netns).unlink()
    except OSError as error:
        raise _refused(path(netns), error) from error


def weight(instance_dir: Path) -> int | None:
    """What the daemon adds to its priority; None if nobody said so yet, or something else than a number."""
    try:
        return int(private.read(instance_dir / TRACKED) or b"")
    except ValueError:
        return None
    except FilesError as error:
        raise KernelError(error.message, hint=error.hint) from error


def set_weight(instance_dir: Path, value: int) -> None:
    """Raises KernelError."""
    try:
        private.make_directory(instance_dir)
        private.write(instance_dir / TRACKED, f"{value}\n".encode())
    except FilesError as error:
        raise KernelError(error.message, hint=error.hint) from error


def _mark(instance_dir: Path) -> str:
    return f"{_MARK}{instance_dir}: edits by hand are lost"


def _check(text: str) -> None:
    """Have the daemon look through a configuration. Raises KernelError if it complains, or isn't there."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="lbctl-vrrp-") as file:
        file.write(text)
        file.flush()
        log = Path(f"{file.name}.log")
        try:
            argv = ["keepalived", f"--config-test={log}", "-f", file.name]
            done = children.run(argv, timeout_s=_TIMEOUT_S)
            said = log.read_text(encoding="utf-8", errors="replace") if done.returncode and log.exists() else ""
        except FileNotFoundError:
            raise KernelError("there is no keepalived here", hint="apt install keepalived") from None
        except subprocess.TimeoutExpired:
            raise KernelError(f"keepalived has not looked through its file in {_TIMEOUT_S:g} s") from None
        finally:
            log.unlink(missing_ok=True)
    if done.returncode:
        said = (said.strip() or done.stderr.decode("utf-8", "replace").strip() or "no reason").splitlines()[0]
        raise KernelError(f"keepalived refuses the configuration: {said}")


def _put(target: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o644)
            file.write(text)
        Path(name).rename(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _process(netns: str) -> int | None:
    """The number of the daemon's process; None if none runs."""
    file = PROCESS.with_suffix("") / f"{netns}.pid" if netns else PROCESS
    with contextlib.suppress(OSError, ValueError):
        number = int(file.read_text(encoding="ascii"))
        if Path(f"/proc/{number}/comm").read_text(encoding="utf-8", errors="replace").strip() == "keepalived":
            return number
    return None


def _refused(file: Path, error: OSError) -> KernelError:
    return KernelError(f"can't use {file}: {error.strerror}", hint="keepalived is configured by root alone")
