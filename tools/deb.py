# SPDX-License-Identifier: Apache-2.0
"""Makes the Debian package: `make deb`, or `.venv/bin/python tools/deb.py --debian 13`.

What Debian has in the needed version is a dependency; the few libraries that it lacks lie in /usr/lib/lbctl beside the
package, as wheels with the hashes of requirements.lock. So nothing is compiled, here or when it is installed.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ROOT / "packaging"
BROUGHT_ALONG = ("jsonschema-rs", "msgspec", "pyroute2", "watchdog")
PYTHONS = {"12": "3.11", "13": "3.13"}
"""Debian's version → its Python's."""
PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}

_CONTROL = """\
Package: lbctl
Version: {version}
Section: net
Priority: optional
Architecture: {architecture}
Maintainer: lbctl maintainers <lbctl@invalid>
Installed-Size: {size_kib}
Depends: python3 (>= {python}), python3 (<< {next_python}), python3-yaml, python3-jinja2, python3-numpy, libbpf1,
 libatomic1
Recommends: python3-bpfcc, git, linux-headers-{architecture}
Suggests: git
Description: GitOps for a layer-4 load balancer in the Linux kernel
 Keeps a node of a load balancer in XDP/eBPF as a directory of YAML says: VIPs,
 services, pools of endpoints. Shows what a change would do to live traffic,
 makes it without dropping a connection, and mends what drifts.
 .
 The recommended packages are needed where the data plane is compiled, which is
 once for each set of features; not where a compiled one is in the cache.
"""


def main() -> None:
    """Build one package into dist/, and print its name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", choices=tuple(PYTHONS), default="12")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
        version = _wheel(Path(name), tree / "usr/lib/lbctl")
        _libraries(tree / "usr/lib/lbctl", args.debian, PLATFORMS[architecture])
        _texts(tree)
        _files(tree, version)
        full = f"{version}~deb{args.debian}"
        _control(tree, full, architecture, PYTHONS[args.debian])
        args.out.mkdir(parents=True, exist_ok=True)
        made = args.out / f"lbctl_{full}_{architecture}.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(made)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(made)


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True)


def _wheel(work: Path, target: Path) -> str:
    """Build the wheel and unpack it; the version."""
    sources = work / "sources"
    names = subprocess.check_output(["git", "-C", str(ROOT), "ls-files", "-z"], text=True).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, sources / name, follow_symlinks=False)
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(work), str(sources))
    (wheel,) = work.glob("lbctl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target, [name for name in archive.namelist() if name.startswith("lbctl/")])
    return wheel.name.split("-")[1]


def _libraries(target: Path, debian: str, machine: str) -> None:
    """What Debian lacks, with the hashes of the lock."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    wanted = [found[0] for name in BROUGHT_ALONG
              if (found := re.search(rf"^{name}==.*?(?<!\\)\n", lock, re.MULTILINE | re.DOTALL))]  # fmt: skip
    assert len(wanted) == len(BROUGHT_ALONG)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.writelines(wanted)
        requirements.flush()
        tags = [f"manylinux{libc}_{machine}" for libc in ("_2_28", "_2_17", "2014")]
        platforms = [word for tag in tags for word in ("--platform", tag)]
        _pip("install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-compile", *platforms,
             "--python-version", PYTHONS[debian], "--implementation", "cp", "--target", str(target),
             "-r", requirements.name)  # fmt: skip
    shutil.rmtree(target / "bin", ignore_errors=True)


def _texts(tree: Path) -> None:
    """The manual page and the completions, made from the parser."""

    def said(*words: str) -> str:
        return subprocess.check_output([sys.executable, "-m", *words], text=True, cwd=ROOT)

    manual = tree / "usr/share/man/man8/lbctl.8.gz"
    manual.parent.mkdir(parents=True)
    manual.write_bytes(gzip.compress(said("reconciler.cli.manual").encode(), mtime=0))
    for shell, path in (("bash", "bash-completion/completions/lbctl"), ("zsh", "zsh/vendor-completions/_lbctl"),
                        ("fish", "fish/vendor_completions.d/lbctl.fish")):  # fmt: skip
        made = tree / "usr/share" / path
        made.parent.mkdir(parents=True)
        made.write_text(said("reconciler.cli.main", "completion", shell), encoding="utf-8")


def _files(tree: Path, version: str) -> None:
    places = {
        "command": ("usr/bin/lbctl", 0o755),
        "prepare": ("usr/lib/lbctl/prepare", 0o755),
        "lbctl.service": ("lib/systemd/system/lbctl.service", 0o644),
        "lbctl.default": ("etc/default/lbctl", 0o644),
        "lbctl.sysusers": ("usr/lib/sysusers.d/lbctl.conf", 0o644),
    }
    for name, (path, mode) in places.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGING / name, tree / path)
        (tree / path).chmod(mode)
    (tree / "etc/lbctl").mkdir()
    documents = tree / "usr/share/doc/lbctl"
    shutil.copytree(ROOT / "examples", documents / "examples")
    shutil.copytree(ROOT / "docs", documents / "docs")
    shutil.copyfile(ROOT / "README.md", documents / "README.md")
    shutil.copyfile(ROOT / "LICENSE", documents / "copyright")
    (documents / "changelog.gz").write_bytes(gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), mtime=0))


def _control(tree: Path, version: str, architecture: str, python: str) -> None:
    directory = tree / "DEBIAN"
    directory.mkdir()
    size = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file())
    major, minor = python.split(".")
    text = _CONTROL.format(
        version=version, architecture=architecture, size_kib=size // 1024, python=python,
        next_python=f"{major}.{int(minor) + 1}",
    )  # fmt: skip
    (directory / "control").write_text(text, encoding="utf-8")
    (directory / "conffiles").write_text("/etc/default/lbctl\n", encoding="utf-8")
    for name in ("postinst", "prerm", "postrm"):
        shutil.copyfile(PACKAGING / name, directory / name)
        (directory / name).chmod(0o755)


if __name__ == "__main__":
    main()
