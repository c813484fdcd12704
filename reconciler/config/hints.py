# SPDX-License-Identifier: Apache-2.0
"""Hints for values of the wrong shape: guesses at what their author meant, as exact as possible."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from reconciler.config.diagnostic import did_you_mean, either, quote
from reconciler.config.document import Map, Seq
from reconciler.config.formats import FORMATS, duration_for, number_hint

Schema = Mapping[str, Any]

_MEANING_THE_SAME = {
    "round-robin": "rr wrr roundrobin weighted-round-robin",
    "source-hash": "sh source ip-hash iphash sourceip persistent",
    "maglev": "mh consistent-hash consistent hash",
    "least-connections": "lc wlc leastconn least-conn sed nq",
    "nat": "masq dnat masquerade lvs-nat",
    "fullnat": "fnat full-nat snat",
    "dsr-l2": "dr gatewaying direct direct-routing route l2dsr",
    "dsr-l3": "tun tunnel ipip l3dsr encap",
    "tcp": "6 tcp4 tcp6",
    "udp": "17 udp4 udp6",
    "sctp": "132 sctp4",
    "icmp": "1 58 icmpv6 ping",
    "draining": "drain maint maintenance",
    "disabled": "down off disable inactive",
    "active": "up on enabled enable ready healthy",
    "generic": "skb xdpgeneric",
    "native": "drv driver xdpdrv",
    "balancer": "lb loadbalancer load-balancer director llb",
    "endpoint": "server backend real-server realserver worker",
}
"""The words of other programs for values of the language."""


def choice_hint(node: Any, choices: Sequence[str]) -> str:
    """About a value that is none of the choices."""
    if isinstance(node, Seq):
        return "one only: write a document for each" if node and all(item in choices for item in node) else ""
    text = str(node).lower()
    parts = [part for part in re.split(r"[^a-z0-9-]+", text) if part]
    if len(parts) > 1 and all(part in choices for part in parts):
        return "one only: write a document for each"
    meant = [choice for choice in choices if text in _MEANING_THE_SAME.get(choice, "").split()]
    meant = meant or [choice for choice in choices if choice.startswith(f"{text}-")]
    if meant:
        return f"did you mean {either(map(quote, meant))}?"
    return did_you_mean(text, choices)


def list_hint(node: Any, schema: Schema, source: str) -> str:
    """About a value where a list belongs."""
    item = schema.get("items", {})
    example = f"for example {as_yaml(schema['examples'][0])}" if schema.get("examples") else ""
    if not isinstance(node, Map):
        if re.match("-[^- ]", source):
            return f"a space belongs behind the '-' that begins an item: `- {source.split()[0].lstrip('-')}`"
        if "integer" in _types(item) and not re.fullmatch(r"[0-9, ]+", source) and "string" not in _types(item):
            return f"list each one, {example}"
        return f"write it as a list: [{source}]"
    if "object" not in _types(item):
        return f"write it as a list, {example}"
    first = next(iter(node), "")
    if first.startswith("-"):
        return f"a space belongs behind the '-' that begins an item: `- {first.lstrip('-')}: …`"
    if first in item.get("properties", ()) or not all(isinstance(value, Map) for value in node.values()):
        return f"begin each item with '- ': `- {first}: …`"
    required = item.get("required", [])
    return f"items have no names of their own: write `- {required[0] if required else '{'}: …` in place of `{first}:`"


def mapping_hint(node: Any, schema: Schema, source: str) -> str:
    """About a value where a mapping belongs."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if isinstance(node, str):
        if label := re.fullmatch(r"([\w./-]+)\s*[=:]\s*([\w./-]+)", node):
            if "address" in properties and label[2].isdigit():
                return f"write it as a mapping: {{address: {label[1]}, port: {label[2]}}}"
            if not properties:
                return f"write it as a mapping: {{{label[1]}: {label[2]}}}"
        chosen = [key for key, part in properties.items() if source in part.get("enum", ())]
        if chosen or (required and "enum" not in properties[required[0]]):
            return f"write it as a mapping: {{{(chosen or required)[0]}: {source}}}"
    if isinstance(node, Seq) and len(node) == 1 and isinstance(node[0], Map) and set(node[0]) <= set(properties):
        return "leave out the '- ': this is one mapping, no list"
    if example := mapping_example(schema):
        return f"write it as a mapping, for example {example}"
    return "write it as a mapping, for example {name: value}"


def mapping_example(schema: Schema) -> str:
    """A value of a schema of mappings, in one line."""
    if schema.get("examples"):
        return as_yaml(schema["examples"][0])
    properties = schema.get("properties", {})
    shown = {
        key: properties[key]["examples"][0] for key in schema.get("required", []) if properties[key].get("examples")
    }
    return as_yaml(shown) if shown else ""


def number_hint_of(node: Any, schema: Schema) -> str:
    """About a value where a whole number belongs."""
    if isinstance(node, str):
        if re.fullmatch("[1-5]xx", node.lower()):
            return "list each status, for example [200, 204]"
        return number_hint(node)
    if isinstance(node, Map) and isinstance(node.get("port"), int):
        return f"write the number alone: {node['port']}"
    return ""


def text_hint(node: Any, schema: Schema, source: str, siblings: Schema, key: str) -> str:
    """About a value where a text belongs."""
    if isinstance(node, Seq):
        if schema.get("format") == "port-range" and len(node) == 2:
            return f"write {node[0]}-{node[1]}"
        if key + "s" in siblings:
            return f"write several as '{key}s'"
        return (
            f"without brackets: {node[0]}"
            if len(node) == 1 and not isinstance(node[0], Map | Seq)
            else "name one only"
        )
    if isinstance(node, Map) and len(node) == 1 and next(iter(node.values())) is None:
        return f"templates (*.yaml.j2) fill in values, with two brackets: {{{{ {next(iter(node))} }}}}"
    if isinstance(node, Map):
        return f"write the name alone: {node['name']}" if isinstance(node.get("name"), str) else ""
    if isinstance(node, bool):
        return f"put it in quotes: '{source}'"
    if schema.get("format", "").endswith("duration") and source != "0":
        return f"add a unit: {source}s" if source.isdecimal() else f"add a unit: {duration_for(source + 's')}"
    if "format" in schema:
        complaint = FORMATS[schema["format"]].complaint(source)
        return complaint.hint if complaint else ""
    return f"put it in quotes: '{source}'"


def nothing_hint(source: str) -> str:
    """About a key that has no value."""
    if source:
        return f"{source} stands for nothing: write a value, or '{source}' in quotes if you mean that text"
    return "write the value after the key, or below it and further to the right"


def name_hint(text: str) -> str:
    """About a text that is no name."""
    name = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
    return f"did you mean {quote(name)}?" if name and len(text) <= 63 else ""


def as_yaml(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _types(schema: Schema) -> Sequence[str]:
    types: str | list[str] = schema.get("type", [])
    return [types] if isinstance(types, str) else types
