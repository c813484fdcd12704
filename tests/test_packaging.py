# SPDX-License-Identifier: Apache-2.0
"""What a user installs: a wheel that carries the data plane and the schemas, and files that say their licence."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
            [sys.executable, "-m", "lbctl.cli.main", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    where = [sys.executable, "-c", "import lbctl; print(lbctl.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site))
    installed = {str(path.relative_to(site)) for path in site.rglob("*")}
    assert "lbctl-0.1.0.data/scripts/lbctl" in installed
    assert not any("reconciler" in name for name in installed)
    assert installed.isdisjoint({"lbctl/lab", "lbctl/kernel/fake.py", "lbctl/kernel/faulty.py", "lbctl/docs.py"})
    assert {"lbctl/_data/bpf/balancer.c", "lbctl/_data/schema/output/status.v1.json"} <= installed
    # What is left out is missed by nobody: every module can be imported.
    names = [".".join(path.relative_to(site).with_suffix("").parts) for path in (site / "lbctl").rglob("*.py")]
    apart = {"lbctl.kernel.compile_child", "lbctl.config.render_child"}  # programs of their own, one needs bcc
    text = "; ".join(f"import {name}" for name in sorted(names) if name not in apart and "__" not in name)
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=environment, check=True, timeout=60)


def test_the_command_of_an_installation_runs_the_installed_package_isolated(tmp_path):
    package = tmp_path / "lbctl" / "cli"
    package.mkdir(parents=True)
    shutil.copyfile(CHECKOUT / "reconciler" / "cli" / "isolated.py", package / "isolated.py")
    (package / "main.py").write_text("import sys; print(sys.flags.isolated, sys.argv[1:])")
    code = "from lbctl.cli import isolated; print(isolated.command(['a']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip().endswith("'-I', '-m', 'lbctl.cli.main', 'a']")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_the_unit_is_valid_and_exposes_little():
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=30", CHECKOUT / "packaging" / "lbctl.service"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unknown" not in done.stderr and "Failed to parse" not in done.stderr


def test_the_unit_has_the_capabilities_of_the_container_and_says_why():
    unit = (CHECKOUT / "packaging" / "lbctl.service").read_text()
    given = {name for line in unit.splitlines() if line.startswith("AmbientCapabilities=") for name in
             line.partition("=")[2].split()}  # fmt: skip
    bound = next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")).partition("=")[2]
    container = (CHECKOUT / "packaging" / "Containerfile").read_text()
    assert given == set(bound.split()) == {f"CAP_{name}" for name in re.findall(r"--cap-add (\w+)", container)}
    comments = " ".join(line for line in unit.splitlines() if line.startswith("#"))
    assert all(f"{name}:" in comments or f"{name}," in comments for name in given)


@pytest.mark.parametrize("name", ["prepare", "postinst", "prerm", "postrm"])
def test_scripts_of_the_package_are_shell(name):
    subprocess.run(["sh", "-n", CHECKOUT / "packaging" / name], check=True, timeout=60)


def test_the_directory_of_an_instance_is_no_place_for_links(tmp_path):
    script = (CHECKOUT / "packaging" / "prepare").read_text().replace("/run/lbctl", str(tmp_path / "run"))
    (tmp_path / "prepare").write_text(script)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "default").symlink_to("/etc")
    for words in (["default"], [".."], ["a/b"], [""], ["-x"]):
        done = subprocess.run(["sh", tmp_path / "prepare", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 2) and "prepare: " in done.stderr, words


SCRIPTS = ("lbctl", "Makefile", "setup", "run", "prepare", "postinst", "prerm", "postrm", "command")


def test_every_source_file_says_its_licence():
    for path in tracked():
        if path.suffix in (".py", ".c", ".h", ".sh") or path.name in SCRIPTS:
            text = path.read_text()
            licence = BPF_LICENCE if path.relative_to(CHECKOUT).parent.name == "bpf" else LICENCE
            assert not text.strip() or f"SPDX-License-Identifier: {licence}\n" in text, path
