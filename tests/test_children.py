# SPDX-License-Identifier: Apache-2.0
"""A checkout is data: no Python file in the current directory, nor any that a variable points to, is ever run."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler import children
from reconciler.config.overlay import rendered
from reconciler.config.source import read_tree

CHECKOUT = Path(__file__).resolve().parents[1]
MODULES = (
    "json", "struct", "os", "runpy", "argparse", "yaml", "bcc", "jinja2", "encodings",
    "sitecustomize", "usercustomize",
)  # fmt: skip
VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "HOME")


@pytest.fixture
def traps(tmp_path, monkeypatch):
    """A directory with a Python file for whatever an interpreter may look for; each leaves a file when it is run."""
    folder, caught = tmp_path / "manifests", tmp_path / "caught"
    shutil.copytree(CHECKOUT / "examples" / "configs" / "nat-tcp", folder)
    caught.mkdir()
    caught.chmod(0o777)
    user_site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for directory in (folder, user_site):
        for name in (*MODULES, "reconciler/__init__", "reconciler/kernel/compile_child", "reconciler/cli/main"):
            file = directory / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"open({str(caught / name.replace('/', '.'))!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    return caught


def set_all_variables(monkeypatch, folder):
    for name in VARIABLES:
        monkeypatch.setenv(name, str(folder / "json.py" if name == "PYTHONSTARTUP" else folder))


def test_a_child_takes_nothing_from_its_surroundings(traps, monkeypatch):
    set_all_variables(monkeypatch, traps.parent / "manifests")
    done = children.run(children.module("reconciler.cli.main", "--help"))
    assert (done.returncode, done.stderr) == (0, b"")
    code = "import os, json; print(json.dumps([os.getcwd(), *os.environ]))"
    shown = children.run([sys.executable, "-I", "-c", code])
    directory, *names = json.loads(shown.stdout)
    assert directory == "/"
    assert {"PATH", "LC_ALL"} <= set(names) <= {"PATH", "LC_ALL", "LC_CTYPE"}
    assert not list(traps.iterdir())


def test_templates_are_rendered_with_nothing_of_their_folder(traps, monkeypatch):
    set_all_variables(monkeypatch, Path.cwd())
    Path("web.yaml.j2").write_text("a: {{ [1] | first }}\n")
    tree = rendered(read_tree(Path()), None)
    assert next(file.text for file in tree.files if file.name == "web.yaml.j2") == "a: 1\n"
    assert not list(traps.iterdir())


@pytest.mark.kernel
def test_the_data_plane_is_compiled_with_nothing_of_the_current_folder(traps, tmp_path, monkeypatch):
    from reconciler.kernel.build import build

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "balancer.c").write_text("int entry(struct xdp_md *ctx) { return 2; }\n")
    monkeypatch.setenv("LBCTL_CACHE_DIR", str(tmp_path / "cache"))
    set_all_variables(monkeypatch, Path.cwd())
    assert build((), tmp_path / "src", "entry").code
    assert not list(traps.iterdir())


@pytest.mark.parametrize("variables", [False, True])
def test_the_launcher_is_isolated(traps, variables):
    here = str(Path.cwd())
    added = dict.fromkeys(VARIABLES, here) if variables else {}
    done = subprocess.run(
        [CHECKOUT / "lbctl", "validate", "."], capture_output=True, text=True, timeout=60, env=os.environ | added
    )
    assert done.stdout.startswith(".: valid"), done.stderr
    assert not list(traps.iterdir())


def test_the_launcher_isolates_itself_when_an_interpreter_is_named(traps):
    done = subprocess.run(
        ["/usr/bin/python3", CHECKOUT / "lbctl", "validate", "."], capture_output=True, text=True, timeout=60,
        env=os.environ | {"HOME": "/", "PYTHONSTARTUP": str(Path("json.py").absolute())},
    )  # fmt: skip
    assert done.stdout.startswith(".: valid"), done.stderr
    assert not list(traps.iterdir())


def test_interpreters_are_started_in_one_place_only():
    """Whoever names `sys.executable` elsewhere has to say why it is safe there."""
    allowed = {"reconciler/children.py", "reconciler/cli/isolated.py"}
    found = {
        str(path.relative_to(CHECKOUT))
        for path in (CHECKOUT / "reconciler").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"
    }
    assert found == allowed
