# SPDX-License-Identifier: Apache-2.0
"""The agent's page for people: HTML without a script, whole in one answer, for phones and keyboards, too.

All texts are escaped by the template engine, and everything but the page's own style is forbidden by its policy
(Content Security Policy, W3C): whatever a name holds, it is shown as text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reconciler import safe

if TYPE_CHECKING:
    from jinja2 import Template

REFRESH_S = 5
MAX_ROWS = 200
"""Of each table; the command line shows the rest."""

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 70rem; padding: 0 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
nav a { margin-right: 1rem; }
a:focus-visible, [tabindex]:focus-visible { outline: 3px solid Highlight; outline-offset: 2px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; } th { text-align: left; font-weight: 600; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  thead { position: absolute; left: -99rem; }
  tr { display: block; padding: .6rem 0; border-bottom: 1px solid #8884; }
  td, td.n { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: 0 .6rem; border: 0; padding: 0;
             text-align: left; white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-head); color: CanvasText; font-weight: 400; opacity: .75; }
}
.good { color: light-dark(#0a6b2d, #6fdc8c); } .bad { color: light-dark(#b3141d, #ff9a9f); font-weight: 600; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
"""

_TEMPLATE = """\
{% macro cell(value) -%}
{% if value is none %}-{% elif value is number %}{{ '{:,}'.format(value) }}{% else %}{{ value }}{% endif %}
{%- endmacro %}
{% macro table(id, title, part, nothing) %}
<section aria-labelledby="{{ id }}"><h2 id="{{ id }}">{{ title }}</h2>
{% if part.rows %}<div class="wide" tabindex="0" role="region" aria-labelledby="{{ id }}"><table><thead><tr>
{% for head in part.heads %}<th scope="col"{% if loop.index0 in part.numbers %} class="n"{% endif %}>{{ head }}</th>
{% endfor %}</tr></thead><tbody>
{% for row in part.rows %}<tr>{% for value in row %}
<td data-head="{{ part.heads[loop.index0] }}"\
{% if loop.index0 in part.numbers %} class="n"{% elif value in bad %} class="bad"\
{% elif value in good %} class="good"{% endif %}>{{ cell(value) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% if part.more %}<p>and {{ '{:,}'.format(part.more) }} more: <code>{{ part.command }}</code></p>{% endif %}
{% else %}<p>{{ nothing }}</p>{% endif %}</section>
{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ status.sync }}, {{ status.health }} - {{ name }} - lbctl</title>
{% if live %}<meta http-equiv="refresh" content="{{ refresh_s }}">{% endif %}
<style>{{ style }}</style></head><body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{{ name }}: <span class="{{ 'good' if status.sync in good else 'bad' }}">{{ status.sync }}</span>,
<span class="{{ 'bad' if status.health in bad else 'good' }}">{{ status.health }}</span></h1>
<p>As of {{ now }}. {% if live %}Renewed every {{ refresh_s }} s. <a href="/">Stop</a>\
{% else %}<a href="/?live">Renew every {{ refresh_s }} s</a>{% endif %}</p>
<nav aria-label="Sections"><a href="#services">Services</a> <a href="#endpoints">Endpoints</a> \
<a href="#transitions">Transitions</a> <a href="#changes">Changes</a> <a href="#pending">Pending</a></nav></header>
<main id="main">
<dl>{% for label, text in facts %}<dt>{{ label }}</dt><dd>{{ text }}</dd>
{% endfor %}</dl>
{% if status.conditions %}<section aria-labelledby="conditions"><h2 id="conditions">Conditions</h2><ul>
{% for event in status.conditions[:most] %}<li>
<span{% if event.level == 'error' %} class="bad"{% endif %}>{{ event.level }}</span>
{{ event.about }}: <pre>{{ event.message }}{% if event.hint %}

{{ event.hint }}{% endif %}</pre></li>
{% endfor %}</ul></section>{% endif %}
{{ table('services', 'Services', services, 'There are no services on this node.') }}
{{ table('endpoints', 'Endpoints', endpoints, 'There are no endpoints on this node.') }}
{{ table('transitions', 'Transitions', transitions, 'No slot of a ring is in transition.') }}
{{ table('changes', 'Last changes', changes, 'The agent has changed nothing since it began.') }}
{{ table('pending', 'What would change now', pending, pending_nothing) }}
</main></body></html>
"""

GOOD = ("Synced", "Healthy", "usable", "up")
BAD = ("OutOfSync", "Unknown", "Degraded", "down", "dead", "disabled", "error")


@functools.cache
def policy() -> str:
    """The value of the header Content-Security-Policy: the page's own style, and nothing else from anywhere."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def part(heads: list[str], rows: list[list[Any]], command: str, numbers: tuple[int, ...] = ()) -> dict[str, Any]:
    """One table: the first rows, how many more there are, and the command that shows them. `numbers` are the columns
    that hold numbers."""
    shown = [[safe.line(cell) if isinstance(cell, str) else cell for cell in row] for row in rows[:MAX_ROWS]]
    return {"heads": heads, "rows": shown, "numbers": numbers, "more": len(rows) - len(shown), "command": command}


def page(content: Mapping[str, Any], *, live: bool) -> str:
    """The whole page; `content` as `agent.page` gathers it. With `live` it renews itself."""
    fixed = {"style": _style(), "good": GOOD, "bad": BAD, "most": MAX_ROWS, "refresh_s": REFRESH_S, "live": live}
    return _template().render(**content, **fixed)


def _style() -> Any:
    from markupsafe import Markup

    return Markup(_STYLE)


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # slow to import, and only an agent with a page needs it

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE)
