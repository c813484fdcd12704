# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with rendered text is shown where it can be edited: on the line of the template."""

import pytest

from reconciler.config import render_child
from reconciler.config.diagnostic import render_text
from reconciler.config.load import load
from reconciler.config.overlay import _codes, _parts
from tests.config.manifests import pool

HEAD = "apiVersion: lbctl/v1\nkind: Pool\nmetadata: {name: web}\n"


def shown(directory, env="e"):
    loaded = load(directory, env)
    return render_text((d for d in loaded.diagnostics if d.rule != "pool-unused"), loaded.texts)


def test_message_shows_the_template_the_place_of_the_value_and_what_came_of_it(write):
    directory = write({
        "web.yaml.j2": f"""\
{{# One endpoint for each address. #}}
{HEAD}\
spec:
  endpoints:
{{% for weight in weights %}}
    - {{address: {{{{ address }}}}, weight: {{{{ weight }}}}, port: 80}}
{{% endfor %}}
""",
        "environments/e.yaml": "address: 10.0.0.1\nweights: [5, 5000]\n",
    })  # fmt: skip
    assert shown(directory) == """\
web.yaml.j2:8:40: error: expected a whole number from 0 to 1000, got 5000 [out-of-range]
   8 |     - {address: {{ address }}, weight: {{ weight }}, port: 80}
     |                                        ^~~~~~~~~~~~
       hint: this line was rendered as '- {address: 10.0.0.1, weight: 5000, port: 80}'"""


@pytest.mark.parametrize(
    ("template", "line", "column", "length"),
    [
        # The text of the template itself: exactly where it is, also behind a value.
        ("spec:\n  endpoints: []\n  bogus: 1\n", 3, 3, 5),
        ("spec:\n  endpoints: [{address: {{ a }}, bogus: 1}]\n", 2, 34, 5),
        ("spec:\n  {{ 'endpoints' }}: []\n  bogus: {{ a }}\n", 3, 3, 5),
        # Behind what leaves no line, what is no line, and what are several.
        ("{#\n\n#}spec:\n{% if true %}\n{% set x = 1 %}\n  bogus: 1\n{% endif %}\n  endpoints: []\n", 6, 3, 5),
        ("spec:{% if true %}\n\n\n  bogus: 1\n{%- endif %}\n\n  endpoints: []\n", 4, 3, 5),
        ("{{ '# a\\n# b\\n# c' }}\nspec:\n  endpoints: []\n  bogus: 1\n", 4, 3, 5),
        ("{% raw %}\n# {{\n{% endraw %}\nspec:\n  endpoints: []\n  bogus: 1\n", 6, 3, 5),
        ("{% for i in [1, 2, 3] %}\n# {{ i }}\n{% endfor %}\nspec:\n  endpoints: []\n  bogus: 1\n", 6, 3, 5),
        ("spec:\r\n  endpoints: []\r\n  bogus: 1\r\n", 3, 3, 5),
        # What others made: the line that asked for it.
        ("{% macro m() %}\n  bogus: 1\n{% endmacro %}\nspec:\n  endpoints: []\n{{ m() }}\n", 6, 1, 9),
        ("spec:\n  endpoints: []\n{% include '_bogus.yaml.j2' %}\n", 3, 1, 30),
        ("spec:\n  endpoints: []\n{{ '# a\\n  bogus: 1' }}\n", 3, 1, 23),
    ],
)
def test_problem_lies_on_the_line_of_the_template(write, template, line, column, length):
    directory = write({
        "web.yaml.j2": template + HEAD,
        "_bogus.yaml.j2": "# several\n\n  bogus: 1\n",
        "environments/e.yaml": "a: 10.0.0.1\n",
    })  # fmt: skip
    found = [d for d in load(directory, "e").diagnostics if d.rule != "pool-unused"]
    assert [(d.rule, d.span.line, d.span.column, d.length) for d in found] == [("unknown-key", line, column, length)]


def test_block_of_a_parent_is_found_where_it_was_written(write):
    directory = write({
        "_base.yaml.j2": HEAD + "spec:\n{% block b %}{% endblock %}\n",
        "web.yaml.j2": "{% extends '_base.yaml.j2' %}\n{% block b %}\n  endpoints: []\n  bogus: 1\n{% endblock %}\n",
    })  # fmt: skip
    assert [d.span.line for d in load(directory).diagnostics if d.rule == "unknown-key"] == [4]


def test_broken_yaml_is_found_and_reading_goes_on(write):
    directory = write({
        "web.yaml.j2": "{% set x = 1 %}\na: [{{ x }}\n---\n{% if x %}\nb: 2\nb: 3\n{% endif %}\n",
    })  # fmt: skip
    found = load(directory).diagnostics
    assert [(d.rule, d.span.line) for d in found] == [("yaml-syntax", 2), ("missing-key", 5), ("duplicate-key", 6)]
    assert "it is on line 5 already" in found[-1].message


def test_documents_of_one_line_are_told_apart(write):
    """Rules find the right one of several documents that a loop made of the same lines."""
    directory = write({
        "services.yaml.j2": """\
{% for name in names %}
---
apiVersion: lbctl/v1
kind: Service
metadata: {name: {{ name }}}
spec: {vip: 20.20.20.{{ loop.index }}, ports: [{{ 80 if loop.first else '70-90, 80' }}], pool: web}
{% endfor %}
""",
        "pools.yaml": pool(),
        "environments/e.yaml": "names: [a, b]\n",
    })  # fmt: skip
    [found] = load(directory, "e").diagnostics
    assert (found.rule, found.span.line) == ("duplicate-port", 6)
    assert "'spec: {vip: 20.20.20.2, ports: [70-90, 80], pool: web}'" in found.hint


def test_other_places_in_messages_and_plans_are_those_of_templates(write):
    document = f"---\n{HEAD}spec: {{endpoints: [{{address: 10.0.0.{{{{ i }}}}}}]}}\n"
    template = f"{{% set x = 1 %}}\n{{% for i in [1, 2] %}}\n{document}{{% endfor %}}\n"
    loaded = load(write({"web.yaml.j2": template}))
    assert "Pool 'web' is declared already (web.yaml.j2:4)" in {d.message for d in loaded.diagnostics}
    loaded = load(write({"web.yaml.j2": template.replace("[1, 2]", "[3]")}))
    [web] = loaded.fleet.pools
    assert (str(web.span), str(web.endpoints[0].span)) == ("web.yaml.j2:4", "web.yaml.j2:7")


def test_error_of_a_template_is_on_its_line_also_in_an_included_one(write):
    cases = {"a: 1\n\nb: {{ 1 + 'x' }}\n": 3, "a: 1\n{% if %}\n": 2, "\n{{ gone }}\n": 2, "{{ 'x' | nope }}\n": 1}
    for text, line in cases.items():
        for files in ({"web.yaml.j2": text}, {"web.yaml.j2": "{% include '_part.yaml.j2' %}", "_part.yaml.j2": text}):
            directory = write({"_part.yaml.j2": "", **files})
            [found] = load(directory).diagnostics
            assert (found.span.file, found.span.line) == (list(files)[-1], line), text


class Counted(str):
    """A text that counts how often it is searched."""

    searches = 0

    def find(self, *args):
        Counted.searches += 1
        return super().find(*args)


def test_braces_that_never_close_are_searched_once():
    """Else a line of 80 KB would keep its reader busy for a minute, outside of what limits the rendering."""
    assert _parts(Counted("{{" * 40_000)) == ["{{" * 40_000]
    assert Counted.searches == 2
    assert list(_codes("{%" * 40_000)) == []
    assert list(_codes("a {{ b }} {% c %}}")) == [(2, 9), (10, 17)]


def test_line_of_a_piece_is_found_without_reading_the_whole_template_again(monkeypatch):
    text = "x:\n" + "  - {{ 'b' }}\n" * 50
    environment = render_child._environment({"a": text})
    template = environment.get_template("a")
    calls = []
    monkeypatch.setattr(type(template), "get_corresponding_lineno", lambda *args: calls.append(args))
    found = render_child._render(environment, "a", text, {}, 1 << 20)
    assert calls == []
    assert sorted({line for _, line in found["marks"]}) == list(range(1, 53))
