# SPDX-License-Identifier: Apache-2.0
"""The stages of the data plane: parts of the way of a packet that are programs of their own (bpf/stage.h).

A stage is made of the same source as the main program, with a feature of its own and without those that it has no use
for. The main program finds it by its number in the map `stages`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum


class StageNumber(IntEnum):
    """`enum stage` of bpf/maps.h."""

    NAT4 = 0
    NAT6 = 1
    FULLNAT4 = 2
    PORTS = 3
    SWEEP = 4
    SCTP4 = 5
    FULLNAT6 = 6
    FRAGMENTS = 7
    PORTS6 = 8
    SWEEP6 = 9
    FIRST4 = 10


@dataclass(frozen=True, slots=True)
class Stage:
    """`name` is the kernel's for the program. The stage is there if the main program has all features of `needs`. It
    is compiled with `own`, and without the features `without`."""

    number: StageNumber
    name: str
    needs: tuple[str, ...]
    own: tuple[str, ...]
    without: tuple[str, ...]

    def features(self, features: Collection[str]) -> tuple[str, ...]:
        """What the stage is compiled with beside a main program with these features."""
        return (*(feature for feature in features if feature not in self.without), *self.own)


_OF_OTHER_MODES = ("DSR_L2", "DSR_L3", "CHECKS", "ECHO", "FORWARD_ECHO")
_OF_PACKETS = (
    *_OF_OTHER_MODES, "NAT", "IPV6", "NAT6", "FULLNAT6", "SCTP", "ROUND_ROBIN", "SOURCE_HASH", "MAGLEV",
    "LEAST_CONNECTIONS", "REJECT", "GATEWAY", "VLAN", "ALLOWED_SOURCES", "EXPLAIN", "WATCHING",
    "STATELESS", "FRAGMENTS", "AFFINITY",
)  # fmt: skip
"""What a stage that sees no packet has no use for."""
STAGES = (
    Stage(
        StageNumber.NAT4, "lbctl_nat4", ("NAT",), ("AS_NAT",),
        (*_OF_OTHER_MODES, "FULLNAT", "FULLNAT6", "IPV6", "NAT6", "SCTP", "FRAGMENTS"),
    ),
    Stage(
        StageNumber.NAT6, "lbctl_nat6", ("NAT", "NAT6", "IPV6"), ("AS_NAT", "AS_NAT6"),
        (*_OF_OTHER_MODES, "FULLNAT", "FULLNAT6", "SCTP", "STATELESS", "FRAGMENTS"),
    ),
    Stage(
        StageNumber.FULLNAT4, "lbctl_fullnat4", ("FULLNAT",), ("AS_FULLNAT",),
        (*_OF_OTHER_MODES, "NAT", "IPV6", "NAT6", "FULLNAT6", "SCTP", "STATELESS", "FRAGMENTS"),
    ),
    Stage(StageNumber.PORTS, "lbctl_ports", ("FULLNAT",), ("AS_LENDER",), _OF_PACKETS),
    Stage(StageNumber.SWEEP, "lbctl_sweep", ("FULLNAT",), ("AS_SWEEPER",), _OF_PACKETS),
    Stage(
        StageNumber.SCTP4, "lbctl_sctp4", ("NAT", "SCTP"), ("AS_NAT", "AS_SCTP"),
        (*_OF_OTHER_MODES, "FULLNAT", "FULLNAT6", "IPV6", "NAT6", "UDP", "STATELESS", "FRAGMENTS",
         "AFFINITY"),
    ),
    Stage(
        StageNumber.FRAGMENTS, "lbctl_fragments", ("FRAGMENTS",), ("AS_FRAGMENTS",),
        ("CHECKS", "ECHO", "FORWARD_ECHO", "FULLNAT", "FULLNAT6", "LEAST_CONNECTIONS", "NAT6", "REJECT",
         "ROUND_ROBIN", "STATELESS", "AFFINITY"),
    ),
    Stage(
        StageNumber.FIRST4, "lbctl_first4", ("NAT", "FRAGMENTS", "UDP"), ("AS_NAT", "AS_FIRST"),
        (*_OF_OTHER_MODES, "FULLNAT", "FULLNAT6", "IPV6", "NAT6", "SCTP"),
    ),
    Stage(
        StageNumber.FULLNAT6, "lbctl_fullnat6", ("FULLNAT", "FULLNAT6", "IPV6"), ("AS_FULLNAT", "AS_NAT6"),
        (*_OF_OTHER_MODES, "NAT", "NAT6", "SCTP", "STATELESS", "FRAGMENTS"),
    ),
    Stage(StageNumber.PORTS6, "lbctl_ports6", ("FULLNAT", "FULLNAT6"), ("AS_LENDER", "AS_NAT6"), _OF_PACKETS),
    Stage(StageNumber.SWEEP6, "lbctl_sweep6", ("FULLNAT", "FULLNAT6"), ("AS_SWEEPER", "AS_NAT6"), _OF_PACKETS),
)  # fmt: skip


def stages_of(features: Collection[str]) -> tuple[Stage, ...]:
    """The stages of a main program with these features."""
    return tuple(stage for stage in STAGES if set(stage.needs) <= set(features))
