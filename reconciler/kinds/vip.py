# SPDX-License-Identifier: Apache-2.0
"""VIP rows: which addresses are VIPs, and what becomes of pings, and of packets that no service wants.

The program takes an address for a VIP only if the filter (`vip_filter`) lets it pass, whatever the rows say. So a row
that the filter does not let pass counts as absent. The filter is written before new rows and after rows that go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import ClassVar

from reconciler.dataplane.layout import VIP_FILTER, VIP_MAPS, VIPS, EchoCode, UndefinedCode, code, is_word, word
from reconciler.dataplane.rows import Number, Vip
from reconciler.dataplane.vip_filter import filter_of, let_pass
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address, Echo, Mode, Service, Undefined, text_of
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import Facts, sources_of

_ECHO_RANK = {Echo.ENDPOINT.value: 0, Echo.DROP.value: 1, Echo.REPLY.value: 2}
_FEW = 256
"""Rows that are read one by one, each by a call of the kernel; to read all takes less time than to read more."""
_FILTER_KEY = VIP_FILTER.key.pack(Number(0))


@dataclass(frozen=True, slots=True)
class VipRow(Resource):
    """`undefined_traffic`: drop, pass or reject. `echo`: reply, endpoint or drop."""

    kind: ClassVar[str] = "vip"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program",))

    address: Address
    undefined_traffic: str
    echo: str = Echo.REPLY.value

    @property
    def id(self) -> str:
        return text_of(self.address)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    @property
    def flaw(self) -> str:
        known = is_word(UndefinedCode, self.undefined_traffic) and is_word(EchoCode, self.echo)
        return "" if known else f"{self.undefined_traffic}, {self.echo}"

    def describe(self) -> dict[str, str]:
        return {"undefined traffic": self.undefined_traffic, "echo": self.echo}


class VipKind(Kind):
    phase = 60
    resource = VipRow
    is_in_maps = True

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        echo = Echo.ENDPOINT if service.takes_pings else service.echo or Echo.REPLY
        undefined = facts.node.undefined_traffic.value
        yield from ((VipRow(vip, undefined, echo.value), service.span) for vip in service.vips)
        if service.mode is Mode.FULLNAT:
            # What is for a source and of no connection is a late packet, which the kernel answers with a reset.
            rows = (VipRow(source, Undefined.PASS.value) for source in sources_of(facts.node, service))
            yield from ((row, service.span) for row in rows)

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        # Most services of a VIP say nothing about pings; those that do agree, except that one may take them.
        row = min((row for row, _ in claims if isinstance(row, VipRow)), key=lambda row: _ECHO_RANK[row.echo])
        return row, claims[0][1]

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        asked = None if only is None else [ip_address(key.id).packed for key in only]
        rows = self._rows() if asked is None or len(asked) > _FEW else self._rows_at(asked)
        if asked is not None:
            rows = {key: rows[key] for key in asked if key in rows}
        passing = let_pass(rows, self._filter())
        right = []
        for row in wanted.values():
            if isinstance(row, VipRow) and (key := row.address.packed) in passing and rows[key] == _encode(row):
                right.append(row)
                passing.discard(key)
        return Reading((*right, *(_decode(key, value) for key, value in rows.items() if key in passing)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        addresses = [(c, ip_address(c.key.id)) for c in changes]
        wanted = {address.packed for c, address in addresses if c.after}
        rows = self._rows()
        passing = let_pass(rows, self._filter())
        self._remove(rows.keys() - passing - wanted)  # else new bits of the filter might let them pass again
        refusal = self._write_filter(passing | wanted)
        outcomes: list[tuple[Change, Outcome]] = []
        for version, spec in VIP_MAPS.items():
            own = [(c, a.packed) for c, a in addresses if a.version == version]
            puts = [(c, (key, _encode(c.after))) for c, key in own if isinstance(c.after, VipRow)]
            gone = [(c, key) for c, key in own if c.after is None]
            done = [refusal] * len(puts) if refusal else self.kernel.update(spec.name, [row for _, row in puts])
            outcomes += zip((c for c, _ in puts), done, strict=True)
            done = self.kernel.delete(spec.name, [key for _, key in gone])
            outcomes += zip((c for c, _ in gone), done, strict=True)
        refusal = refusal or self._write_filter(self._rows())
        return [outcome or refusal for outcome in each(changes, outcomes)]

    def _rows(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for spec in VIP_MAPS.values():
            keys, values = self.kernel.joined(spec.name)
            found |= zip(spec.key.split(keys), spec.value.split(values), strict=True)
        return found

    def _rows_at(self, addresses: Collection[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for spec in VIP_MAPS.values():
            keys = [address for address in addresses if len(address) == spec.key_size]
            values = zip(keys, self.kernel.lookup(spec.name, keys), strict=True)
            found |= {key: value for key, value in values if value is not None}
        return found

    def _remove(self, keys: Collection[bytes]) -> None:
        for spec in VIP_MAPS.values() if keys else ():
            self.kernel.delete(spec.name, [key for key in keys if len(key) == spec.key_size])

    def _filter(self) -> bytes:
        (held,) = self.kernel.lookup(VIP_FILTER.name, [_FILTER_KEY])
        return held or bytes(VIP_FILTER.value_size)

    def _write_filter(self, addresses: Collection[bytes]) -> Outcome:
        """Let these addresses pass and no others, as far as hashes can tell."""
        wanted = filter_of(addresses)
        if wanted == self._filter():
            return None
        (outcome,) = self.kernel.update(VIP_FILTER.name, [(_FILTER_KEY, wanted)])
        return outcome


def _encode(row: VipRow) -> bytes:
    return _packed(row.undefined_traffic, row.echo)


@lru_cache(maxsize=64)
def _packed(undefined_traffic: str, echo: str) -> bytes:
    return VIPS.value.pack(Vip(code(UndefinedCode, undefined_traffic), code(EchoCode, echo)))


def _decode(key: bytes, value: bytes) -> VipRow:
    row = VIPS.value.unpack(value)
    return VipRow(ip_address(key), word(UndefinedCode, row.undefined), word(EchoCode, row.echo))


KIND = VipKind
