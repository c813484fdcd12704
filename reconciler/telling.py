# SPDX-License-Identifier: Apache-2.0
"""How routers hear of the VIPs of a service, where that is not simply as the manifests say."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from reconciler.model import Service


class Form(StrEnum):
    """How routers hear of a VIP."""

    ANNOUNCED = "announced"
    DEGRADED = "degraded"    # with a worse metric: other balancers go first
    LEAVING = "leaving"      # graceful shutdown (RFC 8326): routers turn to others, while packets still arrive
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Telling:
    """`why` names each condition that fails. `is_drained`: somebody wants it so."""

    form: Form = Form.ANNOUNCED
    why: tuple[str, ...] = ()
    is_drained: bool = False


ANNOUNCED = Telling()


@dataclass(frozen=True, slots=True)
class ToldService(Service):
    """A service of which routers hear otherwise than the manifests say."""

    telling: Telling = ANNOUNCED


_FIELDS = tuple(field.name for field in fields(Service))


def told(service: Service, telling: Telling) -> ToldService:
    """The same service, with a telling."""
    return ToldService(**{name: getattr(service, name) for name in _FIELDS}, telling=telling)


def telling_of(service: Service) -> Telling:
    return service.telling if isinstance(service, ToldService) else ANNOUNCED
