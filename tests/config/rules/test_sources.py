# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.rules.parts import web

CASES = {
    "sources-exclude-everybody": (
        web(more="allowedSources: ['2001:db8::/32', 127.0.0.0/8]"),
        web(more="allowedSources: [10.0.0.0/8]"),
    ),
    "source-without-effect": (
        web(more="allowedSources: [10.1.0.0/16, 192.0.2.7/32, 10.0.0.0/8]"),
        web(more="allowedSources: [10.1.0.0/16, 192.0.2.7/32, 10.0.0.0/16, 0.0.0.0/1, 128.0.0.0/2]"
            .replace("0.0.0.0/1, 128.0.0.0/2", "172.16.0.0/12")),
    ),
}  # fmt: skip


def found(write, sources, vips="20.20.20.1"):
    text = web("dsr-l3", endpoints="{address: '2001:db8::11'}", more=f"allowedSources: [{sources}]")
    text = text.replace("vip: 20.20.20.1", f"vips: [{vips}]")
    return [(d.rule, d.message) for d in load(write({"all.yaml": text})).diagnostics]


def test_vip_of_each_family_needs_sources_of_its_family(write):
    ((rule, message),) = found(write, "10.0.0.0/8", "20.20.20.1, '2001:db8::1'")
    assert rule == "sources-exclude-everybody"
    assert message.startswith("no client can reach 2001:db8::1")


@pytest.mark.parametrize(
    ("sources", "useless"),
    [
        ("0.0.0.0/0, 10.0.0.0/8", ["10.0.0.0/8 has no effect: 0.0.0.0/0 covers it"]),
        ("10.0.0.0/8, 10.1.0.0/16, 10.1.1.0/24", ["10.1.0.0/16 has no effect: 10.0.0.0/8 covers it",
                                                  "10.1.1.0/24 has no effect: 10.0.0.0/8 covers it"]),
        ("10.0.0.0/8, 224.0.0.0/4", ["224.0.0.0/4 has no effect: it holds no address of a single machine"]),
        ("10.0.0.0/8, 127.0.0.1/32", ["127.0.0.1/32 has no effect: loopback addresses never leave a machine"]),
        ("10.0.0.0/8, '::/0'", ["::/0 has no effect: the service has no IPv6 VIP"]),
        ("10.0.0.0/9, 10.128.0.0/9", []),
    ],
)  # fmt: skip
def test_source_that_changes_nothing(write, sources, useless):
    assert [message for _, message in found(write, sources)] == useless
