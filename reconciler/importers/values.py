# SPDX-License-Identifier: Apache-2.0
"""Values of other tools' formats: addresses, ports, numbers, times. Anything else raises InputError."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

from reconciler.config.diagnostic import quote
from reconciler.importers.draft import Address, InputError, Notices

MAX_PORT = 65_535
AFFINITY_S = (1.0, 36 * 3_600.0)
IDLE_TIMEOUT_S = (1.0, 4 * 3_600.0)
_HOST_PORT = re.compile(r"(?:\[([^][]*)\]|([^][:]*))(?::([^:]*))?")


def lines_of(text: str) -> list[str]:
    """The lines of a text as editors count them; Python's splitlines() breaks lines at more characters."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def address(text: str, line: int) -> Address:
    try:
        if "%" not in text:  # the zone of an IPv6 address: a VIP has none
            return ip_address(text)
    except ValueError:
        pass
    hint = "names are not looked up, and variables not filled in: write the address"
    raise InputError(line, f"expected an IP address, got {quote(text)}", hint=hint)


def prefix(text: str, line: int) -> str:
    """A network as the manifests write it: its own address and the length of its prefix."""
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise InputError(line, f"expected a prefix like 10.0.0.0/8, got {quote(text)}") from None


def number(text: str, line: int, what: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    value = int(text) if re.fullmatch("[0-9]{1,15}", text) else -1
    if not low <= value <= high:
        raise InputError(line, f"expected {what} from {low} to {high}, got {quote(text)}")
    return value


def port(text: str, line: int) -> int:
    """A port; 0 stands for every port, as in IPVS and Katran."""
    if re.fullmatch("[A-Za-z][A-Za-z0-9-]*", text):
        hint = "names of services are not looked up: with -n tools write numbers"
        raise InputError(line, f"expected the number of a port, got {quote(text)}", hint=hint)
    return number(text, line, "a port", 0, MAX_PORT)


def host_port(text: str, line: int) -> tuple[Address, int]:
    """`10.0.0.1:80`, `[2001:db8::1]:80`, or the address alone, which gives port 0."""
    if text.count(":") > 1 and not text.startswith("["):
        return address(text, line), 0
    if not (match := _HOST_PORT.fullmatch(text)):
        raise InputError(line, f"expected ADDRESS:PORT, got {quote(text)}")
    bracketed, plain, port_part = match.groups()
    found = address(bracketed if bracketed is not None else plain, line)
    if (bracketed is not None) != (found.version == 6):
        raise InputError(line, f"expected ADDRESS:PORT, with brackets around IPv6, got {quote(text)}")
    return found, 0 if port_part is None else port(port_part, line)


def seconds(text: str, line: int) -> float:
    """Seconds, whole or with a fraction, more than 0."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not float(text):
        raise InputError(line, f"expected a number of seconds, got {quote(text)}")
    return float(text)


def duration(time_s: float) -> str:
    """Seconds as the manifests write them, in the largest unit that is exact: 4m, 90s, 2500ms."""
    milliseconds = max(1, round(time_s * 1000))
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms"


def clip(value: float, limits: tuple[float, float], what: str, place: tuple[int, str], notices: Notices) -> float:
    """The value; or the limit that it exceeds, with a notice that begins with the words of `place`."""
    low, high = limits
    kept = min(max(value, low), high)
    if kept != value:
        line, where = place
        notices.add(line, f"{where}: {what} {value:g} has no counterpart: {kept:g} is written")
    return kept


def idle_timeout(time_s: float, what: str, place: tuple[int, str], notices: Notices) -> str:
    """How long connections may be idle as the manifests write it."""
    return duration(clip(time_s, IDLE_TIMEOUT_S, what, place, notices))


def timeout(time_s: float, what: str, place: tuple[int, str], notices: Notices) -> str:
    """How long a client keeps its endpoint, as the manifests write it."""
    return duration(clip(time_s, AFFINITY_S, what, place, notices))


def is_text(text: str) -> bool:
    """Whether a text can stand in a manifest as it is: printable ASCII."""
    return text.isascii() and text.isprintable()
