# SPDX-License-Identifier: Apache-2.0
"""Health checkers of keepalived: one for each real server there, one for a pool here.

Settings are inherited: those of a virtual server are defaults for its real servers, theirs for their checkers.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from reconciler.config.diagnostic import quote
from reconciler.importers import values
from reconciler.importers.checks import health_check
from reconciler.importers.draft import Notices
from reconciler.importers.keepalived_syntax import Statement

SETTINGS = ("delay_loop", "connect_timeout", "retry", "nb_get_retry", "virtualhost")
CHECKERS = {
    "TCP_CHECK": "tcp", "HTTP_GET": "http", "SSL_GET": "https", "UDP_CHECK": "udp", "PING_CHECK": "ping",
    "SMTP_CHECK": "tcp", "DNS_CHECK": "udp", "MISC_CHECK": "", "BFD_CHECK": "", "FILE_CHECK": "",
}  # fmt: skip
"""Checker → type of a health check; empty: there is none like it."""

_NEAREST = ("SMTP_CHECK", "DNS_CHECK")
_WEB = ("HTTP_GET", "SSL_GET")
_DEFAULT_INTERVAL_S = "60"
_DEFAULT_TIMEOUT_S = "5"
_DEFAULT_RETRIES = {"DNS_CHECK": "3"}
_KNOWN = {
    *SETTINGS, "connect_port", "connect_ip", "url", "payload", "require_reply", "path", "status_code",
    "fast_recovery", "enable_sni", "http_protocol",
}  # fmt: skip
_SYNONYMS = {"nb_get_retry": "retry"}
_MAX_STATUS = 599
_MAX_RETRIES = 2**31


def check(
    server: Sequence[Statement], reals: Sequence[Statement], title: str, notices: Notices
) -> dict[str, Any] | None:
    """The health check for the pool of a virtual server: that of its first real server with one."""
    found = [(real, _of_real(server, real, title, notices)) for real in reals]
    chosen = next((checked for _, checked in found if checked), None)
    for real, checked in found:
        if checked != chosen:
            what = "another health check" if checked else "no health check"
            message = f"real_server {real.value} has {what}: that of the first one with any is written for all"
            notices.add(real.line, f"{title}: {message}")
    return chosen


def _of_real(server: Sequence[Statement], real: Statement, title: str, notices: Notices) -> dict[str, Any] | None:
    body = [statement for statement in real.block or [] if not statement.condition]
    checkers = [statement for statement in body if statement.keyword in CHECKERS]
    usable = [statement for statement in checkers if CHECKERS[statement.keyword]]
    where = f"{title}: real_server {real.value}"
    for statement in checkers:
        if statement not in usable:
            notices.missing(statement.line, f"{where}: {statement.keyword}")
        elif statement is not usable[0]:
            message = f"a pool has one health check: {statement.keyword} is left out"
            notices.add(statement.line, f"{where}: {message}")
    if not usable:
        return None
    checker = usable[0]
    if checker.keyword in _NEAREST:
        message = f"{checker.keyword} has no counterpart: {CHECKERS[checker.keyword]} is written"
        notices.add(checker.line, f"{where}: {message}")
    return _of_checker(checker, [*server, *body, *(checker.block or [])], real, where, notices)


def _of_checker(
    checker: Statement, scope: Sequence[Statement], real: Statement, where: str, notices: Notices
) -> dict[str, Any]:
    """`scope` holds the settings that a checker sees, the nearest last."""
    settings = {_SYNONYMS.get(s.keyword, s.keyword): s for s in scope if s.keyword in _KNOWN and not s.condition}
    own = [statement for statement in checker.block or [] if not statement.condition]
    for statement in own:
        if statement.keyword not in _KNOWN:
            notices.missing(statement.line, f"{where}: {checker.keyword}: {quote(str(statement))[1:-1]}")
    if (ip := settings.get("connect_ip")) and ip.value != real.value:
        notices.missing(ip.line, f"{where}: {checker.keyword}: {quote(str(ip))[1:-1]}")
    interval = _seconds(settings, "delay_loop", _DEFAULT_INTERVAL_S)
    timeout = _seconds(settings, "connect_timeout", _DEFAULT_TIMEOUT_S)
    retries = settings.get("retry")
    default = _DEFAULT_RETRIES.get(checker.keyword, "1")
    content: dict[str, Any] = {}
    if checker.keyword in _WEB:
        content = _web(checker, settings, own, where, notices)
    elif checker.keyword == "UDP_CHECK":
        content = _datagrams(settings, where, notices)
    return health_check(
        CHECKERS[checker.keyword],
        interval,
        1 + values.number(retries.value if retries else default, checker.line, "retries", 0, _MAX_RETRIES),
        content,
        (checker.line, where),
        notices,
        port=_port(settings, real),
        timeout_s=timeout,
    )


def _seconds(settings: dict[str, Statement], keyword: str, default: str) -> float:
    statement = settings.get(keyword)
    return values.seconds(statement.value, statement.line) if statement else float(default)


def _port(settings: dict[str, Statement], real: Statement) -> int:
    """The port that is checked, as far as it is said: that of the checker, else of the real server."""
    if statement := settings.get("connect_port"):
        return values.port(statement.value, statement.line)
    return values.port(real.words[2], real.line) if len(real.words) > 2 else 0


def _web(
    checker: Statement, settings: dict[str, Statement], own: Sequence[Statement], where: str, notices: Notices
) -> dict[str, Any]:
    urls = [statement for statement in own if statement.keyword == "url"]
    for statement in urls[1:]:
        notices.add(statement.line, f"{where}: a health check has one path: this url is left out")
    url = {s.keyword: s for s in (urls[0].block or [] if urls else ()) if not s.condition}
    for statement in url.values():
        if statement.keyword not in ("path", "status_code", "virtualhost"):
            notices.missing(statement.line, f"{where}: {checker.keyword}: {quote(str(statement))[1:-1]}")
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
        found[key] = _bytes(statement).decode("ascii", "replace")
        if not found[key]:
            notices.missing(statement.line, f"{where}: {statement.keyword} without content")
    return found


def _bytes(statement: Statement) -> bytes:
    """The bytes that hexadecimal digits stand for: each pair one, and one that is left over in its word too."""
    pairs = [word[i : i + 2].zfill(2) for word in statement.words[1:] for i in range(0, len(word), 2)]
    try:
        return bytes.fromhex("".join(pairs))
    except ValueError:
        return b"\0"  # an x stands for any digit
