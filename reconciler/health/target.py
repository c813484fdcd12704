# SPDX-License-Identifier: Apache-2.0
"""What is really checked. Pools that ask for the same check of the same server share a target: one check on the wire.

A `Use` is what asks for it: an endpoint of a pool, by the port that connections go to. Edited parameters make another
target of the same use, and that is how the state of a target outlives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from hashlib import blake2b

from reconciler.model import (
    Address,
    CheckSize,
    CheckType,
    Endpoint,
    EndpointState,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    Through,
)

DIGEST_BYTES = 16
MIN_FAST_S, MAX_SLOW_S = 0.2, 10.0

_PROTOCOLS = {
    CheckType.TCP: Protocol.TCP, CheckType.HTTP: Protocol.TCP, CheckType.HTTPS: Protocol.TCP,
    CheckType.UDP: Protocol.UDP, CheckType.DNS: Protocol.UDP, CheckType.SCTP: Protocol.SCTP,
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A server, and the check of it. `port` 0: the check has none. `vip` is the address that the check asks for, if it
    takes the way of the traffic, which is that of `mode`; None: the server's own."""

    address: Address
    port: int
    check: HealthCheck
    vip: Address | None = None
    mode: Mode | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Targets are keys of every table of this room, and hashing a check's twenty fields takes 2 µs.
        object.__setattr__(self, "_hash", hash((self.address, self.port, self.check, self.vip, self.mode)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Target], tuple[Address, int, HealthCheck, Address | None, Mode | None]]:
        # Another process hashes texts otherwise.
        return Target, (self.address, self.port, self.check, self.vip, self.mode)

    @property
    def asked(self) -> Address:
        """The address that packets of the check are for."""
        return self.vip or self.address

    @cached_property
    def place(self) -> tuple[str, int]:
        """Where sockets connect to."""
        return str(self.asked), self.port

    @property
    def interval_s(self) -> float:
        return self.check.interval_s

    @property
    def rise_s(self) -> float:
        """How long `rise` answers take at the usual interval."""
        return self.check.rise * self.check.interval_s

    @property
    def fast_s(self) -> float:
        """The interval while it is undecided whether the target is up: a quarter, but at least 200 ms."""
        return min(self.check.interval_s, max(self.check.interval_s / 4, MIN_FAST_S))

    @property
    def slow_s(self) -> float:
        """The interval for a target that has been down for long: five intervals, up to ten seconds."""
        return max(self.check.interval_s, min(5 * self.check.interval_s, MAX_SLOW_S))

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that are the same for equal targets, in each process and on each node."""
        parts = (str(self.address), self.port, str(self.vip), *((self.mode.value,) if self.mode else ()))
        return blake2b(repr(parts).encode(), digest_size=DIGEST_BYTES, key=_digest_of(self.check)).digest()


@dataclass(frozen=True, slots=True)
class Use:
    """An endpoint of a pool. `port` is the one that connections go to (`connection_port`). An endpoint that is checked
    through VIPs has a use for each."""

    pool: str
    address: Address
    port: int | None
    vip: Address | None = None

    @property
    def digest(self) -> bytes:
        parts = (self.pool, str(self.address), self.port, str(self.vip))
        return blake2b(repr(parts).encode(), digest_size=DIGEST_BYTES).digest()


Wanted = Mapping[Use, Target]


@lru_cache(maxsize=4096)
def _digest_of(check: HealthCheck) -> bytes:
    """Of all parameters; pools share their checks, and it takes a hundred times as long as the rest of a target."""
    values = [(field.name, getattr(check, field.name)) for field in fields(check)]
    if check.size is CheckSize.SMALL:
        values.remove(("size", check.size))  # earlier versions had no other, and their states go on
    plain = [(name, str(value) if isinstance(value, str) else value) for name, value in values]
    return blake2b(repr(plain).encode(), digest_size=32).digest()


Asked = tuple[tuple[tuple[Use, Target], ...], ...]
"""For each endpoint of a pool, in its order, what is asked to be checked of it; nothing if it isn't checked."""


def asked(pool: Pool, users: Sequence[Service]) -> Asked:
    """What the services of a pool ask to be checked.

    A pool may have services of several protocols. Then those that speak the protocol of its check say which port is
    checked: a pool of a TCP and a UDP service on different ports, checked by TCP, is checked at the port of the first.
    """
    if pool.health_check.type is CheckType.NONE:
        return ((),) * len(pool.endpoints)
    spoken = _PROTOCOLS.get(pool.health_check.type)
    fitting = next((service for service in users if service.protocol is spoken), None)
    guides = [(s, s if s.protocol is spoken or fitting is None else fitting) for s in users]
    return tuple(
        tuple(dict(pair for service, guide in guides for pair in uses_of(pool, service, endpoint, guide)).items())
        for endpoint in pool.endpoints
    )


def uses_of(
    pool: Pool, service: Service, endpoint: Endpoint, guide: Service | None = None
) -> Iterator[tuple[Use, Target]]:
    """What a service asks to be checked of an endpoint of its pool; the endpoint serves if all of it is up. Nothing if
    the pool has no check, or the endpoint is disabled. `guide` is the service whose port is checked if the check has
    none, None means: the same."""
    check = pool.health_check
    if check.type is CheckType.NONE or endpoint.state is EndpointState.DISABLED:
        return
    to = connection_port(service, endpoint)
    port = check_port(check, guide or service, endpoint)
    if check.through is Through.VIP and service.mode.is_dsr:
        for vip in service.vips:
            yield Use(pool.name, endpoint.address, to, vip), Target(endpoint.address, port, check, vip, service.mode)
    else:
        yield Use(pool.name, endpoint.address, to), Target(endpoint.address, port, check)


def connection_port(service: Service, endpoint: Endpoint) -> int | None:
    """The port of an endpoint that connections of a service go to. If they keep one of several, the first stands for
    all, so a service that gets one port more is still the same use. None if the service has no ports."""
    first = service.ports[0] if service.ports else None
    if service.mode.is_dsr:
        return first
    return endpoint.port or service.target_port or first


def check_port(check: HealthCheck, service: Service, endpoint: Endpoint) -> int:
    """The port that is checked: the check's own, else the one that connections go to. 0 for a ping."""
    if check.type is CheckType.PING:
        return 0
    return check.port or connection_port(service, endpoint) or 0
