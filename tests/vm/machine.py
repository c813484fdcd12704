# SPDX-License-Identifier: Apache-2.0
"""A virtual machine that runs one command on Debian's kernel, with the host's files below it.

The guest sees every file of the host, at the same path, and can change none: what it writes is in its memory
only. The exception is .vm in the checkout, where exit code and compiled programs come out. The processor is
emulated in software (qemu's TCG), so that this works in any container that has no /dev/kvm.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from reconciler.errors import LbctlError
from tests.vm.initramfs import initramfs

CHECKOUT = Path(__file__).resolve().parents[2]
STORE = CHECKOUT / ".vm"
KERNEL = STORE / "kernel"

_BOOT_LIMIT_S = 900
_RUN_LIMIT_S = 5400
_CONSOLE_LINES = 60
_HERE = Path(__file__).parent

_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic"
    # What costs time and proves nothing here.
    " mitigations=off nokaslr random.trust_cpu=on tsc=reliable"
)


class MachineError(LbctlError):
    """The machine did not come up, or ended before its command did."""


def release() -> str:
    """The release of the guest's kernel, as `uname -r` says it there."""
    (modules,) = (KERNEL / "lib/modules").iterdir()
    return modules.name


def run(argv: Sequence[str], environment: Mapping[str, str], system: Path | None = None) -> int:
    """Boot, run a command in the checkout, show what it prints as it comes; returns its exit code.

    With a `system`, a directory below STORE, the guest's files are those, systemd starts it, and the checkout is there
    read-only. Raises MachineError, with the last lines of the console, if there is no exit code in time.
    """
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), *argv]
    with tempfile.TemporaryDirectory(prefix="run-", dir=STORE) as directory:
        report = Path(directory)
        settings = {"CHECKOUT": str(CHECKOUT), "REPORT": directory, "COMMAND": shlex.join(command)}
        settings["SYSTEM"] = str(system or "")
        modules = KERNEL / "lib/modules" / release()
        image = initramfs(KERNEL / "bin/busybox", modules, _HERE / "init.sh", settings)
        (report / "initramfs").write_bytes(image)
        _watch(_start(report), report)
        try:
            return int((report / "exit-code").read_text())
        except FileNotFoundError:
            raise MachineError(f"the virtual machine ended before its tests did\n{_console(report)}") from None


def _start(report: Path) -> subprocess.Popen[bytes]:
    argv = [
        "setpriv", "--pdeathsig", "KILL",  # It must not outlive us.
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3G",
        "-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(report / "initramfs"), "-append", _KERNEL_ARGUMENTS,
        "-serial", f"file:{report / 'console'}", "-serial", "stdio",
        "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
        "-fsdev", f"local,id=results,path={STORE},security_model=none",
        "-device", "virtio-9p-pci,fsdev=results,mount_tag=results",
    ]  # fmt: skip
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
    )


def _watch(machine: subprocess.Popen[bytes], report: Path) -> None:
    """Wait until the machine has ended. Raises MachineError when it takes too long."""
    assert machine.stdout
    shower = threading.Thread(target=_show, args=(machine.stdout,))
    shower.start()
    started = time.monotonic()
    try:
        while not (report / "up").exists():
            if machine.poll() is not None:
                raise MachineError(f"the virtual machine does not boot\n{_console(report)}")
            if time.monotonic() - started > _BOOT_LIMIT_S:
                raise MachineError(f"the virtual machine has not booted in {_BOOT_LIMIT_S} s\n{_console(report)}")
            time.sleep(0.05)
        say(f"It is up after {time.monotonic() - started:.0f} s")
        machine.wait(_RUN_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise MachineError(f"the tests have not ended in {_RUN_LIMIT_S} s\n{_console(report)}") from None
    finally:
        machine.kill()
        machine.wait()
        shower.join()


def _show(stream: IO[bytes]) -> None:
    while chunk := os.read(stream.fileno(), 65_536):
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()


def _console(report: Path) -> str:
    try:
        lines = (report / "console").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join(["--- the end of its console ---", *lines[-_CONSOLE_LINES:]])


def say(text: str) -> None:
    """A line of progress."""
    print(f"\033[1m==>\033[0m {text}" if sys.stdout.isatty() else f"==> {text}", flush=True)
