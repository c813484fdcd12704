# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.systemd [--vm] PACKAGE`: boot a bare Debian with systemd, and do there with the package what its
manual says: in a container, on this machine's kernel; with --vm in the virtual machine, on Debian's, which takes far
longer. `make test-systemd` builds the package first, and VM=--vm is for the latter.

A second package is made here: a later version whose maps have another layout, to upgrade to under traffic, and to come
back from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from reconciler.errors import LbctlError
from reconciler.lab.lab import signals_as_exit
from tests.deb.system import CHECKOUT, STORE, base, say
from tests.lab.versions import WIDER, Edits
from tests.systemd import container
from tests.vm import machine

CODENAME = "bookworm"
LATER: Edits = {"reconciler/version.py": [('VERSION = "0.1.0"', 'VERSION = "0.2.0"')], **WIDER}


def main(package: Path, *, is_vm: bool) -> int:
    assert os.geteuid() == 0, "this needs root: files of the guest belong to users of its own"
    packages = STORE / "packages"
    shutil.rmtree(packages, ignore_errors=True)
    packages.mkdir(parents=True)
    shutil.copy(package, packages)
    _wheels(packages)
    _later(packages)
    system = _unpacked(base(CODENAME))
    command = [sys.executable, "-u", "-m", "tests.systemd.guest", str(packages)]
    if not is_vm:
        say("Booting Debian with systemd in a container")
        return container.run(command, system)
    say("Booting Debian with systemd under software emulation")
    return machine.run(command, {"PYTHONDONTWRITEBYTECODE": "1"}, system)


def _wheels(packages: Path) -> None:
    """Make the wheel, and fetch those that it needs."""
    say("Making the wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", packages, CHECKOUT], check=True)
    [wheel] = packages.glob("*.whl")
    subprocess.run([*pip, "download", "-d", packages / "wheels", wheel], check=True)


def _later(packages: Path) -> None:
    """Make the package of a later version: this one with edits."""
    with tempfile.TemporaryDirectory() as name:
        names = subprocess.check_output(["git", "-C", str(CHECKOUT), "ls-files", "-z"], text=True).split("\0")
        for each in filter(None, names):
            (Path(name) / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / each, Path(name) / each, follow_symlinks=False)
        for each, changes in LATER.items():
            path = Path(name) / each
            text = path.read_text(encoding="utf-8")
            for before, after in changes:
                assert text.count(before) == 1, (each, before)
                text = text.replace(before, after)
            path.write_text(text, encoding="utf-8")
        for words in (("init", "-q"), ("add", "-A")):
            subprocess.run(["git", "-C", name, *words], check=True)
        say("Making the package of a later version")
        subprocess.run([sys.executable, f"{name}/tools/deb.py", "--out", str(packages)], check=True)


def _unpacked(archive: Path) -> Path:
    """The system as a directory, which the guest sees and can't change."""
    system = STORE / "systems" / archive.stem
    stamp = system / "unpacked"
    if not stamp.exists() or stamp.stat().st_mtime < archive.stat().st_mtime:
        say("Unpacking it")
        subprocess.run(["rm", "-rf", "--one-file-system", str(system)], check=True)
        system.mkdir(parents=True)
        subprocess.run(["tar", "-xf", str(archive), "-C", str(system), "--exclude=./dev/*"], check=True)
        stamp.touch()
    return system


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    try:
        with signals_as_exit():
            *options, package = sys.argv[1:]
            sys.exit(main(Path(package), is_vm=options == ["--vm"]))
    except LbctlError as error:
        sys.exit(str(error))
