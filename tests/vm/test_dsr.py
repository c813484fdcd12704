# SPDX-License-Identifier: Apache-2.0
"""Direct server return from manifests to sockets: the kernel's own tunnels and SCTP, replies past the balancer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reconciler.doctor.finding import FOUND
from tests.vm.fleet import CASES, Case, manifests
from tests.vm.site import BALANCER, CLIENT, Site, address, site
from tests.vm.traffic import prove, served


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with all cases at once, applied to each node, and a server wherever one is named."""
    directory = tmp_path_factory.mktemp("manifests")
    (directory / "site.yaml").write_text(manifests())
    with site(directory, tmp_path_factory.mktemp("run")) as made:
        made.apply()
        with served(made, CASES.values()):
            yield made


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def tunnels(made: Site, host: str) -> dict[str, int]:
    """The devices that unpack on a host, and how many packets came out of each."""
    links = json.loads(made.run(host, "ip", "-json", "-statistics", "-details", "link"))
    kinds = {link["ifname"]: link.get("linkinfo", {}).get("info_kind") for link in links}
    return {
        link["ifname"]: link["stats64"]["rx"]["packets"] for link in links
        if kinds[link["ifname"]] in ("ipip", "sit", "ip6tnl")
    }  # fmt: skip


def unpacked(made: Site, case: Case) -> dict[str, int]:
    return {host: sum(tunnels(made, host).values()) for host in case.hosts}


def test_every_endpoint_answers_and_no_reply_passes_the_balancer(applied: Site, case: Case) -> None:
    before = unpacked(applied, case)
    prove(applied, case)
    # Where there is a tunnel, it was the kernel's own device that unpacked it.
    after = unpacked(applied, case)
    assert all((after[host] > before[host]) == (case.way != "mac") for host in case.hosts)


# --- the proof fails where the service does ------------------------------------------------------------------------
@contextmanager
def broken(made: Site, host: str, *lines: str) -> Iterator[None]:
    """What `ip` does on a host, and lbctl repairs."""
    made.ip(host, *lines)
    try:
        yield
    finally:
        made.apply(host)


def test_dead_vips_are_noticed_and_revived(applied: Site) -> None:
    with broken(applied, BALANCER, "link set eth0 xdp off"):
        for each in CASES.values():
            with pytest.raises(AssertionError, match="8 of 8 requests failed"):
                prove(applied, each, requests=8, limit_s=1)
    prove(applied, CASES["dsr-l3 tcp"])


def test_an_endpoint_without_its_tunnels_is_noticed_and_gets_them_back(applied: Site) -> None:
    tunnelled = [each for each in CASES.values() if each.way != "mac"]
    with broken(applied, "ep2", *(f"link del {device}" for device in tunnels(applied, "ep2") if "-" in device)):
        for each in tunnelled:
            with pytest.raises(AssertionError, match="requests failed"):
                prove(applied, each, limit_s=1)
        told = applied.lbctl("ep2", "doctor", str(applied.manifests), "--node", "ep2", code=FOUND)
        assert "tunnel-missing" in told
    for each in tunnelled:
        prove(applied, each)


def test_replies_through_the_balancer_are_noticed(applied: Site, case: Case) -> None:
    version = 6 if ":" in case.vip else 4
    detour = f"route add {address(CLIENT, version)} via {address(BALANCER, version)}"
    applied.ip("ep2", detour)
    try:
        with pytest.raises(AssertionError, match="packets of replies passed the balancer"):
            prove(applied, case, limit_s=1)
    finally:
        applied.ip("ep2", detour.replace("add", "del"))
