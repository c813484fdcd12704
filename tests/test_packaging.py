# SPDX-License-Identifier: Apache-2.0
"""What a user installs: a wheel that carries the data plane and the schemas, and files that say their licence."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
BPF_LICENCE, LICENCE = "GPL-2.0-only", "Apache-2.0"


def tracked():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    return [CHECKOUT / name for name in names.split("\0") if name]


def test_a_wheel_works_without_the_checkout(tmp_path):
    sources = tmp_path / "sources"
    for path in tracked():
        if path.exists():
            (sources / path.relative_to(CHECKOUT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, sources / path.relative_to(CHECKOUT), follow_symlinks=False)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", tmp_path, sources], check=True, timeout=300)
    (wheel,) = tmp_path.glob("lbctl-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    example = shutil.copytree(CHECKOUT / "examples" / "configs" / "nat-tcp", tmp_path / "nat-tcp")
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    for words in (["validate", example], ["plan", example, "--live", "empty"]):
        done = subprocess.run(
            [sys.executable, "-m", "reconciler.cli.main", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    where = [sys.executable, "-c", "import reconciler; print(reconciler.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site))
    assert "lbctl = reconciler.cli.isolated:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()


def test_every_source_file_says_its_licence():
    for path in tracked():
        if path.suffix in (".py", ".c", ".h", ".sh") or path.name in ("lbctl", "Makefile", "setup", "run"):
            text = path.read_text()
            licence = BPF_LICENCE if path.relative_to(CHECKOUT).parent.name == "bpf" else LICENCE
            assert not text.strip() or f"SPDX-License-Identifier: {licence}\n" in text, path
