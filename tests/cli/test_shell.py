# SPDX-License-Identifier: Apache-2.0
"""What shells and the manual page know of the command line: all of it, since both are made from the parser."""

import shutil
import subprocess

import pytest

from reconciler.cli.completion import _SHELLS, words_of
from reconciler.cli.main import VERBS, main, parser_of
from reconciler.cli.manual import page
from reconciler.cli.parser import options_of, verbs_of

TRY = """
source {file}
COMP_WORDS=({words} '') COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
[ -n '{begun}' ] && COMP_WORDS[COMP_CWORD]='{begun}'
_lbctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def bash(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "lbctl").write_text(capsys.readouterr().out)

    def complete(words, begun=""):
        script = TRY.format(file=tmp_path / "lbctl", words=words, begun=begun)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split()

    return complete


def test_bash_completes_verbs_options_and_their_values(bash):
    assert set(bash("lbctl")) == set(VERBS)
    assert bash("lbctl", "val") == ["validate"]
    assert bash("lbctl --netns x", "val") == ["validate"]  # the value of an option is no verb
    assert "--confirm-within" in bash("lbctl apply", "--")
    assert "--confirm-within" not in bash("lbctl plan", "--")
    assert set(bash("lbctl get")) >= {"services", "endpoints", "flows"}
    assert set(bash("lbctl get services -o")) == {"table", "wide", "json", "yaml"}
    assert bash("lbctl plan") == []  # a path: bash's own completion


@pytest.mark.parametrize("shell", _SHELLS)
def test_completions_know_every_verb_and_every_option(shell):
    text = "\n".join(_SHELLS[shell](words_of(parser_of(VERBS))))
    for name, verb in verbs_of(parser_of(VERBS)).items():
        assert name in text
        for action in options_of(verb):
            words = [word if shell != "fish" else word.lstrip("-") for word in action.option_strings]
            assert all(word in text for word in words), (name, words)
    assert "--or-back" not in text  # is for lbctl itself


@pytest.mark.parametrize(("shell", "words"), [("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_completions_are_of_their_language(tmp_path, shell, words):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    (tmp_path / "lbctl").write_text("\n".join(_SHELLS[shell](words_of(parser_of(VERBS)))))
    subprocess.run([shell, *words, tmp_path / "lbctl"], check=True, timeout=60)


def test_the_manual_page_has_every_verb_every_option_and_no_lines_for_troff_to_obey():
    text = page()
    for name, verb in verbs_of(parser_of(VERBS)).items():
        assert f".SH VERB: {name.upper()}\n" in text
        for action in options_of(verb):
            assert all(word.replace("-", r"\-") in text for word in action.option_strings), (name, action)
    requests = {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))}
    assert requests == {".TH", ".SH", ".PP", ".TP", ".nf", ".fi", ".B"}
    assert text.isascii()


@pytest.mark.skipif(not shutil.which("groff"), reason="there is no groff")
def test_the_manual_page_has_no_mistake_that_groff_finds():
    command = ["groff", "-man", "-Tascii", "-ww", "-z"]
    done = subprocess.run(command, input=page(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
