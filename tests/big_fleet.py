# SPDX-License-Identifier: Apache-2.0
"""Fleets of any size for benchmarks and tests of scale, the same each time, as files or as the model has them.

N services of mode `dsr-l3`, ten to a file, each with a VIP, a port and a pool of ten endpoints of its own; one
balancer, with one interface and one gateway. `namespace` is that balancer's: its gateway has a MAC address there, and
whatever goes that way is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from reconciler.model import Algorithm, Endpoint, Fleet, Interface, Mode, Node, Pool, Protocol, Service
from tests.packets.balancer import inside, ip

SERVICES_A_FILE = 10
ENDPOINTS_A_POOL = 10
PORT = 80

NODE, INTERFACE = "big", "front"
OWN, GATEWAY, GATEWAY_MAC = IPv4Interface("10.1.0.1/24"), IPv4Address("10.1.0.254"), "02:01:00:00:00:fe"
MTU_BYTES = 1520

_FIRST_VIP, _FIRST_ENDPOINT = IPv4Address("20.0.0.1"), IPv4Address("10.128.0.1")


def name(number: int) -> str:
    """The name of a service, and of its pool."""
    return f"service-{number:05}"


def vip(number: int) -> IPv4Address:
    return _FIRST_VIP + number


def endpoint(number: int, member: int) -> IPv4Address:
    """The address of a member of a service's pool; no two are the same."""
    return _FIRST_ENDPOINT + number * ENDPOINTS_A_POOL + member


def weight(number: int, member: int) -> int:
    """What a member weighs as long as nobody edits it: 1 to 4."""
    return 1 + (3 * number + member) % 4


def file_of(number: int) -> str:
    """The file that a service is in, relative to the directory of manifests."""
    return f"services-{number // SERVICES_A_FILE:04}.yaml"


def write(directory: Path, services: int) -> None:
    """Write the manifests of so many services into a directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "node.yaml").write_text(_NODE)
    for first in range(0, services, SERVICES_A_FILE):
        (directory / file_of(first)).write_text(text(range(first, min(first + SERVICES_A_FILE, services))))


def text(numbers: range, weights: dict[tuple[int, int], int] | None = None) -> str:
    """The manifests of these services, as one file has them. `weights` has those that were edited: (number of the
    service, member) → weight."""
    return "---\n".join(_service(number, weights or {}) for number in numbers)


def edit(directory: Path, services: int, weights: dict[tuple[int, int], int]) -> None:
    """Give endpoints other weights, as an editor does it: each file is written beside its place and renamed into it.
    Other endpoints of these files get their first weights back."""
    files = {file_of(number): number // SERVICES_A_FILE * SERVICES_A_FILE for number, _ in weights}
    for file, first in files.items():
        beside = directory / f".{file}.new"
        beside.write_text(text(range(first, min(first + SERVICES_A_FILE, services)), weights))
        beside.rename(directory / file)


def fleet(services: int) -> Fleet:
    """The same fleet as `write`, without files and so without places in them."""
    pools = (
        Pool(name(n), tuple(Endpoint(endpoint(n, m), weight=weight(n, m)) for m in range(ENDPOINTS_A_POOL)))
        for n in range(services)
    )
    front = Interface(INTERFACE, addresses=(OWN,), mtu_bytes=MTU_BYTES, gateway=GATEWAY)
    return Fleet(
        tuple(
            Service(name(n), (vip(n),), Protocol.TCP, (PORT,), name(n), Mode.DSR_L3, Algorithm.MAGLEV)
            for n in range(services)
        ),
        tuple(pools),
        (Node(NODE, (front,)),),
    )


@contextmanager
def namespace(named: str) -> Iterator[None]:
    """The network namespace of the balancer, as `--netns` takes it; gone at the end. Needs root."""
    ip("netns", "add", named)
    try:
        with inside(named):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        at = ("-n", named)
        ip(*at, "link", "add", INTERFACE, "mtu", str(MTU_BYTES), "type", "veth", "peer", f"{INTERFACE}-far")
        ip(*at, "address", "add", str(OWN), "dev", INTERFACE)
        for device in ("lo", INTERFACE, f"{INTERFACE}-far"):
            ip(*at, "link", "set", device, "up")
        ip(*at, "neigh", "add", str(GATEWAY), "lladdr", GATEWAY_MAC, "dev", INTERFACE, "nud", "permanent")
        ip(*at, "route", "add", "default", "via", str(GATEWAY))
        yield
    finally:
        ip("netns", "del", named)


_NODE = f"""\
apiVersion: lbctl/v1
kind: Node
metadata:
  name: {NODE}
spec:
  interfaces:
    - {{name: {INTERFACE}, addresses: [{OWN}], mtu: {MTU_BYTES}, gateway: {GATEWAY}}}
"""


def _service(number: int, weights: dict[tuple[int, int], int]) -> str:
    members = "".join(
        f"    - {{address: {endpoint(number, m)}, weight: {weights.get((number, m), weight(number, m))}}}\n"
        for m in range(ENDPOINTS_A_POOL)
    )
    return f"""\
apiVersion: lbctl/v1
kind: Service
metadata:
  name: {name(number)}
spec:
  vip: {vip(number)}
  ports: [{PORT}]
  mode: dsr-l3
  pool: {name(number)}
---
apiVersion: lbctl/v1
kind: Pool
metadata:
  name: {name(number)}
spec:
  endpoints:
{members}"""
