# SPDX-License-Identifier: Apache-2.0
"""Rules about how manifests must fit together, which no schema can express. One module for each subject; see
`rule`."""

from reconciler.config.rules import (  # noqa: F401  importing a module registers its rules
    addresses,
    bgp,
    capacity,
    dsr,
    echo,
    fallback,
    families,
    fullnat,
    health,
    health_address,
    names,
    nodes,
    pools,
    ports,
    sources,
    timeouts,
    topology,
    tunnels,
    vrrp,
    ways,
)
from reconciler.config.rules.checker import Checker
from reconciler.config.rules.rule import RULES, Told, findings

__all__ = ["RULES", "Checker", "Told", "findings"]
