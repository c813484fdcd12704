# SPDX-License-Identifier: Apache-2.0
"""The commands of the pages for those who come from elsewhere work, on the sample configurations of the importers'
tests and on the manifests that the pages show; the site has every page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
SAMPLES = {
    "from-ipvs.md": {"ipvs.txt": "ipvsadm/nat.txt", "keepalived.conf": "keepalived/nat.conf"},
    "from-katran.md": {"katran.sh": "katran/flags.txt"},
    "from-loxilb.md": {"lb.json": "loxilb/nat.json"},
    "from-cilium.md": {},
    "from-sbulb.md": {"sbulb.txt": "sbulb/command.txt"},
}
"""Page → the file that its commands name → the sample that stands for it."""


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_there_is_a_page_for_each_importer_and_each_is_tested():
    assert set(SAMPLES) == {path.name for path in DOCS.glob("from-*.md")}
    imported = {sample.partition("/")[0] for samples in SAMPLES.values() for sample in samples.values()}
    assert imported == {path.name for path in (CHECKOUT / "tests" / "importers").iterdir() if path.is_dir()
                        and not path.name.startswith("__")}  # fmt: skip


@pytest.mark.parametrize("page", SAMPLES)
def test_commands_of_a_page_work_on_a_sample(page, tmp_path):
    for name, sample in SAMPLES[page].items():
        shutil.copy(CHECKOUT / "tests" / "importers" / sample, tmp_path / name)
    shown = blocks(page, "yaml")
    lines = "".join(blocks(page, "console")).splitlines()
    commands = [line[2:].partition("  #")[0].strip() for line in lines]
    calls = [command.split()[1:] for command in commands if command.startswith("lbctl ")]
    assert "import" in {call[0] for call in calls} or shown
    planned = 0
    for call in calls:
        if call[0] == "import":
            shutil.rmtree(tmp_path / "manifests", ignore_errors=True)
        elif shown:
            (tmp_path / "manifests").mkdir(exist_ok=True)
            (tmp_path / "manifests" / "page.yaml").write_text("---\n".join(shown))
        done = subprocess.run(
            [sys.executable, "-m", "reconciler.cli.main", *call], cwd=tmp_path, capture_output=True, text=True,
            timeout=120, env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        )  # fmt: skip
        assert done.returncode == 0, (call, done.stdout + done.stderr)
        planned += call[0] == "plan" and " to add, " in done.stdout
    assert planned == (page != "from-sbulb.md")


def test_the_site_has_every_page_and_no_other():
    def pages(item):
        if isinstance(item, str):
            yield item
        for each in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
            yield from pages(each)

    site = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text())
    listed = list(pages(site["nav"]))
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))
    text = (DOCS / "README.md").read_text()
    assert all(f"]({name})" in text for name in listed if name != "README.md")


def test_the_site_is_built_without_a_warning(tmp_path):
    """Where mkdocs is installed; it is no requirement of the tests, as nothing else needs it."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
