# SPDX-License-Identifier: Apache-2.0
"""A kernel that fails now and then, as real ones do: full maps, lost memory, a race with somebody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reconciler.dataplane.slots import Words
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import HopGroup, LocalVip, Neighbour, Route, TunnelDevice, VlanLink
from reconciler.kernel.port import Outcome, Row
from reconciler.limits import Sizes


@dataclass
class FaultyKernel(FakeKernel):
    """A fake kernel in which a write fails whenever `fails()` says so, without effect."""

    fails: Callable[[], bool] = lambda: False

    def _row(self, write: Callable[[], list[Outcome]]) -> Outcome:
        return KernelError("injected fault") if self.fails() else write()[0]

    def _call(self) -> None:
        if self.fails():
            raise KernelError("injected fault")

    def update(self, map_name: str, rows: Sequence[Row]) -> list[Outcome]:
        up = super().update
        return [self._row(lambda row=row: up(map_name, [row])) for row in rows]  # type: ignore[misc]

    def delete(self, map_name: str, keys: Sequence[bytes]) -> list[Outcome]:
        up = super().delete
        return [self._row(lambda key=key: up(map_name, [key])) for key in keys]  # type: ignore[misc]

    def add_chunk(self, outer: str, index: int) -> Words:
        self._call()
        return super().add_chunk(outer, index)

    def remove_chunks(self, outer: str, indexes: Sequence[int]) -> None:
        self._call()
        super().remove_chunks(outer, indexes)

    def wait_for_programs(self, outer: str) -> None:
        self._call()
        super().wait_for_programs(outer)

    def load_program(self, name: str, features: Sequence[str], sizes: Sizes | None = None) -> None:
        self._call()
        super().load_program(name, features, sizes)

    def unload_program(self) -> None:
        self._call()
        super().unload_program()

    def attach(self, interface: str, mode: str, replaces: int | None) -> None:
        self._call()
        super().attach(interface, mode, replaces)

    def detach(self, interface: str, mode: str, replaces: int) -> None:
        self._call()
        super().detach(interface, mode, replaces)

    def add_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        up = super().add_local_vips
        return [self._row(lambda vip=vip: up([vip])) for vip in vips]  # type: ignore[misc]

    def remove_local_vips(self, vips: Sequence[LocalVip]) -> list[Outcome]:
        up = super().remove_local_vips
        return [self._row(lambda vip=vip: up([vip])) for vip in vips]  # type: ignore[misc]

    def add_prober(self, addresses: Sequence[str]) -> None:
        self._call()
        super().add_prober(addresses)

    def remove_prober(self) -> None:
        self._call()
        super().remove_prober()

    def add_tunnel(self, device: TunnelDevice) -> None:
        self._call()
        super().add_tunnel(device)

    def add_vlan_link(self, link: VlanLink) -> None:
        self._call()
        super().add_vlan_link(link)

    def remove_vlan_link(self, name: str) -> None:
        self._call()
        super().remove_vlan_link(name)

    def remove_tunnel(self, name: str) -> None:
        self._call()
        super().remove_tunnel(name)

    def write_sysctl(self, name: str, value: str) -> None:
        self._call()
        super().write_sysctl(name, value)

    def write_offload(self, interface: str, name: str, is_on: bool) -> None:
        self._call()
        super().write_offload(interface, name, is_on)

    def keep_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        up = super().keep_neighbours
        return [self._row(lambda neighbour=neighbour: up([neighbour])) for neighbour in wanted]  # type: ignore[misc]

    def forget_neighbours(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        up = super().forget_neighbours
        return [self._row(lambda neighbour=neighbour: up([neighbour])) for neighbour in wanted]  # type: ignore[misc]

    def add_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        up = super().add_routes
        return [self._row(lambda route=route: up([route])) for route in wanted]  # type: ignore[misc]

    def remove_routes(self, wanted: Sequence[Route]) -> list[Outcome]:
        up = super().remove_routes
        return [self._row(lambda route=route: up([route])) for route in wanted]  # type: ignore[misc]

    def put_hop_groups(self, wanted: Sequence[HopGroup]) -> list[Outcome]:
        up = super().put_hop_groups
        return [self._row(lambda group=group: up([group])) for group in wanted]  # type: ignore[misc]

    def remove_hop_groups(self, numbers: Sequence[int]) -> list[Outcome]:
        up = super().remove_hop_groups
        return [self._row(lambda number=number: up([number])) for number in numbers]  # type: ignore[misc]

    def add_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        up = super().add_neighbour_proxies
        return [self._row(lambda proxy=proxy: up([proxy])) for proxy in wanted]  # type: ignore[misc]

    def remove_neighbour_proxies(self, wanted: Sequence[Neighbour]) -> list[Outcome]:
        up = super().remove_neighbour_proxies
        return [self._row(lambda proxy=proxy: up([proxy])) for proxy in wanted]  # type: ignore[misc]
