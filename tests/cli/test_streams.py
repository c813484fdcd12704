# SPDX-License-Identifier: Apache-2.0
"""What verbs print: wherever it goes, whatever is in it, and when it can go nowhere."""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler import safe
from reconciler.cli.main import VERBS

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "examples" / "configs" / "nat-tcp"
READING = {
    "validate": ["validate", "{example}"], "fmt": ["fmt", "--check", "{manifests}"], "render": ["render", "{example}"],
    "plan": ["plan", "{example}", "--live", "empty"],
    "plan json": ["plan", "{example}", "--live", "empty", "--format", "json"],
    "plan markdown": ["plan", "{example}", "--live", "empty", "--format", "markdown"],
    "diff": ["diff", "HEAD", "{manifests}"], "help": ["--help"], "help of a verb": ["plan", "--help"],
    "import": ["import", "live", "{snapshot}"], "broken": ["validate", "{broken}"], "get": ["get", "verdicts"],
    "history": ["history"], "completion": ["completion", "fish"],
}  # fmt: skip
EVERY = READING | {
    "drain": ["drain", "10.2.0.11"], "undrain": ["undrain", "web/10.2.0.11"],
    "export": ["export", "{example}"], "explain": ["explain", "198.51.100.7:40000", "20.20.20.1:80"],
    "delete": ["delete", "--auto-approve"], "apply": ["apply", "{example}", "--auto-approve"],
    "run": ["run", "{example}"], "delete of another": ["--instance", "other", "delete"],
    "status": ["status"], "events": ["events"], "pause": ["pause", "--reason", "→"], "resume": ["resume"],
    "rollback": ["rollback", "--auto-approve"], "confirm": ["confirm"], "metrics": ["metrics"],
    "doctor": ["doctor", "{example}"], "top": ["top"],
    "watch": ["watch", "flow", "198.51.100.7"],
}  # fmt: skip


@pytest.fixture
def words(tmp_path):
    """The arguments of a call; each may name files of this test."""
    manifests = shutil.copytree(EXAMPLE, tmp_path / "manifests")
    for step in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", manifests, "-c", "user.name=a", "-c", "user.email=a@b", *step], check=True)
    with (manifests / "pools.yaml").open("a") as file:
        file.write("---\n\n\n# not in canonical form → \n")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.yaml").write_text("kind: Sérvice\n" * 500)
    (tmp_path / "node.json").write_text('{"format_version": "1.0", "resources": []}')
    places = {"example": EXAMPLE, "manifests": manifests, "broken": broken, "snapshot": tmp_path / "node.json"}

    def call(name):
        return ["--run-dir", str(tmp_path / "run"), *(word.format(**places) for word in EVERY[name])]

    return call


def lbctl(words, prefix=(), environment=None, **options):
    command = [*prefix, CHECKOUT / ".venv" / "bin" / "python", "-m", "reconciler.cli.main", *words]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | (environment or {}), timeout=120, check=False, **options
    )


@pytest.mark.parametrize("name", READING)
def test_a_full_disk_is_said_and_is_no_bug(words, name):
    with Path("/dev/full").open("wb") as full:
        done = lbctl(words(name), stdout=full)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if done.returncode == 0:
        assert name in ("fmt", "help", "help of a verb"), "only what prints nothing, or help, may go well"
    elif b"No space left" not in done.stderr:
        assert name in ("import", "get") and b"error: " in done.stderr, done.stderr


@pytest.mark.parametrize("name", READING)
def test_a_reader_that_leaves_ends_the_verb_quietly(words, name):
    reader, writer = os.pipe()
    os.close(reader)
    done = lbctl(words(name), stdout=writer)
    os.close(writer)
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.returncode in (0, 1, 2, 3, 141)


@pytest.mark.parametrize("name", READING)
def test_closed_descriptors_are_no_bug(words, name):
    call = 'exec "$@" <&- >&- 2>&-'
    done = lbctl(words(name), prefix=("sh", "-c", call, "sh"))
    assert done.returncode in (0, 1, 2), done.returncode


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["C", "ascii", "no UTF-8"],
)
@pytest.mark.parametrize("name", READING)
def test_every_verb_prints_utf_8_into_files_in_every_locale(words, name, locale):
    done, usual = lbctl(words(name), environment=locale), lbctl(words(name))
    assert (done.returncode, done.stdout) == (usual.returncode, usual.stdout)
    assert b"bug in lbctl" not in done.stderr
    done.stdout.decode()


def on_terminal(words, environment=None, answer=None):
    """What a terminal gets to see, and the exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler.cli.main", *words], cwd=CHECKOUT, env=os.environ | (environment or {}),
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
            if answer is not None and b"Only 'yes' will do" in shown:
                os.write(ours, answer)
                answer = None
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(ours)
    return shown, process.wait(timeout=60)


def test_a_terminal_that_lacks_signs_gets_others(words):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}
    shown, code = on_terminal(words("broken"), ascii_only)
    assert code == 1
    assert b"bug in lbctl" not in shown
    assert b"S\\xe9rvice" in shown
    shown.decode("ascii")


def test_ctrl_d_at_a_question_is_a_no():
    code = (
        "import argparse, sys; from reconciler.cli import streams; from reconciler.cli.common import confirm;"
        "streams.prepare(); sys.exit(10 + confirm('Make these changes?', argparse.Namespace(auto_approve=False)))"
    )
    for answer, expected in ((b"\x04", 10), (b"yes\n", 11), (b"\xff\xfe\n", 10), (b"no\n", 10)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=CHECKOUT, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        while b"Only 'yes'" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, answer)
        assert process.wait(timeout=60) == expected, shown
        os.close(ours)


@pytest.mark.kernel
@pytest.mark.parametrize("name", EVERY)
def test_who_is_not_root_is_told_so(words, name, tmp_path):
    """The files of this test are root's alone, so the call gets the right to read them, and no more."""
    (tmp_path / "run").mkdir(mode=0o755)
    powerless = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search",
                 "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search")  # fmt: skip
    done = lbctl(words(name), prefix=powerless, environment={"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"})
    assert b"bug in lbctl" not in done.stderr, done.stderr.decode()
    if name in ("run", "apply", "delete", "delete of another", "export", "explain", "get"):
        assert done.returncode == 0 or b"root" in done.stderr or b"no program is loaded" in done.stderr, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_called_above(verb):
    assert any(verb in call for call in EVERY.values())


HOSTILE = "a\n::error file=x::owned\x1b[2J\x1b]0;title\x07‮ \x9b2J##[add-mask]x ```"


def test_names_of_files_can_not_end_a_line_or_command_anything(tmp_path):
    for name in ("a\n::error::owned.yaml", "\x1b[2J##[add-mask].yaml", "::warning file=b::c.yaml"):
        (tmp_path / name).write_text("kind: Nothing\n")
    for form, environment in (("text", {}), ("auto", {"GITHUB_ACTIONS": "true"})):
        for words in (["."], [str(path.name) for path in tmp_path.iterdir()], ["a\n::error::owned.yaml"]):
            done = subprocess.run(
                [CHECKOUT / "lbctl", "validate", *words, "--format", form], cwd=tmp_path, capture_output=True,
                timeout=60, env={**os.environ, "GITHUB_WORKSPACE": str(tmp_path), **environment},
            )  # fmt: skip
            text = (done.stdout + done.stderr).decode()
            assert "owned" in text or "c.yaml" in text
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
            commands = re.findall(r"^\s*::.*", text, re.MULTILINE)
            if environment:
                ours = r"::(error|warning) file=[^,:]*(,line=\d+,col=\d+,endColumn=\d+)?,title="
                assert all(re.match(ours, command) for command in commands)
                assert not re.search(r"##\[", "\n".join(line for line in text.splitlines() if line not in commands))
            else:
                assert not any(command.startswith("::error::owned") for command in commands)


def test_the_log_of_a_ci_takes_no_line_for_a_command(tmp_path):
    code = (
        "from reconciler.cli import streams; streams.prepare(); print({!r});"
        "streams.print_commands('::notice::ours')"
    )
    for line, shown in (
        ("::error::owned", "\\x3a:error::owned"), ("  ::set-env name=a::b", "  \\x3a:set-env name=a::b"),
        ("x ##[add-mask]y", "x \\x23#[add-mask]y"), ("::1 fe80::1", "::1 fe80::1"), ("## heading", "## heading"),
    ):  # fmt: skip
        printed = subprocess.run(
            [sys.executable, "-c", code.format(line)], cwd=CHECKOUT, capture_output=True, text=True, timeout=60,
            env=os.environ | {"GITHUB_ACTIONS": "true"},
        )  # fmt: skip
        assert printed.stdout.splitlines() == [shown, "::notice::ours"], printed.stderr


def test_a_terminal_obeys_our_own_colours_only():
    code = f"from reconciler.cli import streams; streams.prepare(); print('\\x1b[31mred\\x1b[0m', {HOSTILE!r}, end='')"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, stdout=theirs, timeout=60, check=True)
    shown = os.read(ours, 65536).decode()
    assert shown.startswith("\x1b[31mred\x1b[0m ")
    assert not re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", shown.removeprefix("\x1b[31mred\x1b[0m"))
    assert "\\x1b[2J\\x1b]0;title\\x07\\u202e \\x9b2J" in shown


def test_markdown_is_not_left():
    assert "\n" not in safe.line(HOSTILE)
    assert "\x1b" not in safe.block(HOSTILE)
    fenced = safe.fenced(["+ ok", HOSTILE, "````", "~~~"], "diff").splitlines()
    assert fenced[0] == "`````diff"
    assert fenced.index("`````") == len(fenced) - 1
    assert safe.code("a`b``c") == "``` a`b``c ```"
    assert safe.prose("[a](b) @team <img> `c`") == r"\[a\](b) @&#8203;team \<img\> \`c\`"
