# SPDX-License-Identifier: Apache-2.0
"""Every rule that a diagnostic can name: its meaning, and the way out.

The rules of `rules` have this text in their docstrings. This module has the texts of all others: about files, YAML,
the shape of a document, and templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.config.diagnostic import Severity
from reconciler.config.rules import RULES


@dataclass(frozen=True, slots=True)
class About:
    """`text` is Markdown; its first paragraph describes the problem in a sentence or two."""

    text: str
    severity: Severity = Severity.ERROR

    @property
    def meaning(self) -> str:
        return " ".join(self.text.split("\n\n")[0].split())


def catalogue() -> Mapping[str, Mapping[str, About]]:
    """The rules by topic, in the order in which a person would come across them."""
    fleet = {name: About(rule.text, rule.severity) for name, rule in sorted(RULES.items())}
    return {
        "Files": _FILES,
        "YAML": _YAML,
        "Templates and environments": _TEMPLATES,
        "Shape of a document": _SHAPE,
        "How manifests fit together": fleet,
    }


def about_rules() -> dict[str, About]:
    """All rules by name."""
    return {name: about for topic in catalogue().values() for name, about in topic.items()}


def _about(meaning: str, way_out: str, severity: Severity = Severity.ERROR) -> About:
    return About(f"{meaning}\n\nThe way out: {way_out}", severity)


_FILES = {
    "source-missing": _about(
        "The directory is not there, or is none.",
        "check the path.",
    ),
    "source-empty": _about(
        "The directory holds no manifest.",
        "check the path, and the names of the files: manifests end with `.yaml` or `.yml`, templates with `.yaml.j2`.",
        Severity.WARNING,
    ),
    "source-unreadable": _about(
        "A file or directory can't be read.",
        "check its permissions, and where it leads if it is a link.",
    ),
    "source-not-a-file": _about(
        "Something named like a manifest is a pipe, a socket or a device.",
        "remove it, or rename it.",
    ),
    "source-link": _about(
        "A link leads out of the directory, or to a directory.",
        "put the files themselves there: manifests must not depend on files outside of their directory.",
    ),
    "source-ignored": _about(
        "A file is named nearly as a manifest, a template or an environment is, and is not read.",
        "rename it as the hint says, or move it out of the directory.",
        Severity.WARNING,
    ),
    "source-encoding": _about(
        "A file is no UTF-8 text.",
        "save it as UTF-8 without a byte order mark.",
    ),
    "source-too-large": _about(
        "A file, or all files together, hold more than is read: 16 MiB and 1,200,000 keys and values a file; 64 MiB, "
        "10,000 files and 1,000,000 endpoints in all.",
        "split the file, or the directory.",
    ),
    "source-changing": _about(
        "The directory changed each time that it was read.",
        "try again when it is at rest.",
    ),
    "source-submodule": _about(
        "A revision has a git submodule, which is not read.",
        "put the manifests themselves there.",
        Severity.WARNING,
    ),
    "too-many-problems": _about(
        "A file or document has more problems than are shown.",
        "repair those that are shown and look again.",
    ),
}
_YAML = {
    "yaml-syntax": _about(
        "The text is no YAML.",
        "the message says what was expected. A key and its value are separated by a colon and a space; keys of one "
        "mapping have the same indentation.",
    ),
    "missing-separator": _about(
        "A document has `apiVersion` or `kind` a second time: the line `---` between two documents is missing.",
        "write the line, not indented.",
    ),
    "merge-conflict": _about(
        "git left a conflict in the file: lines that begin with `<<<<<<<`, `=======` and `>>>>>>>`.",
        "keep one side or both, and remove these lines.",
    ),
    "yaml-tab": _about(
        "A line is indented with a tab.",
        "indent with spaces; `lbctl fmt` uses two.",
    ),
    "yaml-anchor": _about(
        "Anchors (`&a`), aliases (`*a`) and merge keys (`<<`) are not part of the manifest language.",
        "write the value out: a diff should show all that it changes.",
    ),
    "yaml-tag": _about(
        "Tags (`!!str`) are not part of the manifest language.",
        "remove the tag; quotes make a text.",
    ),
    "yaml-key": _about(
        "A key is a list or a mapping.",
        "put a key that begins with `{` or `[` in quotes.",
    ),
    "yaml-depth": _about(
        "Lists and mappings are nested deeper than any manifest needs.",
        "look for a bracket that was not closed.",
    ),
    "duplicate-key": _about(
        "A mapping has a key twice.",
        "remove one of them.",
    ),
}
_TEMPLATES = {
    "environment-unknown": _about(
        "There is no file in `environments/` for the environment that `--env` names.",
        "choose one of those that the message lists, or write the file.",
    ),
    "environment-values": _about(
        "The file of an environment is more, or something else, than one mapping.",
        "write a line `name: value` for each value.",
    ),
    "template-name": _about(
        "A file holds `{{ … }}` or `{% … %}`, but its name doesn't make it a template.",
        "rename it: templates end with `.yaml.j2`.",
    ),
    "template-undefined": _about(
        "A template uses a value that its environment doesn't have.",
        "add it to the environment, choose another with `--env`, or give a default: `{{ weight | default(1) }}`.",
    ),
    "template-syntax": _about(
        "A template is no Jinja2.",
        "the message says what was expected.",
    ),
    "template-error": _about(
        "An expression of a template fails.",
        "the message is Python's own. Compare what the expression does with the type of the value.",
    ),
    "template-forbidden": _about(
        "A template tries to reach the program that renders it.",
        "use the values of the environment only.",
    ),
    "template-missing": _about(
        "A template includes or imports one that is not there.",
        "name it by its path from the directory of the manifests. Its name must end with `.yaml.j2`; a template whose "
        "name begins with `_` is no manifest by itself.",
    ),
    "template-limit": _about(
        "Rendering a template takes more time or memory, or gives more text, than any manifest needs.",
        "write out what the template computes.",
    ),
}
_SHAPE = {
    "unknown-version": _about(
        "`apiVersion` is not one that this version of lbctl reads.",
        "write `lbctl/v1`. Keep the files of other programs out of the directory.",
    ),
    "unknown-kind": _about(
        "`kind` is none of the language.",
        "the message lists those that there are.",
    ),
    "unknown-key": _about(
        "A mapping has a key that the language doesn't know there.",
        "the message says which one was probably meant, or which there are.",
    ),
    "missing-key": _about(
        "A key that is required is not there.",
        "add it; the message shows an example.",
    ),
    "wrong-type": _about(
        "A value is a text where a number is expected, a mapping where a list is, and so on.",
        "the message says what was expected and how to write it.",
    ),
    "wrong-value": _about(
        "A value is none of those that are allowed.",
        "choose one that the message lists.",
    ),
    "wrong-format": _about(
        "A text is not the address, range of ports, duration or name that is expected.",
        "the message shows one.",
    ),
    "out-of-range": _about(
        "A number is too small or too large, a duration or a text too short or too long.",
        "choose one in the range that the message names.",
    ),
    "too-few": _about(
        "A list has fewer items than it must.",
        "add what is missing.",
    ),
    "too-many": _about(
        "A list or a mapping has more entries than it may.",
        "leave some out; the message says how many there may be.",
    ),
    "duplicate-item": _about(
        "A list has an item twice.",
        "list each once.",
    ),
    "key-conflict": _about(
        "A key that doesn't go with another one of the same mapping.",
        "keep one of them; the message says which go together.",
    ),
    "too-many-ports": _about(
        "All services together have more ports than any node holds.",
        "look for a range that is wider than it should be.",
    ),
}
