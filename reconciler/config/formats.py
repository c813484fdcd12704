# SPDX-License-Identifier: Apache-2.0
"""Values that are written as texts of a certain form: addresses, networks, durations, ranges of ports.

The schemas name them by `format`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface
from socket import AF_INET, inet_pton

from reconciler.config.diagnostic import quote
from reconciler.model import Address, InterfaceAddress

MAX_PORT = 65_535
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNIT_WORDS = {
    word: unit
    for unit, words in {
        "ms": "ms msec msecs millisecond milliseconds", "s": "s sec secs second seconds",
        "m": "m min mins minute minutes", "h": "h hr hrs hour hours", "d": "d day days",
    }.items()
    for word in words.split()
}  # fmt: skip
_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why a text is no value of its format."""

    rule: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """`noun` names the expected value; `complaint` returns the fault of a text, None if it has none."""

    noun: str
    complaint: Callable[[str], Complaint | None]


def port_range(item: int | str) -> range:
    """The ports that one item of `ports` names: 80, or "8000-8010". Raises ValueError."""
    if isinstance(item, int):
        return range(item, item + 1)
    if not (match := _RANGE.fullmatch(item)):
        raise ValueError(f"expected a number or {_PORT_RANGE}, got the text {quote(item)}")
    first, last = int(match[1]), int(match[2])
    if not 1 <= first <= MAX_PORT or not 1 <= last <= MAX_PORT:
        raise ValueError(f"expected ports from 1 to {MAX_PORT}, got {quote(item)}")
    if first > last:
        raise ValueError(f"the range {quote(item)} ends before it begins")
    return range(first, last + 1)


def seconds(text: str) -> float:
    """A duration like 500ms or 2s. Raises ValueError."""
    if not (match := _DURATION.fullmatch(text)):
        raise ValueError(f"expected {_DURATION_LIKE}, got {quote(text)}")
    return int(match[1]) * _UNITS_MS[match[2]] / 1_000


def duration_for(text: str) -> str:
    """The duration that was probably meant: 1500ms for 1.5s, 5m for 5min, 90m for 1h30m; empty if none."""
    if len(text) > 40:
        return ""
    parts = re.findall(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?\s*([a-z]+)\s*", text.lower())
    units = [_UNIT_WORDS.get(word, "") for _, _, word in parts]
    if not parts or not all(units) or "".join(map("".join, parts)) != re.sub(r"[\s.]", "", text.lower()):
        return ""
    total = 0
    for (whole, fraction, _), unit in zip(parts, units, strict=True):
        total += int(f"{whole}{fraction:0<3}") * _UNITS_MS[unit] // 1_000
    unit = next((unit for unit in reversed(_UNITS_MS) if total and total % _UNITS_MS[unit] == 0), "s")
    return f"{total // _UNITS_MS[unit]}{unit}"


def address(text: str) -> Address:
    """An IPv4 or IPv6 address without a zone. Raises ValueError."""
    if ":" not in text:
        try:  # a fifth of the time that IPv4Address takes for a text, and as strict
            return IPv4Address(int.from_bytes(inet_pton(AF_INET, text), "big"))
        except (OSError, ValueError):
            return IPv4Address(text)
    if "%" in text:
        raise ValueError(text)
    return IPv6Address(text)


def number_hint(text: str) -> str:
    """A hint about a text in the place of a number."""
    if re.fullmatch("[0-9]{1,15}%", text):
        return "write the number alone: it counts in proportion to the others"
    if re.fullmatch("0x[0-9a-f]{1,8}", text.lower()):
        return f"write it as {int(text, 16)}"
    if re.fullmatch("[0-9]{1,3}([_'. ][0-9]{3})+", text):
        return f"write it as {re.sub('[^0-9]', '', text)}"
    if re.fullmatch("[0-9]{1,15} ?[A-Za-z]{1,5}", text):
        return "write the number alone, with all its digits"
    if not re.fullmatch("[0-9]{1,15}", text):
        return ""
    plain = text.lstrip("0") or "0"
    return "remove the quotes" if plain == text else f"write it as {plain}"


def _port_range(text: str) -> Complaint | None:
    try:
        port_range(text)
    except ValueError as error:
        hint = number_hint(text)
        if (match := _RANGE.fullmatch(text)) and int(match[1]) > int(match[2]):
            hint = f"did you mean '{match[2]}-{match[1]}'?"
        elif mapped := re.fullmatch("([0-9]{1,5}):([0-9]{1,5})(?:/(?:tcp|udp|sctp))?", text):
            hint = f"write {mapped[1]} here, and {mapped[2]} as targetPort, or as the port of each endpoint"
        elif with_protocol := re.fullmatch("([0-9]{1,5})/(tcp|udp|sctp)", text):
            hint = f"write {with_protocol[1]}, and `protocol: {with_protocol[2]}`"
        elif not match and (match := re.fullmatch(r"([0-9]{1,5}) *(?:-|:|\.\.|to) *([0-9]{1,5})", text)):
            hint = f"did you mean '{match[1]}-{match[2]}'?"
        elif not hint and re.search("[A-Za-z]", text):
            hint = "names are not looked up: write the number"
        return Complaint("wrong-format", str(error), hint)
    return None


def _duration(text: str) -> Complaint | None:
    try:
        seconds(text)
    except ValueError as error:
        hint = _ADD_UNIT if re.fullmatch("[0-9]+", text) else ""
        if meant := duration_for(text):
            hint = f"did you mean {meant}?"
        return Complaint("wrong-format", str(error), hint)
    return None


def _check_duration(text: str) -> Complaint | None:
    if complaint := _duration(text):
        return complaint
    if 0.01 <= seconds(text) <= 3_600:
        return None
    return Complaint("out-of-range", f"expected a duration from 10ms to 1h, got {quote(text)}")


def _address(text: str) -> Complaint | None:
    if _is_address(text):
        return None
    start, slash, prefix = text.partition("/")
    host, colon, port = text.rpartition(":")
    zoneless, percent, zone = text.partition("%")
    hint = "names are not looked up: write the address" if re.search("[A-Za-z]", text) and ":" not in text else ""
    hint = hint or _four_numbers(text)
    if "://" in text:
        hint = "write the address alone"
    elif slash and _is_address(start):
        hint = f"leave out '/{prefix[:8]}'"
    elif percent and _is_address(zoneless):
        hint = f"leave out '%{zone[:16]}'"
    elif _is_address(text.strip("[]")):
        hint = "leave out the brackets"
    elif "," in text:
        hint = f"one address only; a list of several is written [{text[:60]}]"
    elif colon and port.isdecimal() and ("]" in host or ":" not in host):
        hint = f"leave out ':{port[:8]}': a port has a key of its own"
    return Complaint("wrong-format", f"expected {_ADDRESS}, got {quote(text)}", hint)


def _interface_address(text: str) -> Complaint | None:
    if not (own := _with_prefix(text)):
        hint = f"add the length of the prefix: {text}/{_usual(text)}" if _is_address(text) else _with_length(text)
        return Complaint("wrong-format", f"expected {_INTERFACE_ADDRESS}, got {quote(text)}", hint)
    network = own.network
    if network.prefixlen >= network.max_prefixlen - 1:
        return None
    what = "network itself" if own.ip == network.network_address else ""
    if own.version == 4 and own.ip == network.broadcast_address:
        what = "broadcast address of the network"
    if not what:
        return None
    hint = f"write the address that the interface has, for example {network[1]}/{network.prefixlen}"
    return Complaint("wrong-format", f"{quote(text)} is the {what}, not an address in it", hint)


def _prefix(text: str) -> Complaint | None:
    if not (given := _with_prefix(text)):
        hint = _with_length(text)
        if _is_address(text):
            hint = f"add the length of the prefix: {text}/{address(text).max_prefixlen}"
        return Complaint("wrong-format", f"expected {_PREFIX}, got {quote(text)}", hint)
    if given.ip != given.network.network_address:
        message = f"{quote(text)} is an address in the network {given.network}, not the network"
        return Complaint("wrong-format", message, f"write {given.network}, or {given.ip}/{given.max_prefixlen}")
    return None


def _of_family(version: int) -> Callable[[str], Complaint | None]:
    """A function that returns the fault of a text that should be an address of a family."""

    def complaint(text: str) -> Complaint | None:
        if _is_address(text) and address(text).version != version:
            return Complaint("wrong-format", f"expected {_ADDRESSES[version]}, got {quote(text)}")
        return _address(text)

    return complaint


def _source(version: int) -> Callable[[str], Complaint | None]:
    """A function that returns the fault of a text that should be an address, or a network, of a family."""
    noun = _SOURCES[version]

    def complaint(text: str) -> Complaint | None:
        start, slash, _ = text.partition("/")
        if not _is_address(start):
            return Complaint("wrong-format", f"expected {noun}, got {quote(text)}")
        if address(start).version != version:
            hint = f"write it as ipv{address(start).version}"
            return Complaint("wrong-format", f"expected {noun}, got {quote(text)}", hint)
        return _prefix(text) if slash else None

    return complaint


def _with_prefix(text: str) -> InterfaceAddress | None:
    """An address with the length of its prefix, which Python would also take as a mask or let be left out."""
    start, _, length = text.partition("/")
    if not _is_address(start) or not _LENGTH.fullmatch(length) or int(length) > address(start).max_prefixlen:
        return None
    return ip_interface(text)


def _with_length(text: str) -> str:
    """A hint about a text that is no address with the length of its prefix."""
    start, slash, mask = text.partition("/")
    if text.lower() in ("all", "any", "*"):
        return "0.0.0.0/0 is every address of IPv4, ::/0 of IPv6"
    if stars := re.fullmatch(r"((?:[0-9]{1,3}\.){1,3})\*(?:\.\*)*", text):
        known = stars[1].count(".")
        return f"write {stars[1]}{'.'.join(['0'] * (4 - known))}/{8 * known}"
    if not slash or not _is_address(start):
        return _four_numbers(start)
    try:
        return f"write the length of the prefix: {ip_interface(text)}"  # of a mask
    except ValueError:
        return f"a prefix has a length from 0 to {address(start).max_prefixlen}" if mask.isdecimal() else ""


def _four_numbers(text: str) -> str:
    """The fault of a text that should be an IPv4 address."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*\.?", text) or len(text) > 60:
        return ""
    plain = ".".join(part.lstrip("0") or "0" for part in text.split("."))
    return f"without leading zeros: {plain}" if _is_address(plain) else "IPv4 has four numbers, each from 0 to 255"


def _usual(text: str) -> int:
    return 64 if ":" in text else 24


def _is_address(text: str) -> bool:
    try:
        address(text)
    except ValueError:
        return False
    return True


_ADDRESSES = {4: "an IPv4 address like 10.2.0.1", 6: "an IPv6 address like 2001:db8::1"}
_ADDRESS = "an address like 10.2.0.11 or 2001:db8::11"
_INTERFACE_ADDRESS = "an address with the length of its prefix, like 10.2.0.1/24"
_PREFIX = "a network like 10.0.0.0/8"
_SOURCES = {
    4: "an IPv4 address or network, like 10.31.0.1 or 10.200.0.0/24",
    6: "an IPv6 address or network, like 2001:db8::1 or 2001:db8:f::/64",
}
_PORT_RANGE = "a range of ports like 8000-8010"
_DURATION_LIKE = "a duration like 500ms, 2s, 1m, 3h or 1d"
_ADD_UNIT = "add a unit, s for seconds"

FORMATS = {
    "address": Format(_ADDRESS, _address),
    "interface-address": Format(_INTERFACE_ADDRESS, _interface_address),
    "prefix": Format(_PREFIX, _prefix),
    "ipv4-address": Format(_ADDRESSES[4], _of_family(4)),
    "ipv6-address": Format(_ADDRESSES[6], _of_family(6)),
    "ipv4-source": Format(_SOURCES[4], _source(4)),
    "ipv6-source": Format(_SOURCES[6], _source(6)),
    "port-range": Format(_PORT_RANGE, _port_range),
    "duration": Format(_DURATION_LIKE, _duration),
    "check-duration": Format(_DURATION_LIKE, _check_duration),
}
