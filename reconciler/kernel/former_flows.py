# SPDX-License-Identifier: Apache-2.0
"""The table of earlier versions: an LRU hash `flows` with a row for each direction of a connection of NAT.

A row had the VIP with its port where the table of this version has the number of a front. A connection whose service
is gone, or has another target port by now, gets a front that no service has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconciler import clock
from reconciler.dataplane.connections import IDLE_S, PROTOCOLS, UNIT_SHIFT, UNITS, Entries, idle_units
from reconciler.dataplane.convert import fields_converted
from reconciler.dataplane.description import Fields, MapDescription
from reconciler.dataplane.layout import ENDPOINTS, FRONTS, SERVICES, ConnectionState, ModeCode
from reconciler.dataplane.rows import Front, Number
from reconciler.kernel import maps, whole_maps
from reconciler.kernel.maps import OpenMap, Row

FLOWS = "flows"

_KEY: Fields = (
    ("source", "V4"), ("destination", "V4"), ("source_port", ">u2"), ("destination_port", ">u2"), ("protocol", "u1"),
)  # fmt: skip
_VALUE: Fields = (
    ("address", "V4"), ("port", ">u2"), ("direction", "u1"), ("state", "u1"), ("endpoint", "u4"), ("service", "u4"),
    ("last_seen", "u8"), ("acknowledged", ">u4"),
)  # fmt: skip
_REQUEST = 0
_STATES = np.array([ConnectionState.OPENING, ConnectionState.OPEN, ConnectionState.CLIENT_CLOSED], np.uint64)
"""By the state of a row. After a FIN or a RST it said no more than that, and the other side may go on for minutes."""
_LONGEST = idle_units(max(IDLE_S.values()))
_CODES = np.zeros(256, np.uint64)
_CODES[list(PROTOCOLS.values())] = list(PROTOCOLS)

Numbers = NDArray[np.uint64]


class Fronts:
    """The fronts of a table, joined, and those that connections without a service need beside them."""

    def __init__(self, held: bytes) -> None:
        self.content = np.frombuffer(bytearray(held), FRONTS.value.dtype)
        self.made: list[int] = []
        self._free = iter(np.flatnonzero(self.content["protocol"] == 0)[::-1].tolist())
        self._known: dict[tuple[int, ...], int] = {}
        for number in np.flatnonzero(self.content["protocol"] != 0).tolist():
            front = FRONTS.value.unpack(self.content[number].tobytes())
            vip = int.from_bytes(front.vip[:4], "big")
            for port in (0, front.target_port or front.port):
                self._known.setdefault((vip, front.port, front.protocol, port), number)

    def add(self, services: Iterable[Row]) -> None:
        """The fronts of services, of which these are the rows."""
        for key, row in SERVICES.unpack(services):
            if row.mode == ModeCode.NAT and row.index < self.content.size:
                self._put(row.index, key.vip, key.port, row.target_port, key.protocol)
                for port in (0, row.target_port or key.port):
                    self._known.setdefault((int.from_bytes(key.vip, "big"), key.port, key.protocol, port), row.index)
        self._free = iter(np.flatnonzero(self.content["protocol"] == 0)[::-1].tolist())

    def number(self, vip: int, port: int, protocol: int, endpoint_port: int) -> int:
        """The number of a front; `endpoint_port` 0: the endpoint has a port of its own. -1: there is none left."""
        wanted = vip, port, protocol, endpoint_port
        number = self._known.get(wanted)
        if number is None:
            number = self._known[wanted] = next(self._free, -1)
            if number >= 0:
                self._put(number, vip.to_bytes(4, "big"), port, endpoint_port, protocol)
        return number

    def _put(self, number: int, vip: bytes, port: int, target_port: int, protocol: int) -> None:
        idle_s = IDLE_S.get(protocol, 0)
        idle = idle_units(idle_s) if idle_s else 0
        front = Front(vip + bytes(12), port, target_port if target_port != port else 0, idle, protocol, 4)
        self.content[number] = FRONTS.value.array(FRONTS.value.pack(front))[0]
        self.made.append(number)

    def write(self, target: OpenMap) -> None:
        """Write those that came to it."""
        for number in self.made:
            maps.update_one(target, FRONTS.key.pack(Number(number)), self.content[number].tobytes())
        self.made.clear()


def entries(source: OpenMap, held: MapDescription, endpoints: bytes, fronts: Fronts) -> Entries:
    """The connections of such a table. `endpoints` are the joined rows of endpoints; `fronts` get those that it takes
    beside them, which are to be written first."""
    rows = _connections(source, held)
    known = ENDPOINTS.value.array(endpoints)
    # An endpoint with a port of its own has it in every front.
    own = rows.endpoint < known.size
    own[own] = known["port"][rows.endpoint[own]] != 0
    port = np.where(own, np.uint64(0), rows.endpoint_port)
    wanted = np.stack([rows.vip, rows.vip_port, rows.protocol.astype(np.uint64), port], axis=1)
    kinds, kind = np.unique(wanted, axis=0, return_inverse=True)
    numbers = np.array([fronts.number(*each) for each in kinds.tolist()], np.int64)
    service = numbers[kind.reshape(-1)]
    who = rows.client << np.uint64(32) | rows.client_port << np.uint64(16) | _CODES[rows.protocol] << np.uint64(14)
    who |= _STATES[np.minimum(rows.state, 2)] << np.uint64(11) | rows.seen
    where = rows.endpoint << np.uint64(47) | service.astype(np.uint64) << np.uint64(29)
    where |= rows.client_ack >> np.uint64(18) << np.uint64(14) | rows.endpoint_ack >> np.uint64(18)
    return Entries(who, where).part((service >= 0) & (_CODES[rows.protocol] > 0))


@dataclass(frozen=True, slots=True)
class _Connections:
    """A column for each fact, as numbers."""

    client: Numbers
    client_port: Numbers
    vip: Numbers
    vip_port: Numbers
    protocol: NDArray[np.uint8]
    endpoint: Numbers
    endpoint_port: Numbers
    state: NDArray[np.uint8]
    seen: Numbers
    client_ack: Numbers
    endpoint_ack: Numbers


def _connections(source: OpenMap, held: MapDescription) -> _Connections:
    """Both halves of each connection joined, or the one that there is; those that were silent for too long are left
    out."""
    joined = whole_maps.read_joined(source)
    keys = np.frombuffer(fields_converted(FLOWS, held.key, _KEY, b"", joined[0]), np.dtype(list(_KEY)))
    rows = np.frombuffer(fields_converted(FLOWS, held.value, _VALUE, b"", joined[1]), np.dtype(list(_VALUE)))
    unit = np.uint64(clock.now_ns() % (1 << 64) >> UNIT_SHIFT)
    units = rows["last_seen"] >> np.uint64(UNIT_SHIFT)
    young = (unit - units + np.uint64(1)) & np.uint64((1 << 31) - 1) <= np.uint64(_LONGEST + 1)
    keys, rows, units = keys[young], rows[young], units[young]
    is_request = rows["direction"] == _REQUEST
    client = _either(is_request, _number(keys["source"]), _number(keys["destination"]))
    client_port = _either(is_request, keys["source_port"], keys["destination_port"])
    vip = _either(is_request, _number(keys["destination"]), _number(rows["address"]))
    vip_port = _either(is_request, keys["destination_port"], rows["port"])
    port = _either(is_request, rows["port"], keys["source_port"])
    ports = client_port << np.uint64(32) | vip_port << np.uint64(16) | keys["protocol"]
    order = np.lexsort((~is_request, ports, client << np.uint64(32) | vip))
    client, vip, ports = client[order], vip[order], ports[order]
    is_first = np.ones(client.size, np.bool_)
    is_first[1:] = (client[1:] != client[:-1]) | (vip[1:] != vip[:-1]) | (ports[1:] != ports[:-1])
    starts = np.flatnonzero(is_first)
    acknowledged = rows["acknowledged"].astype(np.uint64)
    chosen = order[starts]
    return _Connections(
        client[starts], client_port[chosen], vip[starts], vip_port[chosen], keys["protocol"][chosen],
        rows["endpoint"][chosen].astype(np.uint64), port[chosen], rows["state"][chosen],
        units[chosen] & np.uint64(UNITS - 1),
        _sides(np.where(is_request, acknowledged, 0)[order], starts),
        _sides(np.where(is_request, 0, acknowledged)[order], starts),
    )  # fmt: skip


def _sides(numbers: Numbers, starts: NDArray[np.intp]) -> Numbers:
    """The number of one side of each connection, whichever half has it."""
    found: Numbers = np.maximum.reduceat(numbers, starts) if starts.size else numbers
    return found.astype(np.uint64)


def _either(chosen: NDArray[np.bool_], one: NDArray[Any], two: NDArray[Any]) -> Numbers:
    return np.where(chosen, one, two).astype(np.uint64)


def _number(addresses: NDArray[Any]) -> Numbers:
    return np.ascontiguousarray(addresses).view(">u4").astype(np.uint64)
