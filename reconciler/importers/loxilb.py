# SPDX-License-Identifier: Apache-2.0
"""LoxiLB's rules: lbconfig.txt and EPconfig.txt of `loxicmd save`, answers and requests of the REST interface, its
export, the YAML of `loxicmd create -f`, and command lines of loxicmd.

Several JSON texts may follow each other, so both files of a save go through one pipe. Field names and meanings:
common/common.go and pkg/loxinet/rules.go of LoxiLB, pkg/api/loadBalancer.go of loxicmd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from reconciler.config.diagnostic import quote
from reconciler.importers import json_text, loxicmd, values, yaml_text
from reconciler.importers.assemble import assemble
from reconciler.importers.draft import Address, Endpoint, Imported, InputError, Notices, Service, bare, place
from reconciler.importers.json_text import Object, shown, text_of, whole_of
from reconciler.importers.loxicmd import MODES, SELECTIONS
from reconciler.importers.loxilb_probes import MONITORED_MODES, Probes

_RULES = ("lbattr", "loadbalancer")
_ENDPOINTS = ("attr", "endpoint")
_HINT = "give lbconfig.txt of `loxicmd save`, what GET /config/loadbalancer/all answers, or commands of loxicmd"
_DEFAULT_PERSISTENCE_S = 10_800
_COMMAND = re.compile(rf"^[^#\n]*\b{loxicmd.PROGRAM}\s", re.MULTILINE)
_YAML = re.compile(r"^(?:kind|lbAttr|serviceArguments|- *serviceArguments) *:", re.MULTILINE | re.IGNORECASE)

_DEFAULT, _ONEARM, _FULLNAT, _DSR, _FULLPROXY = range(5)
_MODES = {_DEFAULT: "nat", _ONEARM: "fullnat", _FULLNAT: "fullnat", _DSR: "dsr-l2", _FULLPROXY: "fullnat"}
_TLS_ENDS = 1

# `hash` covers addresses and ports of the connection, as maglev does and source-hash does not.
_ALGORITHMS = {"rr": "round-robin", "hash": "maglev", "priority": "round-robin", "lc": "least-connections"}
_WEIGHTED = "priority"

# The effect of these is expressed by other fields, or they are no configuration.
_KNOWN = {
    "externalip", "port", "portmax", "protocol", "sel", "mode", "monitor", "inactivetimeout", "name", "probetype",
    "probeport", "probereq", "proberesp", "probetimeout", "proberetries", "persisttimeout", "security", "lbsec",
    "snat", "egress", "fullnat",
}  # fmt: skip
_REASONS = {
    "bgp": "BGP has no counterpart: let a routing daemon announce the VIP",
    "managed": "a Kubernetes controller owns this rule: it is written as it is now",
    "block": "firewall marks have no counterpart: the service is written for packets with any mark",
    "proxyprotocolv2": "PROXY protocol headers have no counterpart: endpoints must not expect one",
}


def parse(text: str) -> Imported:
    """Services, pools and health checks of LoxiLB rules. Raises InputError where there are none."""
    notices = Notices()
    text = text.removeprefix("\ufeff")
    begin = text.lstrip()[:1]
    if begin in ("{", "[", ""):
        rules, hosts = _of_documents(json_text.parse(text), notices)
    elif _COMMAND.search(text):
        rules, hosts = loxicmd.rules_and_endpoints(text, notices)
    elif _YAML.search(text):
        rules, hosts = _of_documents(yaml_text.parse(text, notices), notices)
    else:
        json_text.parse(text)  # raises the error that names the place
        rules, hosts = [], []
    if not rules and not hosts and notices.error:
        raise notices.error
    probes = Probes(hosts, notices)
    drafts = []
    for rule in rules:
        with notices.leaving_out("the service"):
            if draft := _rule(rule, probes, notices):
                drafts.append(draft)
    if not drafts and len(notices) == 1 and notices.error:
        raise notices.error
    probes.note_unused()
    return assemble(drafts, notices)


def _of_documents(documents: list[Any], notices: Notices) -> tuple[list[Object], list[Object]]:
    """The rules and the endpoint objects of documents: lists of them, or single ones."""
    rules: list[Object] = []
    hosts: list[Object] = []
    for document in documents:
        for item in document if isinstance(document, list) and document else [document]:
            _of_document(item, rules, hosts, notices)
    if not documents:
        raise InputError(0, "the input is empty", hint=_HINT)
    return rules, hosts


def _of_document(document: Any, rules: list[Object], hosts: list[Object], notices: Notices) -> None:
    """Add the rules and endpoint objects of a document. Raises InputError if it is none of LoxiLB's."""
    if isinstance(document, Object) and isinstance(spec := document.get("spec"), Object) and "kind" in document:
        kind = text_of(document, "kind").lower()  # of `loxicmd create -f`
        if kind == "loadbalancer":
            rules.append(spec)
        elif kind == "endpoint":
            hosts.append(spec)
        else:
            notices.missing(document.lines["kind"], f"kind {bare(kind)}")
    elif isinstance(document, Object) and "servicearguments" in document:
        rules.append(document)  # what is posted to the REST interface
    elif isinstance(document, Object) and "hostname" in document:
        hosts.append(document)
    elif isinstance(document, Object) and document.keys() & {*_RULES, *_ENDPOINTS}:
        rules += _objects(document, _RULES)
        hosts += _objects(document, _ENDPOINTS)
        for key, value in document.items():
            if value and key not in (*_RULES, *_ENDPOINTS, "timestamp", "version"):
                notices.missing(document.lines[key], f'"{bare(document.names[key])}"')
    else:
        line = document.line if isinstance(document, Object) else 1
        raise InputError(line, 'this holds no rules of LoxiLB: there is neither "lbAttr" nor "Attr"', hint=_HINT)


def _objects(document: Object, keys: tuple[str, ...]) -> Iterator[Object]:
    for key in keys:
        yield from _list(document, key)


def _list(parent: Object, key: str) -> list[Object]:
    found = parent.get(key) or []
    if not isinstance(found, list) or not all(isinstance(item, Object) for item in found):
        raise InputError(parent.lines[key], f'expected a list of objects as "{parent.names[key]}"')
    return found


def _rule(rule: Object, probes: Probes, notices: Notices) -> Service | None:
    """The service of a rule, if it can be one."""
    service = rule.get("servicearguments")
    if not isinstance(service, Object):
        raise InputError(rule.line, 'a rule has no "serviceArguments"')
    vip = values.address(text_of(service, "externalip"), service.lines.get("externalip", service.line))
    protocol = text_of(service, "protocol").lower()
    first, last = whole_of(service, "port", values.MAX_PORT), whole_of(service, "portmax", values.MAX_PORT)
    ports = range(first, max(first, last) + 1) if first and protocol != "icmp" else range(0)
    where = place(vip, protocol, [ports] if ports else [])
    mode = whole_of(service, "mode", 99) or (_FULLNAT if service.get("fullnat") else _DEFAULT)
    if reason := _reason_against(service, protocol, mode):
        notices.add(service.line, f"{where}: {reason}: the service is left out")
        return None
    _note_mode(mode, where, service.lines.get("mode", service.line), notices)
    if _security(service):
        message = f"{where}: TLS has no counterpart: it is passed on to the endpoints"
        notices.add(service.line, f"{message}, which need the certificates")
    _note_fields(rule, service, where, notices)
    algorithm, selection, affinity = _selection(service, where, notices)
    endpoints = []
    for item in _list(rule, "endpoints"):
        with notices.leaving_out(f"an endpoint of {where}"):
            endpoints.append(_endpoint(item, protocol, ports, where, notices))
    monitored = bool(service.get("monitor")) or mode in MONITORED_MODES
    idle = whole_of(service, "inactivetimeout", 2**31)
    return Service(
        line=service.line,
        vips=(vip, *_secondary(rule, where, notices)),
        protocol=protocol,
        ports=(ports,) if ports else (),
        mode=_MODES[mode],
        algorithm=algorithm,
        endpoints=tuple(endpoints),
        name=text_of(service, "name"),
        scheduler=f"sel={selection}",
        unweighted=selection != _WEIGHTED,
        affinity=affinity,
        idle_timeout=values.idle_timeout(idle, "inactiveTimeOut", (service.line, where), notices) if idle else None,
        allowed_sources=tuple(dict.fromkeys(_source(item) for item in _list(rule, "allowedsources"))),
        check=probes.check(service, endpoints, protocol, first, where) if monitored else None,
    )


def _reason_against(service: Object, protocol: str, mode: int) -> str:
    """Why a rule can't become a service; empty if it can."""
    if service.get("snat"):
        return "source NAT is no service"
    if service.get("egress"):
        return "outgoing traffic is no service"
    if protocol not in ("tcp", "udp", "sctp", "icmp"):
        return f"protocol {quote(protocol)} has no counterpart"
    if _security(service) == _TLS_ENDS:
        return "TLS ends at the balancer, which has no counterpart"
    if mode not in _MODES:
        return f"mode={MODES[mode] if mode < len(MODES) else mode} has no counterpart"
    return ""


def _note_fields(rule: Object, service: Object, where: str, notices: Notices) -> None:
    for key, value in service.items():
        if value and key in _REASONS:
            notices.add(service.lines[key], f"{where}: {_REASONS[key]}")
        elif value and key not in _KNOWN:
            notices.missing(service.lines[key], f"{where}: {bare(service.names[key])}={shown(value)}")
    for key, value in rule.items():
        if value and key not in ("servicearguments", "endpoints", "secondaryips", "allowedsources"):
            notices.missing(rule.lines[key], f"{where}: {bare(rule.names[key])}")


def _security(service: Object) -> int:
    """How TLS is treated: the REST interface and the saved file name this differently."""
    return whole_of(service, "security", 9) or whole_of(service, "lbsec", 9)


def _note_mode(mode: int, where: str, line: int, notices: Notices) -> None:
    if mode == _DSR:
        message = "dsr-l2 is written for mode=dsr; where routes lead to endpoints through IPIP tunnels, write dsr-l3"
        notices.add(line, f"{where}: {message}")
    if mode == _FULLPROXY:
        message = "mode=fullproxy, which ends connections itself, has no counterpart: fullnat is written"
        notices.add(line, f"{where}: {message}")


def _selection(service: Object, where: str, notices: Notices) -> tuple[str, str, str | None]:
    """The algorithm, LoxiLB's word for it, and how long a client stays with its endpoint."""
    number, line = whole_of(service, "sel", 2**31), service.lines.get("sel", service.line)
    selection = SELECTIONS[number] if number < len(SELECTIONS) else str(number)
    if selection == "persist":
        timeout_s = whole_of(service, "persisttimeout", 2**31) or _DEFAULT_PERSISTENCE_S
        return "round-robin", selection, values.timeout(timeout_s, "persistTimeout", (line, where), notices)
    if selection not in _ALGORITHMS:
        notices.add(line, f"{where}: sel={selection} has no counterpart: round-robin is written")
    return _ALGORITHMS.get(selection, "round-robin"), selection, None


def _endpoint(item: Object, protocol: str, ports: range, where: str, notices: Notices) -> Endpoint:
    line = item.lines.get("endpointip", item.line)
    target = whole_of(item, "targetport", values.MAX_PORT)
    for key, value in item.items():
        if value and key not in ("endpointip", "targetport", "weight", "state", "counter", "counters"):
            notices.missing(item.lines[key], f"{where}: {bare(item.names[key])}={shown(value)} of an endpoint")
    if len(ports) > 1 and target == ports[0]:
        target = 0  # the rule's form for a range that is not translated
    return Endpoint(
        address=values.address(text_of(item, "endpointip"), line),
        port=None if protocol == "icmp" or not target else target,
        weight=whole_of(item, "weight", 255) if "weight" in item else 1,
        line=line,
    )


def _secondary(rule: Object, where: str, notices: Notices) -> list[Address]:
    items = _list(rule, "secondaryips")
    if items:
        message = "secondaryIPs are written as further VIPs; adding them to SCTP handshakes has no counterpart"
        notices.add(rule.lines["secondaryips"], f"{where}: {message}")
    found = []
    for item in items:
        with notices.leaving_out(f"a secondary IP of {where}"):
            found.append(values.address(text_of(item, "secondaryip"), item.line))
    return found


def _source(item: Object) -> str:
    return values.prefix(text_of(item, "prefix"), item.line)
