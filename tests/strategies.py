# SPDX-License-Identifier: Apache-2.0
"""Fleets of all shapes, for property tests."""

from ipaddress import IPv4Address

from hypothesis import strategies as st

from reconciler.model import (
    Algorithm,
    Endpoint,
    EndpointState,
    Fleet,
    Interface,
    Node,
    Pool,
    Protocol,
    Service,
    Undefined,
    VipBinding,
    XdpMode,
)

endpoints = st.builds(
    Endpoint,
    address=st.integers(1, 6).map(lambda i: IPv4Address(f"10.2.0.{i}")),
    port=st.sampled_from((None, 8080)),
    weight=st.integers(0, 3),
    state=st.sampled_from(EndpointState),
)


_published = st.tuples(st.integers(1, 2), st.sampled_from((80, 443)))


def _distinct(items):
    return st.lists(items, max_size=4, unique_by=lambda e: (e.address, e.port)).map(tuple)


@st.composite
def fleets(draw):
    pools = {name: Pool(name, draw(_distinct(endpoints))) for name in ("red", "blue")}
    services = [
        Service(
            f"s{vip}-{port}", IPv4Address(f"20.20.20.{vip}"), Protocol.TCP, (port,),
            draw(st.sampled_from(tuple(pools))), algorithm=draw(st.sampled_from(Algorithm)),
            target_port=draw(st.sampled_from((None, 9090))),
        )
        for vip, port in draw(st.lists(_published, max_size=3, unique=True))
    ]  # fmt: skip
    node = Node(
        "lb1", (Interface("front", draw(st.sampled_from(XdpMode))), Interface("back")),
        draw(st.sampled_from(Undefined)), draw(st.sampled_from(VipBinding)),
    )  # fmt: skip
    return Fleet(tuple(services), tuple(pools.values()), (node,))
