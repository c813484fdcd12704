# SPDX-License-Identifier: Apache-2.0
"""Which flows somebody asked for, among those that `get flows` has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from reconciler.errors import UsageError

_ID = re.compile(r"(?:\[(.+)\]|([^\[\]:]+)):([0-9]+)(?:/([a-z0-9]+))?")

WORDS: Mapping[str, Sequence[str]] = {
    "state": ("opening", "open", "client-closed", "endpoint-closed", "over"),
    "protocol": ("tcp", "udp", "sctp"),
}
"""The words that a flow may have, by field."""


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """What a flow must be; "" is anything.

    `client`, `service` and `endpoint`: an address, an address with a port, or a network; a service also with its
    protocol, as `get services` shows it.
    """

    client: str = ""
    service: str = ""
    endpoint: str = ""
    state: str = ""
    protocol: str = ""

    def places(self) -> dict[str, Place]:
        """The places that were asked for, by name. Raises UsageError if one is none."""
        named = {name: getattr(self, name) for name in ("client", "service", "endpoint")}
        return {name: _place(name, text) for name, text in named.items() if text}

    def words(self) -> dict[str, str]:
        """The words that were asked for, by name."""
        return {name: word for name in ("state", "protocol") if (word := getattr(self, name))}

    def matching(self) -> Callable[[Mapping[str, Any]], bool]:
        """The test of a flow. Raises UsageError if a place is none."""
        places, words = self.places(), self.words()

        def is_asked_for(flow: Mapping[str, Any]) -> bool:
            return all(flow[name] == word for name, word in words.items()) and all(
                place.is_of(flow[name]) for name, place in places.items()
            )

        return is_asked_for


@dataclass(frozen=True, slots=True)
class Place:
    """A network, or an address in it with a port, or also a protocol; None is any."""

    network: IPv4Network | IPv6Network
    port: int | None = None
    protocol: str | None = None

    def is_of(self, id: str) -> bool:
        """Whether an id is of it, e.g. `10.1.0.2:40000` or `20.20.20.1:80/tcp`."""
        shown = _ID.fullmatch(id)
        if shown is None:  # it was removed, and only its number is known
            return False
        is_port = self.port is None or int(shown[3]) == self.port
        is_protocol = self.protocol in (None, shown[4])
        return is_port and is_protocol and ip_address(shown[1] or shown[2]) in self.network


def _place(name: str, text: str) -> Place:
    """The place that a text names, e.g. `10.1.0.2:40000`."""
    found = _ID.fullmatch(text)
    try:
        return Place(ip_network(found[1] or found[2]), int(found[3]), found[4]) if found else Place(ip_network(text))
    except ValueError as error:
        raise UsageError(
            f"--{name} {text} is neither an address, with a port or without, nor a network",
            hint="for example 10.1.0.2, 10.1.0.2:40000, [2001:db8::2]:40000 or 10.1.0.0/24",
        ) from error
