# SPDX-License-Identifier: Apache-2.0
"""A first try on plain veth, whose far ends run no program: it works, and who insists on native XDP is warned."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.lab.lab import Lab
from reconciler.lab.topology import SWITCH

from .conftest import LabMaker
from .direct import example

pytestmark = pytest.mark.kernel

VIP = IPv4Address("20.20.20.1")


def failures(lab: Lab) -> list[str]:
    return [o.error for o in lab.load(VIP, 80, count=4, timeout_s=3).wait() if o.error]


def test_a_first_try_on_veth_works_and_native_xdp_is_warned_of(start_lab: LabMaker, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    lab = start_lab(example("nat-tcp", manifests), node_name="lb1")
    for link in lab.topology.links:
        if link.host == "lb1":
            lab.run(SWITCH, "ip", "link", "set", link.port, "xdpdrv", "off")
    lab.serve_http()
    lab.apply(manifests)
    assert failures(lab) == []
    assert "warning" not in lab.lbctl("plan", str(manifests), "--node", "lb1").stdout

    nodes = manifests / "nodes.yaml"
    nodes.write_text(nodes.read_text().replace("name: front,", "name: front, xdp: native,"))
    done = lab.lbctl("apply", str(manifests), "--node", "lb1", "--auto-approve")
    assert "warning: xdp front: front is a veth" in done.stdout
    assert "warning: xdp back" not in done.stdout
    assert set(failures(lab)) == {"TimeoutError: timed out"}, "then the warning is out of date"
