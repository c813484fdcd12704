# SPDX-License-Identifier: Apache-2.0
"""Health checks of LoxiLB: from the rule itself, else from its endpoint objects, else LoxiLB's default.

LoxiLB has a probe for each endpoint, manifests a check for each pool, so the first endpoint's is taken for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reconciler.importers import values
from reconciler.importers.checks import health_check
from reconciler.importers.draft import Endpoint, Notices
from reconciler.importers.json_text import Object, text_of, whole_of

MONITORED_MODES = (1, 2, 5)  # onearm, fullnat and hostonearm are probed without being asked
_DEFAULT_INTERVAL_S = 60
_DEFAULT_FAILURES = 2
_TYPES = {
    "ping": "ping", "icmp": "ping", "tcp": "tcp", "connect-tcp": "tcp", "udp": "udp", "connect-udp": "udp",
    "sctp": "sctp", "connect-sctp": "sctp", "http": "http", "https": "https", "none": "none",
}  # fmt: skip
_BY_PROTOCOL = {"tcp": "tcp", "udp": "udp", "sctp": "sctp", "icmp": "ping"}


class Probes:
    """The endpoint objects of a LoxiLB, and which of them a rule uses."""

    def __init__(self, hosts: Sequence[Object], notices: Notices) -> None:
        self._notices = notices
        self._hosts = hosts
        self._used: set[int] = set()
        self._by_address: dict[str, list[Object]] = {}
        for host in hosts:
            self._by_address.setdefault(text_of(host, "hostname").split("/")[0], []).append(host)

    def check(
        self, rule: Object, endpoints: Sequence[Endpoint], protocol: str, port: int, where: str
    ) -> dict[str, Any] | None:
        """The health check of a monitored rule."""
        found = [self._one(rule, endpoint, protocol, port, where) for endpoint in endpoints]
        if not found:
            return self._one(rule, None, protocol, port, where)
        for endpoint, check in zip(endpoints, found, strict=True):
            if check != found[0]:
                message = f"{where}: endpoint {endpoint.address} has a probe of its own"
                self._notices.add(endpoint.line, f"{message}: that of the first endpoint is written for all")
        return found[0]

    def note_unused(self) -> None:
        for host in self._hosts:
            if id(host) not in self._used:
                name = text_of(host, "name") or text_of(host, "hostname")
                self._notices.add(host.line, f"no monitored rule uses the endpoint object {name}: it is left out")

    def _one(
        self, rule: Object, endpoint: Endpoint | None, protocol: str, port: int, where: str
    ) -> dict[str, Any] | None:
        target = (endpoint and endpoint.port) or port
        host = self._host(endpoint, protocol, target)
        kind = text_of(rule, "probetype")
        source = rule if kind or host is None else host
        kind = kind or (text_of(host, "probetype") if host else "") or _BY_PROTOCOL.get(protocol, "ping")
        check_type = _TYPES.get(kind.lower())
        line = source.lines.get("probetype", source.line)
        if check_type is None:
            self._notices.add(line, f"{where}: probe type {kind} has no counterpart: a ping is written")
            check_type = "ping"
        if check_type == "none":
            return None
        interval = whole_of(rule, "probetimeout", 86_400) or (whole_of(host, "probeduration", 86_400) if host else 0)
        failures = whole_of(rule, "proberetries", 1000) or (whole_of(host, "inactiveretries", 1000) if host else 0)
        probe_port = whole_of(source, "probeport", values.MAX_PORT)
        return health_check(
            check_type,
            interval or _DEFAULT_INTERVAL_S,
            failures or _DEFAULT_FAILURES,
            self._content(check_type, source, where),
            (line, where),
            self._notices,
            port=probe_port if probe_port != target else 0,
        )

    def _host(self, endpoint: Endpoint | None, protocol: str, port: int) -> Object | None:
        """The endpoint object that LoxiLB would use for an endpoint: the one of its name, else of its port."""
        found = self._by_address.get(str(endpoint.address), []) if endpoint else []
        name = f"{endpoint.address}_{protocol}_{port}" if endpoint else ""
        ranked = sorted(found, key=lambda h: (text_of(h, "name") != name, whole_of(h, "probeport", 65_535) != port))
        if not ranked:
            return None
        self._used.add(id(ranked[0]))
        return ranked[0]

    def _content(self, kind: str, source: Object, where: str) -> dict[str, str]:
        """The text that a probe sends, and the answer that it expects."""
        request, response = text_of(source, "probereq"), text_of(source, "proberesp")
        if kind == "udp":
            return {"send": request, "expect": response}
        if kind not in ("http", "https"):
            return {}
        if response:
            line = source.lines["proberesp"]
            self._notices.missing(line, f"{where}: the text that the answer to the probe must hold")
        return {"path": "/" + request.lstrip("/")}
