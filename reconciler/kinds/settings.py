# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole data plane: the source of its tunnels, and what becomes of packets too big for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import ClassVar

from reconciler.dataplane import rows
from reconciler.dataplane.layout import SETTINGS, TooBigCode, code, is_word, word
from reconciler.dataplane.rows import Number
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address, Mode, Prefix
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView

_KEY = SETTINGS.key.pack(Number(0))

NOTHING = "none"


@dataclass(frozen=True, slots=True)
class Settings(Resource):
    """There is one source for tunnels to IPv4 endpoints and one for tunnels to IPv6 endpoints: an address, a network
    from which a hash of the flow chooses an address, or `none`. `packet_too_big`: answer or drop."""

    kind: ClassVar[str] = "settings"

    tunnel_source: str = NOTHING
    tunnel_source6: str = NOTHING
    packet_too_big: str = "answer"

    @property
    def id(self) -> str:
        return "balancer"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    @property
    def flaw(self) -> str:
        for source, version in ((self.tunnel_source, 4), (self.tunnel_source6, 6)):
            if source != NOTHING and not (is_source(source) and ip_network(source).version == version):
                return f"tunnels from {source}"
        return "" if is_word(TooBigCode, self.packet_too_big) else f"packets too big: {self.packet_too_big}"

    def describe(self) -> dict[str, str]:
        shown = {"tunnels from": self.tunnel_source, "IPv6 tunnels from": self.tunnel_source6}
        shown = {name: source for name, source in shown.items() if source != NOTHING}
        return shown | {"packets too big": self.packet_too_big}

    def effect(self, after: Resource | None, context: Context) -> str:
        if not isinstance(after, Settings):
            return ""
        sources = [(self.tunnel_source, after.tunnel_source), (self.tunnel_source6, after.tunnel_source6)]
        if any(before not in (NOTHING, now) for before, now in sources):
            return "tunnels to endpoints come from another address; connections stay"
        return ""


SETTINGS_KEY = Settings().key


class SettingsKind(Kind):
    """If every setting has the value of a row of zeros, no row is wanted: an array can't tell such a row from none."""

    phase = 15
    resource = Settings
    is_in_maps = True

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        modes = {service.mode for service in view.services}
        if not modes:
            return
        source, source6 = (_text(view.node.tunnel_from(version)) for version in (4, 6))
        settings = Settings(packet_too_big=view.node.packet_too_big.value)
        if Mode.DSR_L3 in modes:
            settings = replace(settings, tunnel_source=source, tunnel_source6=source6)
        if settings != Settings():
            yield settings, view.node.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        return Reading(tuple(_decode(value) for _, value in self.kernel.dump(SETTINGS.name)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(_KEY, _encode(c.after)) for c in changes if isinstance(c.after, Settings)]
        if puts:
            return self.kernel.update(SETTINGS.name, puts)
        return self.kernel.delete(SETTINGS.name, [_KEY])


def is_source(text: str) -> bool:
    """Whether a text is an address or network, and not `none` or the content of a damaged row."""
    try:
        return ip_network(text) is not None
    except ValueError:
        return False


def _text(source: Prefix | None) -> str:
    if source is None:
        return NOTHING
    return str(source.network_address if source.num_addresses == 1 else source)


def _encode(settings: Settings) -> bytes:
    source, spread = _packed(settings.tunnel_source, "0.0.0.0/32")
    source6, spread6 = _packed(settings.tunnel_source6, "::/128")
    too_big = code(TooBigCode, settings.packet_too_big)
    return SETTINGS.value.pack(rows.Settings(source, spread, source6, spread6, too_big))


def _packed(source: str, nothing: str) -> tuple[bytes, bytes]:
    """The address of a source, and the bits of it that are free. `nothing` stands for no source."""
    network = ip_network(nothing if source == NOTHING else source)
    return network.network_address.packed, network.hostmask.packed


def _decode(value: bytes) -> Settings:
    row = SETTINGS.value.unpack(value)
    return Settings(
        _source(IPv4Address(row.tunnel_source), IPv4Address(row.tunnel_spread)),
        _source(IPv6Address(row.tunnel_source6), IPv6Address(row.tunnel_spread6)),
        word(TooBigCode, row.too_big),
    )


def _source(address: Address, spread: Address) -> str:
    """As `_text`; a source that no manifest can ask for is shown as its two addresses."""
    if not int(address) and not int(spread):
        return NOTHING
    length = address.max_prefixlen - int(spread).bit_length()
    try:
        network = ip_network((address, length))
    except ValueError:
        return f"{address} spread {spread}"
    return _text(network) if network.hostmask == spread else f"{address} spread {spread}"


KIND = SettingsKind
