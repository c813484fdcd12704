# SPDX-License-Identifier: Apache-2.0
"""No template takes more than it may, and none reaches what renders it: each of these is a clear diagnostic."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.config import overlay
from reconciler.config.load import load

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.setattr(overlay, "CPU_LIMIT_S", 1)
    monkeypatch.setattr(overlay, "MEMORY_LIMIT_BYTES", 128 << 20)
    monkeypatch.setattr(overlay, "MAX_FILE_BYTES", 1 << 20)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "a range has more than 100,000 items"),
        ('{{ "a" * 10**9 }}', "rendering takes more than 128 MiB of memory"),
        ('{{ "%0999999999d" % 1 }}', "rendering takes more than 128 MiB of memory"),
        ('{{ "x" | center(10**9) }}', "rendering takes more than 128 MiB of memory"),
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
         "rendering takes more than 128 MiB of memory"),
        ("{{ 10 ** (10 ** 9) }}", "the power has more than 4096 bits"),
        ('{{ "x" | center(60000000) }}', "the result is larger than 1 MiB"),
        ("{% set x = 'a' * 10**5 %}{% for i in range(99) %}{{ x }}{% endfor %}", "the result is larger than 1 MiB"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "the template calls or includes itself too often"),
        ("{% include 'a.yaml.j2' %}", "the template calls or includes itself too often"),
        ("{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         "rendering takes more than 1 s"),
    ],
)  # fmt: skip
def test_what_takes_too_much_is_refused_with_its_line(problems, code, message):
    assert problems({"a.yaml.j2": f"x: 1\n{code}\n"}) == [("a.yaml.j2", 2, "template-limit", message)]


def test_single_step_that_never_ends_is_ended(problems):
    """A product of large numbers is one instruction, which no signal handler interrupts."""
    code = "{% set n = namespace(x=7) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}"
    [(file, _, rule, message)] = problems({"a.yaml.j2": code})
    assert (file, rule) == ("a.yaml.j2", "template-limit")
    assert message in ("rendering takes more than 1 s", "rendering takes more than 128 MiB of memory")


@pytest.mark.parametrize(
    "code",
    [
        "{{ ''.__class__ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ {} | attr('__class__') }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_python_is_out_of_reach(problems, code):
    [(file, line, rule, _)] = problems({"a.yaml.j2": f"x: 1\n{code}\n"})
    assert (file, line) == ("a.yaml.j2", 2)
    assert rule in ("template-forbidden", "template-undefined", "template-error")


def test_what_needs_files_is_said_to_need_them(problems):
    """These would have Python read a module, in a process that can open no file."""
    for code in ("{{ [1] | pprint }}", "{{ 'a'.encode('idna') }}"):
        [(_, _, rule, message)] = problems({"a.yaml.j2": code})
        assert (rule, message) == ("template-forbidden", "this takes files, and templates can't open any")


def test_values_cannot_be_changed_by_a_template(problems):
    files = {"a.yaml.j2": "{{ xs.append(1) }}\n", "environments/e.yaml": "xs: []\n"}
    [(_, _, rule, message)] = problems(files, "e")
    assert rule == "template-forbidden"
    assert "append" in message


def test_templates_after_one_that_fails_are_still_rendered(problems):
    found = problems({"a.yaml.j2": "{{ gone }}\n", "b.yaml.j2": "{{ 'a' * 10**9 }}\n", "c.yaml.j2": "{{ lost }}\n"})
    assert [(file, rule) for file, _, rule, _ in found] == [
        ("a.yaml.j2", "template-undefined"),
        ("b.yaml.j2", "template-limit"),
        ("c.yaml.j2", "template-undefined"),
    ]


def test_process_that_dies_is_a_problem_of_the_template_that_it_died_of(write, monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    answer = '{"text": "", "marks": []}'
    child.write_text(f"import os, signal; print({answer!r}, flush=True); os.kill(os.getpid(), signal.SIGXCPU)")
    monkeypatch.setattr(overlay, "_CHILD", child)
    monkeypatch.setattr(overlay, "_known", {})
    found = load(write({"a.yaml.j2": "x", "b.yaml.j2": "x", "c.yaml.j2": "x"})).diagnostics
    assert [(d.span.file, d.message) for d in found] == [("b.yaml.j2", "rendering takes more than 1 s")]
    child.write_text("import no_such_module")
    monkeypatch.setattr(overlay, "_known", {})
    [found] = load(write({"a.yaml.j2": "x"})).diagnostics
    assert (found.span.file, found.rule) == ("a.yaml.j2", "template-error")
    assert "No module named 'no_such_module'" in found.message


@pytest.mark.parametrize(
    "escape",
    [
        "open('/etc/passwd')",
        "socket.socket()",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "'a' * 10**9",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))",
    ],
)
def test_process_that_renders_can_do_nothing_else(escape):
    code = "import os, resource, socket; from reconciler.config.render_child import confine; confine(128 << 20); "
    codes = [
        subprocess.run([sys.executable, "-c", code + step], cwd=CHECKOUT, capture_output=True, timeout=60).returncode
        for step in ("'a' * 10**6", escape)
    ]
    assert codes[0] == 0
    assert codes[1] != 0


def test_limits_bind_the_child_only(problems):
    before = [resource.getrlimit(limit) for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]
    problems({"a.yaml.j2": "{{ 'a' * 10**9 }}\n"})
    after = [resource.getrlimit(limit) for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]
    assert before == after
    assert signal.getsignal(signal.SIGPROF) is signal.SIG_DFL
