# SPDX-License-Identifier: Apache-2.0
"""Values that are written as text but mean more: addresses, ranges of ports. The schemas name them by `format`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

from reconciler.config.diagnostic import quote

MAX_PORT = 65_535
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_PREFIX = re.compile(r"/([0-9]|[12][0-9]|3[0-2])")


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why a text is no value of its format."""

    rule: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """`noun` says what is expected; `complaint` says what is wrong with a text, None if nothing is."""

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
        raise ValueError(f"a port is a number from 1 to {MAX_PORT}, unlike those of {quote(item)}")
    if first > last:
        raise ValueError(f"the range {quote(item)} ends before it begins")
    return range(first, last + 1)


def number_hint(text: str) -> str:
    """What to do about a text where a number is expected."""
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
        return Complaint("wrong-format", str(error), hint)
    return None


def _ipv4(text: str) -> Complaint | None:
    if _is_ipv4(text):
        return None
    if _is_ipv6(text):
        return _no_ipv6(text)
    address, slash, prefix = text.partition("/")
    _, colon, port = text.partition(":")
    hint = "names are not looked up: write the address" if re.search("[A-Za-z]", text) else ""
    if slash and _is_ipv4(address):
        hint = f"leave out '/{prefix[:8]}'"
    elif colon and port.isdecimal():
        hint = "a port has a key of its own"
    return Complaint("wrong-format", f"expected {_IPV4}, got {quote(text)}", hint)


def _ipv4_interface(text: str) -> Complaint | None:
    address = text.partition("/")[0]
    if _is_ipv6(text):
        return _no_ipv6(text)
    if not _is_ipv4(address) or not _PREFIX.fullmatch(text[len(address) :]):
        hint = f"add the length of the prefix: {text}/24" if _is_ipv4(text) else ""
        return Complaint("wrong-format", f"expected {_IPV4_INTERFACE}, got {quote(text)}", hint)
    network = IPv4Interface(text).network
    if network.prefixlen < 31 and IPv4Address(address) in (network[0], network[-1]):
        which = "network itself" if IPv4Address(address) == network[0] else "broadcast address of the network"
        return Complaint("wrong-format", f"{quote(text)} is the {which}, not an address in it")
    return None


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Interface(text)
    except ValueError:
        return False
    return True


def _no_ipv6(text: str) -> Complaint:
    return Complaint("not-supported", f"the IPv6 address {quote(text)} is not supported yet; supported: IPv4")


_IPV4 = "an IPv4 address like 10.2.0.11"
_IPV4_INTERFACE = "an IPv4 address with the length of its prefix, like 10.2.0.1/24"
_PORT_RANGE = "a range of ports like 8000-8010"

FORMATS = {
    "ipv4": Format(_IPV4, _ipv4),
    "ipv4-interface": Format(_IPV4_INTERFACE, _ipv4_interface),
    "port-range": Format(_PORT_RANGE, _port_range),
}
