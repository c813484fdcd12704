# SPDX-License-Identifier: Apache-2.0
from tests.config.manifests import node


def sharing(name, own, vrrp):
    faces = f"{{name: eth0, addresses: [{own}]}}"
    return node(name, interfaces=faces, more=f"announce: {{vrrp: {{{vrrp}}}}}")


CASES = {
    "vrrp-address-unreachable": (
        sharing("lb1", "10.1.0.1/24", "id: 51, addresses: [10.1.0.1/24, 10.9.0.100/24]"),
        sharing("lb1", "10.1.0.1/24", "id: 51, addresses: [10.1.0.100/24]"),
    ),
    "vrrp-twins": (
        sharing("lb1", "10.1.0.1/24", "id: 51, addresses: [10.1.0.100/24]")
        + sharing("lb2", "10.1.0.2/24", "id: 51, addresses: [10.1.0.100/24]")
        + sharing("lb3", "10.1.0.3/24", "id: 51, addresses: [10.1.0.101/24], priority: 50"),
        sharing("lb1", "10.1.0.1/24", "id: 51, addresses: [10.1.0.100/24], priority: 150")
        + sharing("lb2", "10.1.0.2/24", "id: 51, addresses: [10.1.0.100/24]")
        + sharing("lb3", "10.1.0.3/24", "id: 52, addresses: [10.1.0.101/24]")
        + sharing("lb4", "10.2.0.4/24", "id: 51, addresses: [10.2.0.100/24]"),
    ),
}
