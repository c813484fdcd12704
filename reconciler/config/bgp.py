# SPDX-License-Identifier: Apache-2.0
"""The configuration of FRR that manifests ask for: BGP with exactly the declared neighbours, in FRR's own form, apart
from the list of VIPs (see `kinds/routing_prefix`).

Each neighbour has a route map in each direction. So nothing but VIPs is ever told or taken, and it does not matter
that FRR exchanges nothing with neighbours of other systems without a policy (RFC 8212, `bgp ebgp-requires-policy`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from reconciler.model import LEAVING_METRIC, Address, Role
from reconciler.peers import PREFIXES, router_id
from reconciler.view import NodeView

if TYPE_CHECKING:
    from jinja2 import Template

_RESTART_S = 60

_TEXT = """\
bgp community-list standard lbctl-leaving seq 5 permit graceful-shutdown
route-map lbctl-nothing deny 10
{%- for family in families %}
route-map lbctl-out{{ family.suffix }} permit 10
 match {{ family.word }} address prefix-list {{ prefixes }}
 match metric {{ leaving }}
 set community graceful-shutdown
route-map lbctl-out{{ family.suffix }} permit 20
 match {{ family.word }} address prefix-list {{ prefixes }}
route-map lbctl-in{{ family.suffix }} permit 10
 match community lbctl-leaving
 match {{ family.word }} address prefix-list {{ prefixes }}
 set local-preference 0
{%- if family.version == 6 %}
 set ipv6 next-hop prefer-global
{%- endif %}
route-map lbctl-in{{ family.suffix }} permit 20
 match {{ family.word }} address prefix-list {{ prefixes }}
{%- if family.version == 6 %}
 set ipv6 next-hop prefer-global
{%- endif %}
{%- if announces %}
route-map lbctl-own{{ family.suffix }} permit 10
 match {{ family.word }} address prefix-list {{ prefixes }}
{%- endif %}
{%- endfor %}
router bgp {{ bgp.asn }}
 bgp router-id {{ router_id }}
 bgp graceful-restart restart-time {{ restart_s }}
 bgp graceful-restart
{%- if not announces %}
 bgp always-compare-med
 bgp bestpath as-path multipath-relax
{%- endif %}
{%- for peer in peers %}
 neighbor {{ peer.address }} remote-as {{ peer.asn }}
{%- if bgp.bfd %}
 neighbor {{ peer.address }} bfd
{%- endif %}
 neighbor {{ peer.address }} timers {{ keepalive_s }} {{ hold_s }}
 neighbor {{ peer.address }} timers connect 1
{%- endfor %}
{%- for family in families %}
 address-family ipv{{ family.version }} unicast
{%- if announces %}
  redistribute kernel route-map lbctl-own{{ family.suffix }}
{%- endif %}
{%- for peer in peers %}
{%- if peer.address in family.peers %}
{%- if family.version == 6 %}
  neighbor {{ peer.address }} activate
{%- endif %}
  neighbor {{ peer.address }} route-map {{ "lbctl-in" ~ family.suffix if peer.is_balancer else "lbctl-nothing" }} in
  neighbor {{ peer.address }} route-map {{ "lbctl-nothing" if peer.is_balancer else "lbctl-out" ~ family.suffix }} out
{%- elif family.version == 4 %}
  neighbor {{ peer.address }} route-map lbctl-nothing in
  neighbor {{ peer.address }} route-map lbctl-nothing out
{%- endif %}
{%- endfor %}
{%- if not announces %}
  maximum-paths {{ paths }}
{%- endif %}
{%- endfor %}
"""
"""FRR itself has each neighbour exchange routes of IPv4, whatever the session runs over. VIPs are routes of the kernel
in the table `main`: what FRR imports from another one (`ip import-table`) is of IPv4 only, and gone as soon as one of
two routes to the same VIP goes, as when its metric changes. A router that prefers the global address of a next hop
shows whose it is."""


@dataclass(frozen=True, slots=True)
class _Family:
    """`peers` are the addresses of the neighbours that hear of VIPs of this family, or tell of them."""

    version: int
    peers: frozenset[Address]

    @property
    def word(self) -> str:
        return "ip" if self.version == 4 else "ipv6"

    @property
    def suffix(self) -> str:
        """Of the names of route maps."""
        return "" if self.version == 4 else "6"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # slow to import, and few nodes need it

    return Environment(undefined=StrictUndefined, autoescape=False).from_string(_TEXT)


def rendered(view: NodeView) -> str:
    """The configuration for a node with `bgp`."""
    node = view.node
    assert node.bgp is not None
    hold_s = round(node.bgp.hold_time_s)
    announces = node.announce is not None and node.role is Role.BALANCER
    return _template().render(
        bgp=node.bgp, peers=view.peers, router_id=router_id(node), announces=announces,
        leaving=LEAVING_METRIC, prefixes=PREFIXES, restart_s=_RESTART_S, hold_s=hold_s, keepalive_s=hold_s // 3,
        paths=node.multipath or 1, families=list(_families(view)),
    )  # fmt: skip


def _families(view: NodeView) -> Iterator[_Family]:
    """Those of which a neighbour may hear, and IPv4 in any case."""
    by_version = {v: frozenset(p.address for p in view.peers if p.address.version == v) for v in (4, 6)}
    yield _Family(4, by_version[4])
    carried = by_version[6] | (by_version[4] if view.node.bgp and view.node.bgp.multiprotocol else frozenset())
    if carried:
        yield _Family(6, carried)
