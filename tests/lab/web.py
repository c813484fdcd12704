# SPDX-License-Identifier: Apache-2.0
"""A web service, its endpoints, and a balancer with an agent that checks them: what tests of health, drains and
outages run on, and the soak."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from reconciler import children
from reconciler.config.load import load
from reconciler.health import roster, store
from reconciler.health.state import Health
from reconciler.kernel.real import RealKernel
from reconciler.kinds.ring import Ring
from reconciler.kinds.rings import RingKind
from reconciler.lab import netns, server
from reconciler.lab.build import await_answer, wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of
from reconciler.model import Fleet

VIP, PORT = IPv4Address("20.20.20.1"), 80
PATIENCE_S = 240.0
_SHARED = "snatAddresses: [10.2.0.2]\n  "
_ASKER = "healthAddress: {ipv4: 10.1.0.9}\n  "
_MANY = 60


def addresses(count: int) -> tuple[IPv4Address, ...]:
    """Those of so many endpoints."""
    return tuple(IPv4Address("10.2.0.11") + number for number in range(count))


def manifests(
    endpoints: Mapping[IPv4Address, int] | Iterable[IPv4Address], mode: str = "nat", check: str = "", *,
    service: str = "", pool: str = "", ports: str = f"[{PORT}]",
) -> str:  # fmt: skip
    """A service `web` on a balancer `lb1` with two arms. Endpoints may have weights; where their mode asks for it,
    they are Nodes too. `service` and `pool` are what these say besides."""
    weights = endpoints if isinstance(endpoints, Mapping) else dict.fromkeys(endpoints, 1)
    listed = ", ".join(f"{{address: {address}, weight: {weight}}}" for address, weight in weights.items())
    own = (_ASKER if "through: vip" in check else "") + (_SHARED if mode == "fullnat" else "")
    web = ", ".join(filter(None, (f"vip: {VIP}", f"ports: {ports}", f"mode: {mode}", "pool: web", service)))
    lines = "".join(f"\n  {line}" for line in (f"healthCheck: {check}" if check else "", pool) if line)
    documents = [
        f"kind: Service\nmetadata: {{name: web}}\nspec: {{{web}}}\n",
        f"kind: Pool\nmetadata: {{name: web}}\nspec:\n  endpoints: [{listed}]{lines}\n",
        f"kind: Node\nmetadata: {{name: lb1}}\nspec:\n  {own}interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, "
        "{name: back, addresses: [10.2.0.1/24]}]\n",
        *(
            f"kind: Node\nmetadata: {{name: e{address.packed[3]}}}\n"
            f"spec: {{role: endpoint, interfaces: [{{name: eth0, addresses: [{address}/24]}}]}}\n"
            for address in (weights if mode.startswith("dsr") else ())
        ),
    ]  # fmt: skip
    return "---\n".join(f"apiVersion: lbctl/v1\n{document}" for document in documents)


def written(directory: Path, text: str) -> Fleet:
    """The fleet of these manifests, which are in a directory from now on."""
    directory.mkdir(exist_ok=True)
    (directory / "all.yaml").write_text(text)
    fleet = load(directory).fleet
    assert fleet
    return fleet


class Web:
    """The service in a lab. `log` has what the agent says."""

    def __init__(self, lab: Lab, directory: Path, log: Path) -> None:
        self.lab, self.directory, self.log = lab, directory, log
        self.kernel = RealKernel(lab.balancer, lab.run_dir)
        self.place = lab.run_dir / lab.balancer
        self.agent: subprocess.Popen[bytes]

    def start(self, *options: str) -> None:
        """Servers, what the manifests ask of them, and the agent."""
        self.lab.serve_http()
        if self.lab.topology.endpoint_nodes:
            self.lab.apply(self.directory)
        self.start_agent(*options)

    def start_agent(self, *options: str) -> None:
        with self.log.open("ab") as output:
            argv = ("run", str(self.directory), "--node", "lb1", *options)
            self.agent = self.lab.start_lbctl(*argv, output=output)

    def kill_agent(self) -> None:
        self.agent.kill()
        self.agent.wait(PATIENCE_S)

    def write(self, text: str) -> None:
        """Put manifests in place as an editor does: in one step."""
        path = self.directory / "all.yaml"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)

    def serve_again(self, address: IPv4Address) -> None:
        """Start the server of an endpoint anew, and wait until it answers."""
        argv = children.script(str(server.__file__), str(address), str(PORT))
        self.lab.servers[address] = self.lab.start(host_of(address), *argv)
        what = f"the server on {address} is back"
        netns.inside(self.lab.netns(host_of(address)), await_answer, what, str(address), PORT, True)

    def members(self) -> set[IPv4Address]:
        """Who gets new connections."""
        rings = [ring for ring in RingKind(self.kernel).read({}).resources if isinstance(ring, Ring)]
        return {IPv4Address(member.partition(":")[0]) for ring in rings for member in ring.members}

    def up(self) -> set[IPv4Address]:
        """Whom checks find up. Of an edited check there are two targets for a moment: then the newer one counts."""
        entries = store.read(self.place / store.FILE).entries
        listed = roster.read(self.place / roster.FILE)
        return {
            IPv4Address(endpoint.address) for pool in listed.values() for endpoint in pool.endpoints
            if all(digest in entries and entries[digest].state.health is Health.UP for _, digest in endpoint.targets)
        }  # fmt: skip

    def await_members(self, *expected: IPv4Address) -> None:
        wait_until(f"the ring has {expected}", lambda: self.members() == set(expected), PATIENCE_S)

    def await_up(self, *expected: IPv4Address) -> None:
        wait_until(f"{expected} are up", lambda: self.up() == set(expected), PATIENCE_S)

    def await_said(self, *texts: str) -> None:
        """Wait until the agent says any of these."""
        what = " or ".join(map(repr, texts))
        wait_until(f"the agent says {what}", lambda: any(text in self.log.read_text() for text in texts), PATIENCE_S)

    def lbctl(self, *args: str) -> str:
        done = self.lab.lbctl(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def plan(self, *options: str) -> str:
        return self.lbctl("plan", str(self.directory), "--node", "lb1", *options)

    def apply(self) -> None:
        """As a person does it beside the agent."""
        self.lbctl("apply", str(self.directory), "--node", "lb1", "--auto-approve")

    def answering(self) -> set[IPv4Address]:
        """Who answers new connections, none of which may fail."""
        outcomes = self.lab.load(VIP, PORT, count=_MANY, clients=16, timeout_s=10).wait()
        assert not Counter(outcome.error for outcome in outcomes if outcome.error)
        return {IPv4Address(outcome.endpoint.rpartition(":")[0]) for outcome in outcomes}
