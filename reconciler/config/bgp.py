# SPDX-License-Identifier: Apache-2.0
"""The configuration of FRR that manifests ask for: BGP with exactly the declared neighbours, in FRR's own form, apart
from the list of VIPs (see `kinds/routing_prefix`).

Each neighbour has a route map in each direction. So nothing but VIPs is ever told or taken, and it does not matter
that FRR exchanges nothing with neighbours of other systems without a policy (RFC 8212, `bgp ebgp-requires-policy`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from reconciler.model import LEAVING_METRIC, Role
from reconciler.peers import PREFIXES, router_id
from reconciler.view import NodeView

if TYPE_CHECKING:
    from jinja2 import Template

_RESTART_S = 60

_TEXT = """\
bgp community-list standard lbctl-leaving seq 5 permit graceful-shutdown
route-map lbctl-nothing deny 10
route-map lbctl-out permit 10
 match ip address prefix-list {{ prefixes }}
 match metric {{ leaving }}
 set community graceful-shutdown
route-map lbctl-out permit 20
 match ip address prefix-list {{ prefixes }}
route-map lbctl-in permit 10
 match community lbctl-leaving
 match ip address prefix-list {{ prefixes }}
 set local-preference 0
route-map lbctl-in permit 20
 match ip address prefix-list {{ prefixes }}
{%- if table %}
ip import-table {{ table }}
{%- endif %}
router bgp {{ bgp.asn }}
 bgp router-id {{ router_id }}
 bgp graceful-restart restart-time {{ restart_s }}
 bgp graceful-restart
{%- if not table %}
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
 address-family ipv4 unicast
{%- if table %}
  redistribute table {{ table }}
{%- endif %}
{%- for peer in peers %}
  neighbor {{ peer.address }} route-map {{ "lbctl-in" if peer.is_balancer else "lbctl-nothing" }} in
  neighbor {{ peer.address }} route-map {{ "lbctl-nothing" if peer.is_balancer else "lbctl-out" }} out
{%- endfor %}
{%- if not table %}
  maximum-paths {{ paths }}
{%- endif %}
"""


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # slow to import, and few nodes need it

    return Environment(undefined=StrictUndefined, autoescape=False).from_string(_TEXT)


def rendered(view: NodeView) -> str:
    """The configuration for a node with `bgp`."""
    node = view.node
    assert node.bgp is not None
    hold_s = round(node.bgp.hold_time_s)
    announce = node.announce if node.role is Role.BALANCER else None
    return _template().render(
        bgp=node.bgp, peers=view.peers, router_id=router_id(node), table=announce.table if announce else 0,
        leaving=LEAVING_METRIC, prefixes=PREFIXES, restart_s=_RESTART_S, hold_s=hold_s, keepalive_s=hold_s // 3,
        paths=node.multipath or 1,
    )  # fmt: skip
