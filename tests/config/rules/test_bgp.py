# SPDX-License-Identifier: Apache-2.0
from tests.config.manifests import node


def speaking(addresses, bgp, more=""):
    faces = f"{{name: eth0, addresses: [{addresses}]}}"
    return node("lb1", interfaces=faces, more=f"bgp: {{{bgp}}}{more}")


CASES = {
    "bgp-router-id": (
        speaking("2001:db8::1/64", "asn: 65001"),
        speaking("2001:db8::1/64", "asn: 65001, routerId: 10.0.0.1"),
    ),
    "vip-routes-and-bgp": (
        speaking("10.1.0.1/24", "asn: 65001", ", vipRoutes: {}, role: router"),
        node("lb1", interfaces="{name: eth0, addresses: [10.1.0.1/24]}", more="vipRoutes: {}, role: router"),
    ),
    "bgp-vip-as-address": (
        speaking("10.1.0.1/24", "asn: 65001", ", announce: {}, vipBinding: address"),
        speaking("10.1.0.1/24", "asn: 65001", ", announce: {}"),
    ),
}
