# SPDX-License-Identifier: Apache-2.0
"""`allowedSources` with real clients: who is in the list is answered, nobody else, and an edit counts at once."""

import re
import time
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from reconciler.lab.build import wait_until

from .conftest import LabMaker
from .direct import applied_on, example

pytestmark = pytest.mark.kernel

CLIENTS = 12
SITES = {
    "nat-one-arm": ("lb2", IPv4Address("20.20.20.11"), 80, "10.11.0.248/29"),
    "dsr-l3-ipv6": ("lb9", IPv6Address("2001:db8:20::61"), 443, "2001:db8:61:0:ffff:ffff:ffff:fff8/125"),
}
"""Balancer, VIP, port, and a network that has six of the twelve clients."""


@pytest.mark.parametrize("name", SITES)
def test_only_clients_of_the_list_are_served_and_an_edit_of_it_counts_for_open_connections(
    name: str, start_lab: LabMaker, tmp_path: Path
) -> None:
    node, vip, port, some = SITES[name]
    other_family = "192.0.2.0/24" if vip.version == 6 else "'2001:db8:f::/64'"  # or no client could reach its VIP
    manifests = tmp_path / "manifests"
    lab = start_lab(example(name, manifests, (r"(?m)^  allowedSources:.*\n", "")), node_name=node)
    lab.serve_http()
    lab.apply(manifests)
    load = lab.load(
        vip, port, rate=60, concurrency=CLIENTS, requests_per_connection=0, clients=CLIENTS, timeout_s=1
    )  # fmt: skip

    def served(sources: str) -> dict[str, bool]:
        """Apply a list. Whose requests, begun after that, were all answered?"""
        services = manifests / "services.yaml"
        text = re.sub(r"(?m)^  allowedSources:.*\n", "", services.read_text())
        services.write_text(re.sub(r"(?m)^  pool:", f"  allowedSources: [{sources}]\n  pool:", text))
        applied_on(lab, node, "apply", str(manifests), "--node", node, "--auto-approve")
        since_s = time.monotonic()
        asked: dict[str, bool] = {}

        def has_heard_of_all() -> bool:
            asked.clear()
            for outcome in load.outcomes():
                if outcome.started_s > since_s:
                    asked[outcome.source] = asked.get(outcome.source, True) and not outcome.error
            return len(asked) == CLIENTS

        wait_until("each client has asked again", has_heard_of_all)
        return asked

    assert all(served("0.0.0.0/0, '::/0'").values())
    for source, is_served in served(f"'{some}', {other_family}").items():
        assert is_served == (ip_address(source) in ip_network(some)), source
    assert "not allowed" in applied_on(lab, node, "get", "verdicts")
    assert all(served("0.0.0.0/0, '::/0'").values())
    assert load.stop()
