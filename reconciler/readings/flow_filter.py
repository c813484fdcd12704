# SPDX-License-Identifier: Apache-2.0
"""Which flows somebody asked for, among those that `get flows` has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from reconciler.errors import UsageError

_ID = re.compile(r"(?:\[(.+)\]|([^\[\]:]+)):([0-9]+)(?:/([a-z0-9]+))?")


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

    def matching(self) -> Callable[[Mapping[str, Any]], bool]:
        """The test of a flow. Raises UsageError if a place is none."""
        places = {name: _place(name, getattr(self, name)) for name in ("client", "service", "endpoint")}
        words = {name: word for name in ("state", "protocol") if (word := getattr(self, name))}

        def is_asked_for(flow: Mapping[str, Any]) -> bool:
            return all(flow[name] == word for name, word in words.items()) and all(
                is_there(flow[name]) for name, is_there in places.items() if is_there
            )

        return is_asked_for


def _place(name: str, text: str) -> Callable[[str], bool] | None:
    """The test of a place, e.g. of `10.1.0.2:40000`; None if any will do."""
    if not text:
        return None
    found = _ID.fullmatch(text)
    host, port, protocol = (found[1] or found[2], found[3], found[4]) if found else (text, None, None)
    try:
        network = ip_network(host)
    except ValueError as error:
        raise UsageError(
            f"--{name} {text} is neither an address, with a port or without, nor a network",
            hint="for example 10.1.0.2, 10.1.0.2:40000, [2001:db8::2]:40000 or 10.1.0.0/24",
        ) from error

    def is_there(id: str) -> bool:
        shown = _ID.fullmatch(id)
        if shown is None:  # it was removed, and only its number is known
            return False
        is_port = port is None or shown[3] == port
        return is_port and protocol in (None, shown[4]) and ip_address(shown[1] or shown[2]) in network

    return is_there
