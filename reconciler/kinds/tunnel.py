# SPDX-License-Identifier: Apache-2.0
"""Tunnels that end at an endpoint of dsr-l3: devices of the kernel that unpack what balancers send.

There is one for each address that pools name. A device takes packets from any sender to that address, so its settings
keep it from forwarding: the inner packets must be for the node itself. Replies don't enter it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.objects import TunnelDevice
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.interface import THIS_NODE
from reconciler.model import Address, Node, Role
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView

_FORMS = {4: "ipip", 6: "ip6tnl"}
"""By the family of the endpoint's address: IPv4 in IPv4 (RFC 2003), IPv4 or IPv6 in IPv6 (RFC 2473)."""
_OUTER_HEADER_BYTES = {"ipip": 20, "ip6tnl": 40}
_LEAST_MTU_BYTES = {"ipip": 576, "ip6tnl": 1280}
_USUAL_MTU_BYTES = 1500
_AS_DUE = "as they should be"


@dataclass(frozen=True, slots=True)
class Tunnel(Resource):
    """The tunnel ends at `address`, one of the node's own. `state`: up or down. `settings` names the device's settings
    that are wrong."""

    kind: ClassVar[str] = "tunnel"

    form: str
    address: str
    mtu_bytes: int
    state: str = "up"
    settings: str = _AS_DUE

    @property
    def id(self) -> str:
        return f"{self.form} {self.address}"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (THIS_NODE,)

    @property
    def device(self) -> str:
        """The name of the link: at most 15 characters, the same for the same tunnel."""
        return f"{self.form}-{hashlib.blake2b(self.address.encode(), digest_size=4).hexdigest()}"

    @property
    def flaw(self) -> str:
        family = 4 if self.form == "ipip" else 6
        known = self.form in _FORMS.values() and self.state == "up" and self.settings == _AS_DUE
        if not known or not _is_address(self.address, family):
            return f"{self.form} device at {self.address}, {self.state}, settings {self.settings}"
        return "" if _LEAST_MTU_BYTES[self.form] <= self.mtu_bytes < 1 << 16 else f"MTU {self.mtu_bytes}"

    def describe(self) -> dict[str, str]:
        shown = {"device": self.device, "MTU": str(self.mtu_bytes)}
        shown |= {} if self.state == "up" else {"state": self.state}
        return shown | ({} if self.settings == _AS_DUE else {"settings": self.settings})

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else "packets in tunnels to this address are refused"


def _is_address(text: str, version: int) -> bool:
    try:
        return bool(ip_address(text).version == version)
    except ValueError:
        return False


def forms_of(view: NodeView) -> set[str]:
    """The forms of the tunnels that balancers send to this node; none if it is no endpoint."""
    return {_FORMS[address.version] for address in view.tunnel_ends} if view.node.role is Role.ENDPOINT else set()


class TunnelKind(Kind):
    phase = 5
    roles = (Role.ENDPOINT,)
    resource = Tunnel

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if not view.decapsulates:
            for address, span in view.tunnel_ends.items():
                form = _FORMS[address.version]
                mtu = max(_mtu_bytes(view.node, address) - _OUTER_HEADER_BYTES[form], _LEAST_MTU_BYTES[form])
                yield Tunnel(form, str(address), mtu), span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        ours, foreign = [], {}
        for device in self.kernel.tunnels():
            tunnel = Tunnel(device.form, device.local, device.mtu_bytes, "up" if device.is_up else "down")
            if device.is_ours and device.name == tunnel.device:
                ours.append(Tunnel(tunnel.form, tunnel.address, tunnel.mtu_bytes, tunnel.state, self._wrong(tunnel)))
            elif tunnel.key in wanted and not self.kernel.adopts:
                foreign[tunnel.key] = f"{device.form} device {device.name}, which ends at {device.local} as well"
        return Reading(tuple(ours), foreign)

    def _wrong(self, tunnel: Tunnel) -> str:
        held = [(name, self.kernel.read_sysctl(name), due) for name, due in _settings(tunnel)]
        return ", ".join(f"{name} {value}" for name, value, due in held if value != due) or _AS_DUE

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        try:
            match change.after, change.before:
                case Tunnel() as tunnel, _:
                    self.kernel.add_tunnel(TunnelDevice(
                        tunnel.device, tunnel.form, tunnel.address, tunnel.mtu_bytes, _settings(tunnel)
                    ))  # fmt: skip
                case None, Tunnel() as tunnel:
                    self.kernel.remove_tunnel(tunnel.device)
        except KernelError as error:
            return error
        return None


def _mtu_bytes(node: Node, address: Address) -> int:
    """The declared MTU of the interface that has the address; the greatest declared one if none has it."""
    own = [face.mtu_bytes for face in node.interfaces if address in (own.ip for own in face.addresses)]
    return max(own or [face.mtu_bytes for face in node.interfaces], default=_USUAL_MTU_BYTES)


def _settings(tunnel: Tunnel) -> tuple[tuple[str, str], ...]:
    """Inner packets come from clients, to whom no route leads through the tunnel, and must be for the node itself.

    Of rp_filter the greater one of the device and of `all` counts: see `sysctl`.
    """
    conf = f"net/ipv4/conf/{tunnel.device}"
    found = ((f"{conf}/rp_filter", "0"), (f"{conf}/forwarding", "0"))
    return found if tunnel.form == "ipip" else (*found, (f"net/ipv6/conf/{tunnel.device}/forwarding", "0"))


KIND = TunnelKind
