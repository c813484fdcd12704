# SPDX-License-Identifier: Apache-2.0
"""Health checkers of keepalived. There each real server has one, in manifests each pool.

Settings are inherited: those of a virtual server are defaults for its real servers, those of a real server for its
checkers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import takewhile
from typing import Any

from reconciler.importers import values
from reconciler.importers.checks import health_check
from reconciler.importers.draft import Address, Notices, bare
from reconciler.importers.keepalived_syntax import Statement

SETTINGS = ("delay_loop", "connect_timeout", "retry", "nb_get_retry", "nb_sock_retry", "virtualhost")
CHECKERS = {
    "TCP_CHECK": "tcp", "HTTP_GET": "http", "SSL_GET": "https", "UDP_CHECK": "udp", "PING_CHECK": "ping",
    "SMTP_CHECK": "tcp", "DNS_CHECK": "udp", "MISC_CHECK": "", "BFD_CHECK": "", "FILE_CHECK": "",
}  # fmt: skip
"""Checker → type of a health check; empty: there is none like it."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way that requests take to the real servers of a virtual server: VIPs, their ports, mode."""

    vips: Collection[Address]
    ports: Collection[int]
    mode: str


_NEAREST = ("SMTP_CHECK", "DNS_CHECK")
_WEB = ("HTTP_GET", "SSL_GET")
_DEFAULT_INTERVAL_S = "60"
_DEFAULT_TIMEOUT_S = "5"
_DEFAULT_RETRIES = {"DNS_CHECK": "3"}
_UNDERSTOOD = {
    "HTTP_GET": {"url"}, "SSL_GET": {"url"}, "UDP_CHECK": {"payload", "require_reply"},
}  # fmt: skip
"""The settings of a checker beyond those that all have."""
_PLACE = ("connect_ip", "connect_port")
_DEFAULTS = {
    "min_reply_length": "0", "max_reply_length": "255", "http_protocol": "1.0", "log_all_failures": "false",
    "alpha": "false", "fast_recovery": "false", "fwmark": "0",
}  # fmt: skip
_OFF = ("off", "no", "false")
_RETRY_DELAYS_S = {"HTTP_GET": "3", "SSL_GET": "3"}  # seconds; 1 for all others
_SYNONYMS = {"nb_get_retry": "retry", "nb_sock_retry": "retry"}
_HEXADECIMAL = re.compile("[0-9A-Fa-f]{2}")
_MAX_STATUS = 599
_MAX_RETRIES = 2**31


def check(
    server: Sequence[Statement], reals: Sequence[Statement], way: Way, title: str, notices: Notices
) -> dict[str, Any] | None:
    """The health check for the pool of a virtual server: that of its first real server with one."""
    found = [(real, _of_real(server, real, way, title, notices)) for real in reals]
    chosen = next((checked for _, checked in found if checked), None)
    for real, checked in found:
        if checked != chosen:
            what = "another health check" if checked else "no health check"
            message = f"real_server {bare(real.value)} has {what}: that of the first one with any is written for all"
            notices.add(real.line, f"{title}: {message}")
    return chosen


def _of_real(
    server: Sequence[Statement], real: Statement, way: Way, title: str, notices: Notices
) -> dict[str, Any] | None:
    body = real.block or []
    checkers = [statement for statement in body if statement.keyword in CHECKERS]
    chosen = next((statement for statement in checkers if CHECKERS[statement.keyword]), None)
    where = f"{title}: real_server {bare(real.value)}"
    for statement in checkers:
        if not CHECKERS[statement.keyword]:
            notices.missing(statement.line, f"{where}: {statement.keyword}")
        elif statement is not chosen:
            message = f"a pool has one health check: {statement.keyword} is left out"
            notices.add(statement.line, f"{where}: {message}")
    if chosen is None:
        return None
    if chosen.keyword in _NEAREST:
        message = f"{chosen.keyword} has no counterpart: {CHECKERS[chosen.keyword]} is written"
        notices.add(chosen.line, f"{where}: {message}")
    with notices.leaving_out(f"the health check of {where}"):
        return _of_checker(chosen, [*server, *body, *(chosen.block or [])], real, way, where, notices)
    return None


def _of_checker(
    checker: Statement, scope: Sequence[Statement], real: Statement, way: Way, where: str, notices: Notices
) -> dict[str, Any]:
    """`scope` holds the settings that a checker sees, the nearest last."""
    kind = CHECKERS[checker.keyword]
    own = checker.block or []
    understood = {*SETTINGS, *_PLACE, *_UNDERSTOOD.get(checker.keyword, ())}
    for statement in own:
        if statement.keyword not in understood and not _says_nothing(statement, checker.keyword):
            notices.missing(statement.line, f"{where}: {checker.keyword}: {bare(str(statement))}")
    wanted = {*SETTINGS, *_PLACE, *understood}
    settings = {_SYNONYMS.get(s.keyword, s.keyword): s for s in scope if s.keyword in wanted}
    through = _through(settings.get("connect_ip"), real, way, checker, where, notices)
    content: dict[str, Any] = {}
    if checker.keyword in _WEB:
        content = _web(checker, settings, own, where, notices)
    elif checker.keyword == "UDP_CHECK":
        content = _datagrams(settings, where, notices)
    default_retries = _DEFAULT_RETRIES.get(checker.keyword, "1")
    found = health_check(
        kind,
        _seconds(settings, "delay_loop", _DEFAULT_INTERVAL_S, where, notices),
        1 + _retries(settings, default_retries, where, notices),
        content,
        (checker.line, where),
        notices,
        port=0 if kind == "ping" else _port(settings, real, way),
        timeout_s=_seconds(settings, "connect_timeout", _DEFAULT_TIMEOUT_S, where, notices),
    )
    return found | ({"through": "vip"} if through else {})


def _says_nothing(statement: Statement, checker: str) -> bool:
    """Whether a setting only repeats the default."""
    if statement.keyword == "delay_before_retry":
        return statement.value == _RETRY_DELAYS_S.get(checker, "1")
    value = statement.value.lower()
    value = "false" if value in _OFF else value
    return bool(value) and _DEFAULTS.get(statement.keyword) == value


def _through(
    ip: Statement | None, real: Statement, way: Way, checker: Statement, where: str, notices: Notices
) -> bool:
    """Whether a check goes to the VIP on the endpoint; any other address has no counterpart."""
    if ip is None:
        return False
    with notices.leaving_out(f"{where}: {checker.keyword}: connect_ip"):
        address = values.address(ip.value, ip.line)
        if address in way.vips and way.mode.startswith("dsr"):
            return True
        if address != values.address(real.value.partition("/")[0], real.line):
            notices.missing(ip.line, f"{where}: {checker.keyword}: {bare(str(ip))}")
    return False


def _seconds(settings: dict[str, Statement], keyword: str, default: str, where: str, notices: Notices) -> float:
    """A time; one that makes no sense is ignored, as keepalived does."""
    if statement := settings.get(keyword):
        with notices.leaving_out(f"{where}: {keyword}"):
            return values.seconds(statement.value, statement.line)
    return float(default)


def _retries(settings: dict[str, Statement], default: str, where: str, notices: Notices) -> int:
    if statement := settings.get("retry"):
        with notices.leaving_out(f"{where}: {statement.keyword}"):
            return values.number(statement.value, statement.line, "retries", 0, _MAX_RETRIES)
    return int(default)


def _port(settings: dict[str, Statement], real: Statement, way: Way) -> int:
    """The checked port, 0 for the endpoint's. keepalived checks the real server's own port. That is the endpoint's,
    except in modes whose requests come to the port of the service, whatever port the real server has."""
    if statement := settings.get("connect_port"):
        return values.port(statement.value, statement.line)
    port = values.port(real.words[2], real.line) if len(real.words) > 2 else 0
    return port if way.mode.startswith("dsr") and set(way.ports) != {port} else 0


def _web(
    checker: Statement, settings: dict[str, Statement], own: Sequence[Statement], where: str, notices: Notices
) -> dict[str, Any]:
    urls = [statement for statement in own if statement.keyword == "url"]
    for statement in urls[1:]:
        notices.add(statement.line, f"{where}: a health check has one path: this url is left out")
    url = {s.keyword: s for s in (urls[0].block or [] if urls else ())}
    for statement in url.values():
        if statement.keyword not in ("path", "status_code", "virtualhost"):
            notices.missing(statement.line, f"{where}: {checker.keyword}: {bare(str(statement))}")
    found: dict[str, Any] = {"path": "/" + (url["path"].value.lstrip("/") if "path" in url else "")}
    if host := url.get("virtualhost") or settings.get("virtualhost"):
        found["host"] = host.value
    return found | {"status": _statuses(url.get("status_code"))}


def _statuses(statement: Statement | None) -> list[int]:
    """Status codes; of ranges those that HTTP gives a meaning to (RFC 9110 and IANA's registry)."""
    found: dict[int, None] = {}
    for item in statement.words[1:] if statement else ["200-299"]:
        first, hyphen, last = item.partition("-")
        line = statement.line if statement else 0
        low = values.number(first, line, "a status code", 100, _MAX_STATUS)
        high = values.number(last, line, "a status code", low, _MAX_STATUS) if hyphen else low
        codes = [int(status) for status in HTTPStatus if low <= status <= high] if hyphen else [low]
        found |= dict.fromkeys(codes)
    return list(found)


def _datagrams(settings: dict[str, Statement], where: str, notices: Notices) -> dict[str, str]:
    found = {}
    for keyword, key in (("payload", "send"), ("require_reply", "expect")):
        statement = settings.get(keyword)
        if statement is None:
            continue
        content, is_whole = _bytes(statement)
        found[key] = content.decode("ascii", "replace")
        if not found[key]:
            notices.missing(statement.line, f"{where}: {statement.keyword} without content")
        elif not is_whole:
            message = f"{where}: {statement.keyword} says x for any digit: the bytes before it are written"
            notices.add(statement.line, message)
    return found


def _bytes(statement: Statement) -> tuple[bytes, bool]:
    """The bytes of hexadecimal digits, and whether these are all: each pair of digits of a word is a byte, and so is a
    single last digit. The bytes end at an x, which stands for any digit."""
    pairs = [word[i : i + 2].zfill(2) for word in statement.words[1:] for i in range(0, len(word), 2)]
    known = list(takewhile(_HEXADECIMAL.fullmatch, pairs))
    return bytes.fromhex("".join(known)), len(known) == len(pairs)
