# SPDX-License-Identifier: Apache-2.0
"""Templates and values become a fleet; what is missing is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli.main import main
from reconciler.config import overlay
from reconciler.config.load import load
from reconciler.config.source import read_tree
from tests.config.manifests import pool, service

CHECKOUT = Path(__file__).resolve().parents[2]

FILES = {
    "services.yaml": service(),
    "pools.yaml.j2": """\
apiVersion: lbctl/v1
kind: Pool
metadata: {name: web}
spec:
  endpoints:
{% for endpoint in endpoints %}
    - {address: {{ endpoint.address }}, weight: {{ endpoint.weight | default(1) }}}
{% endfor %}
""",
    "environments/staging.yaml": "endpoints: [{address: 10.9.0.1}]\n",
    "environments/prod.yaml": "endpoints:\n  - {address: 10.2.0.11, weight: 2}\n  - {address: 10.2.0.12}\n",
}


def endpoints(directory, env):
    loaded = load(directory, env)
    assert loaded.diagnostics == ()
    return [(str(endpoint.address), endpoint.weight) for endpoint in loaded.fleet.pools[0].endpoints]


def test_each_environment_has_its_own_values(write):
    directory = write(FILES)
    assert endpoints(directory, "prod") == [("10.2.0.11", 2), ("10.2.0.12", 1)]
    assert endpoints(directory, "staging") == [("10.9.0.1", 1)]


def test_environments_are_no_manifests_and_manifests_need_no_environment(write):
    others = {"environments/prod.yaml": "a: 1\n"}
    directory = write({"all.yaml": service() + pool(), **others})
    for env in (None, "prod"):
        assert load(directory, env).diagnostics == ()
        assert [found.name for found in load(directory, env).fleet.services] == ["web"]


def test_file_among_the_environments_that_is_none_is_told(problems):
    files = {"all.yaml": service() + pool(), "environments/x/y.yaml": "b", "environments/z.yaml.j2": "c"}
    message = "this file is not read: an environment is a file environments/NAME.yaml"
    assert problems(files) == [(name, 0, "source-ignored", message) for name in list(files)[1:]]


def test_value_that_is_missing_is_named_with_the_way_out(write, problems):
    assert problems(FILES) == [("pools.yaml.j2", 6, "template-undefined", "'endpoints' has no value")]
    directory = write({**FILES, "environments/prod.yaml": ""})
    hints = [found.hint for env in (None, "prod") for found in load(directory, env).diagnostics]
    assert hints == ["choose one of these with --env: prod, staging", "add it to environments/prod.yaml"]


def test_attribute_that_is_missing_is_an_error_and_not_empty(problems):
    files = {"a.yaml.j2": "x:\n  y: {{ web.port }}\n", "environments/e.yaml": "web: {ports: 1}\n"}
    message = "there is no 'port' in 'web', which has 'ports'"
    assert problems(files, "e") == [("a.yaml.j2", 2, "template-undefined", message)]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("{{ web['prt'] }}", "there is no 'prt' in 'web', which has 'ports'"),
        ("{{ web.ports + 'x' }}", "{{ web.ports + 'x' }}: unsupported operand type(s) for +: 'int' and 'str'"),
        ("{% for x in web.ports %}{{ x }}{% endfor %}", "{% for x in web.ports %}: 'int' object is not iterable"),
    ],
)
def test_error_of_a_template_names_what_it_is_about(problems, code, message):
    [(_, _, _, said)] = problems({"a.yaml.j2": code + "\n", "environments/e.yaml": "web: {ports: 1}\n"}, "e")
    assert said == message


def test_value_that_is_mistyped_is_named(write):
    [found] = load(write({"a.yaml.j2": "a: {{ wbe }}\n", "environments/e.yaml": "web: 1\n"}), "e").diagnostics
    assert found.hint == "did you mean 'web'?"


def test_unknown_environment_is_an_error_that_lists_them(write):
    [found] = load(write(FILES), "prd").diagnostics
    assert (found.rule, found.span.file, found.hint) == ("environment-unknown", "environments", "did you mean 'prod'?")
    [found] = load(write(FILES), "x").diagnostics
    assert found.hint == "there are: prod, staging"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("- a\n", ("environments/prod.yaml", 1, "environment-values")),
        ("a: 1\n---\nb: 2\n", ("environments/prod.yaml", 3, "environment-values")),
        ("a: 1\nb: [\n", ("environments/prod.yaml", 2, "yaml-syntax")),
        ("a: 1\na: 2\n", ("environments/prod.yaml", 2, "duplicate-key")),
        ("a: &x 1\n", ("environments/prod.yaml", 1, "yaml-anchor")),
    ],
)
def test_values_are_one_mapping_of_the_same_yaml(problems, values, problem):
    found = problems({**FILES, "environments/prod.yaml": values}, "prod")
    assert [line[:3] for line in found] == [problem]


@pytest.mark.parametrize("values", ["", "# nothing\n", "{}\n"])
def test_environment_may_be_empty(write, values):
    assert load(write({"all.yaml": service() + pool(), "environments/e.yaml": values}), "e").diagnostics == ()


def render(write, capsys, template, values="{}"):
    directory = write({"a.yaml.j2": template, "environments/e.yaml": values})
    code = main(["render", str(directory), "--env", "e"])
    assert code == 0
    return capsys.readouterr().out.removeprefix("# a.yaml.j2\n").removesuffix("\n")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("80", "80"), ("1.5", "1.5"), ("true", "true"), ("null", "null"), ("text", "text"), ("'80'", "80"),
        ("[80, 8000-8010]", '[80, "8000-8010"]'), ("{a: [true, null], b: é}", '{"a": [true, null], "b": "é"}'),
        ("<&>", "<&>"),
        # A number is what was written: `1.10` may be a version, and a long one an identity.
        ("1.10", "1.10"), ("80.0", "80.0"), ("1e3", "1e3"), ("12345678901234567890", "12345678901234567890"),
        ("[1.10, {a: 2.50}]", '[1.10, {"a": 2.50}]'), ("-0", "-0"),
    ],
)  # fmt: skip
def test_values_are_written_as_yaml_writes_them(write, capsys, value, written):
    assert render(write, capsys, "x: {{ x }}", f"x: {value}\n") == f"x: {written}"


def test_lines_of_statements_leave_nothing_behind(write, capsys):
    loop = "  {% for i in range(2) %}\n  - {{ i }}\n  {% if i %}\n  - x\n  {% endif %}\n  {% endfor %}\n"
    assert render(write, capsys, f"a:\n  {{# why #}}\n{loop}b: 1\n") == "a:\n  - 0\n  - 1\n  - x\nb: 1"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("a: 1 {% if true %}# x{% endif %}\nb: 2\n", "a: 1 # x\nb: 2"),
        ("a: 1  {# why #}\nb: 2\n", "a: 1  \nb: 2"),
        ("a:\n  {% if true %}b: 1{% endif %}\n  c: 2\n", "a:\n  b: 1\n  c: 2"),
        ("a: {{ 1 }}{% if true %}\nb: 2{% endif %}\nc: 3\n", "a: 1\nb: 2\nc: 3"),
        ("a: 1\n{%- if true %}\nb: 2\n{%- endif %}\nc: 3\n", "a: 1\nb: 2\nc: 3"),
        ("a: 1\n {% if true %} {# one #}\nb: 2\n {#\n two\n #} {% endif %}\nc: 3\n", "a: 1\nb: 2\nc: 3"),
        ("a: [\n{% raw %}\n  '{% x %}'\n{% endraw %}\n]\n", "a: [\n  '{% x %}'\n]"),
        ("a:\n{%+ set x = '%}\n' +%}\n- b\n", "a:\n\n- b"),
        ("{% macro m() %}a: 1{{ caller() }}{% endmacro %}\n{% call m() %}{% endcall %}\nb: 2\n", "a: 1\nb: 2"),
        ("{% block x %}a: 1{% endblock %}\nb: 2\n", "a: 1\nb: 2"),
    ],
)
def test_only_lines_without_content_leave_nothing_behind(write, capsys, template, written):
    """No line break goes behind content: the next key would become part of a comment or of a text."""
    assert render(write, capsys, template) == written


def test_line_behind_an_include_stays_a_line(write, capsys):
    directory = write({"a.yaml.j2": "{% include '_b.yaml.j2' %}\nc: 1\n", "_b.yaml.j2": "b: 1"})
    assert main(["render", str(directory)]) == 0
    assert capsys.readouterr().out == "# a.yaml.j2\nb: 1\nc: 1\n"


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        ("x", "1.10"), ("x | tojson", "1.10"), ("[x] | tojson", "[1.10]"), ("x ~ '-a'", "1.10-a"), ("x + 1", "2.1"),
        ("n + 1", "12345678901234567891"), ("x == 1.1", "true"), ("'%s' % x", "1.10"),
    ],
)  # fmt: skip
def test_numbers_print_as_they_were_written_and_compute_as_numbers(write, capsys, expression, written):
    values = "x: 1.10\nn: 12345678901234567890\n"
    assert render(write, capsys, f"a: {{{{ {expression} }}}}", values) == f"a: {written}"


def test_same_input_gives_the_same_text(problems):
    for code in ("{{ [1, 2] | random }}", "{{ lipsum() }}"):
        [(_, _, rule, _)] = problems({"a.yaml.j2": code})
        assert rule in ("template-syntax", "template-undefined")


def test_templates_include_others_from_the_directory(write, capsys):
    directory = write({
        "web.yaml.j2": "{% from 'parts/_m.yaml.j2' import ports %}a: {{ ports(3) }}\n{% include '_b.yaml.j2' %}\n",
        "parts/_m.yaml.j2": "{% macro ports(n) %}[{{ range(n) | join(', ') }}]{% endmacro %}",
        "_b.yaml.j2": "b: {{ x }}\n",
        "environments/e.yaml": "x: 7\n",
    })  # fmt: skip
    assert main(["render", str(directory), "--env", "e"]) == 0
    assert capsys.readouterr().out == "# web.yaml.j2\na: [0, 1, 2]\nb: 7\n"


@pytest.mark.parametrize(
    "name", ["../secret.yaml.j2", "/etc/passwd", "secret.txt", "gone.yaml.j2", "link.yaml.j2", "a.yaml"]
)
def test_includes_stay_in_the_directory(write, problems, tmp_path, name):
    directory = write({"web.yaml.j2": f"{{% include '{name}' %}}\n", "secret.txt": "secret", "a.yaml": "# secret"})
    (tmp_path / "secret.yaml.j2").write_text("secret")
    (directory / "link.yaml.j2").symlink_to("../secret.yaml.j2")
    found = load(directory).diagnostics
    [refused] = [d for d in found if d.span.file == "web.yaml.j2"]
    assert (refused.span.line, refused.message) == (1, f"there is no template '{name}'")
    assert not any("secret" in d.message.replace(name, "") for d in found)


def test_digest_follows_templates_and_values(write):
    digest = read_tree(write(FILES)).digest
    assert load(write(FILES), "prod").digest == digest
    for name in FILES:
        assert read_tree(write({**FILES, name: FILES[name] + "\n"})).digest != digest
    assert read_tree(write(FILES)).digest == digest


def test_without_templates_nothing_is_rendered(write, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    directory = write({"all.yaml": service() + pool(), "environments/prod.yaml": "a: 1\n"})
    for env in (None, "prod"):
        assert load(directory, env).diagnostics == ()


def test_jinja2_is_never_imported_here(write):
    directory = write(FILES)
    code = (
        "import sys; from reconciler.cli.main import main;"
        f"assert main(['validate', {str(directory)!r}, '--env', 'prod']) == 0; print('jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_render_shows_all_manifests_of_an_environment(write, capsys):
    directory = write(FILES)
    assert main(["render", str(directory), "--env", "prod"]) == 0
    shown = capsys.readouterr().out
    assert shown == """\
# pools.yaml.j2
apiVersion: lbctl/v1
kind: Pool
metadata: {name: web}
spec:
  endpoints:
    - {address: 10.2.0.11, weight: 2}
    - {address: 10.2.0.12, weight: 1}
# services.yaml
""" + service()
    (directory / "all.yaml").write_text(shown)
    assert main(["validate", str(directory / "all.yaml")]) == 0


def test_render_of_what_cannot_be_rendered_prints_nothing(write, capsys):
    assert main(["render", str(write(FILES))]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pools.yaml.j2:6:20: error: 'endpoints' has no value [template-undefined]" in captured.err


def test_only_templates_whose_inputs_changed_are_rendered_again(write, monkeypatch):
    rendered, run = [], overlay.children.run

    def counted(command, request, limit_s):
        rendered.append(sorted(json.loads(request)["render"]))
        return run(command, request, limit_s)

    monkeypatch.setattr(overlay.children, "run", counted)
    files = {
        "a.yaml.j2": pool(name="a"), "b.yaml.j2": "{% include '_c.yaml.j2' %}", "_c.yaml.j2": pool(),
        "environments/e.yaml": "x: 7\n", "d.yaml": service(),
    }  # fmt: skip
    found = []
    for edit in (
        {}, {"d.yaml": service(name="e")}, {"a.yaml.j2": pool(name="b")}, {"_c.yaml.j2": pool() + "# {{ x }}\n"},
        {"environments/e.yaml": "x: 8\n"},
    ):  # fmt: skip
        rendered.clear()
        files |= edit
        loaded = load(write(files), "e")
        assert loaded.fleet, loaded.diagnostics
        found.append((list(rendered), [each.name for each in loaded.fleet.pools]))
    both = ["a.yaml.j2", "b.yaml.j2"]
    assert found[1:] == [
        ([], ["a", "web"]),
        ([both], ["b", "web"]),  # the second one may take in any other one
        ([["b.yaml.j2"]], ["b", "web"]),
        ([both], ["b", "web"]),
    ]  # fmt: skip
