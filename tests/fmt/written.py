# SPDX-License-Identifier: Apache-2.0
"""YAML as people write it: the same data with any indentation, quotes, brackets, order, comments and empty lines."""

import json

from hypothesis import strategies as st

texts = st.one_of(
    st.sampled_from(["web", "80", "on", "", "it's", "a: b", "# x", "8000-8010", "2001:db8::1", "- x", "::", "{", "é",
                     "~", "0x1F", "1:30", "2026-01-31", "a\nb", "a\n\nb\n", " x ", "'", '"', "\\", "PING\r\n",
                     "\u2028", "-"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=6),
)  # fmt: skip
scalars = st.one_of(texts, st.integers(-5, 99), st.booleans(), st.none(), st.just(1.5))
keys = st.sampled_from(["name", "address", "port", "weight", "spec", "kind", "metadata", "endpoints", "x y", "80"])
data = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
manifests = st.fixed_dictionaries(
    {"kind": st.sampled_from(["Service", "Pool", "Node", "Other"])},
    optional={
        "apiVersion": st.just("lbctl/v1"),
        "metadata": st.fixed_dictionaries({"name": texts}),
        "spec": data,
        "more": data,
    },
)


class Writer:
    """Writes data with what `draw` chooses; `comments` are those that it wrote."""

    def __init__(self, draw):
        self.draw = draw
        self.comments = []
        self.after_block = False  # where a deeper comment would be part of the text

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def comment(self, likely=3):
        if self.draw(st.integers(0, 9)) >= likely:
            return ""
        self.comments.append(f"# {len(self.comments)}{self.one_of('', ' - x', ': y', ' #z', ' [', '   ')}".rstrip())
        return self.comments[-1]

    def lines(self, indent):
        """Empty lines, and lines that are comments."""
        text = self.one_of("", "", "", "\n", "\n\n", "\n" if self.after_block else "  \n")
        while comment := self.comment(2):
            shift = self.one_of(0, 0, 0, -2, 0 if self.after_block else 2)
            text += " " * max(0, indent + shift) + comment + self.one_of("\n", "\n", "\n\n")
            self.after_block = False
        return text

    def behind(self):
        comment = self.comment()
        return f"{self.one_of(' ', '   ')}{comment}\n" if comment else "\n"

    def scalar(self, value, *, key=False):
        if not isinstance(value, str):
            return json.dumps(value)
        quoted = "".join(c if ord(c) > 0xFFFF else json.dumps(c)[1:-1] for c in value).join('""')
        simple = value.isascii() and value.replace("-", "").replace(" ", "").isalnum() and value == value.strip()
        if simple and value[0].isalpha() and value not in ("null", "true", "false"):
            return self.one_of(value, value, quoted, f"'{value}'")
        if value.isprintable() and "'" not in value and not key:
            return self.one_of(quoted, f"'{value}'")
        return quoted

    def flow(self, value, indent):
        if not isinstance(value, dict | list):
            return self.scalar(value)
        gap = self.one_of("", "", " ", "\n" + " " * (indent + 1))
        if gap.startswith("\n") and (comment := self.comment(4)):
            gap = f" {comment}{gap}"
        comma = self.one_of(",", ", ", ",\n" + " " * (indent + 2))
        if isinstance(value, dict):
            items = [f"{self.scalar(k, key=True)}: {self.flow(v, indent + 2)}" for k, v in value.items()]
            return f"{{{gap}{comma.join(items)}{gap and self.one_of('', ' ')}}}"
        return f"[{gap}{comma.join(self.flow(v, indent + 2) for v in value)}]"

    def value(self, value, indent, step):
        """What stands behind a colon or a dash, to the end of its last line."""
        if isinstance(value, dict | list) and value and self.one_of(True, True, False):
            inner = indent + step
            return self.behind() + "".join(self.entries(value, inner, self.one_of(1, 2, 4)))
        if isinstance(value, str) and "\n" in value and value[0] not in " \n" and self.one_of(True, False):
            pad = " " * (indent + step)
            lines = "".join(f"{pad}{line}\n" if line else "\n" for line in value.rstrip("\n").split("\n"))
            chomp = {0: "-", 1: ""}.get(len(value) - len(value.rstrip("\n")))
            if chomp is not None and value.replace("\n", "").isprintable():
                text = f" |{chomp}{self.behind()}{lines}"
                self.after_block = True
                return text
        self.after_block = False
        if value is None and self.one_of(True, False):
            return self.behind()
        return " " + self.flow(value, indent + step) + self.behind()

    def entries(self, value, indent, step):
        pad = " " * indent
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"{self.lines(indent)}{pad}{self.scalar(key, key=True)}:{self.value(inner, indent, step)}"
        else:
            for inner in value:
                yield f"{self.lines(indent)}{pad}-{self.value(inner, indent, step)}"
        yield self.lines(indent)


@st.composite
def written(draw):
    """(text, the documents that it holds, its comments)"""
    documents = draw(st.lists(manifests, max_size=3))
    writer = Writer(draw)
    text = ""
    for number, document in enumerate(documents):
        marker = f"---{writer.behind()}" if number or writer.one_of(True, False) else ""
        document = dict(draw(st.permutations(list(document.items()))))
        documents[number] = document
        text += writer.lines(0) + marker
        if writer.one_of(True, True, True, False):
            text += "".join(writer.entries(document, 0, writer.one_of(1, 2, 4)))
        else:
            text += writer.flow(document, 0) + writer.behind()
        end = writer.one_of("", "", "...", "---\n...")
        if end:
            text += end + writer.behind()
    return text, documents, writer.comments
