# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.deb PACKAGE`: install the Debian package in a bare Debian and do with it what its manual says, with
real requests through a lab of network namespaces. `make test-deb` builds the package first.

There is no systemd in a directory, so the service is started as its unit would: `prepare` as root, then the agent as
its own user with the unit's capabilities.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

from reconciler.config.load import load
from reconciler.lab.lab import Lab
from tests.deb.system import CHECKOUT, System, Timer, base, own_mounts, say
from tests.packets.balancer import FEATURES

CODENAMES = {"12": "bookworm", "13": "trixie"}
MODES = ("NAT", "DSR_L2", "DSR_L3")
EXAMPLE = CHECKOUT / "examples" / "configs" / "nat-tcp"
VIP, PORT = IPv4Address("20.20.20.1"), 80
REQUESTS = 60
REFUSED = {
    "status": "you may not ask the agent", "pause --reason x": "run as root", "history": "run as root",
    "rollback --auto-approve": "run as root", "delete --auto-approve": "run as root",
}  # fmt: skip
"""What somebody without rights asks for, and what the answer has in it."""
SCRAPE = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9105/metrics').read().decode())"


def main(package: Path) -> int:
    assert os.geteuid() == 0, "this needs root: it mounts file systems and makes network namespaces"
    debian = package.name.partition("~deb")[2].partition("_")[0]
    archive = base(CODENAMES[debian])
    own_mounts()
    fleet = load(EXAMPLE).fleet
    assert fleet is not None
    work = Path(tempfile.mkdtemp(prefix="lbctl-deb-"))
    system = System(work / "root", archive)
    try:
        with Lab(fleet, prefix=f"lbdeb-{os.getpid()}", run_dir=work / "lab") as lab:
            lab.serve_http()
            first_node(system, lab, package)
            data_planes(system)
            as_a_service(system, lab, work)
            removed(system, lab)
    finally:
        system.remove()
        subprocess.run(["rm", "-rf", "--one-file-system", work], check=False)
    say("The package works.")
    return 0


def steered(lab: Lab) -> Counter[str]:
    """Send requests to the VIP: how many each endpoint answered. AssertionError if any failed."""
    outcomes = lab.load(VIP, PORT, count=REQUESTS).wait()
    failed = [outcome for outcome in outcomes if outcome.error]
    assert len(outcomes) == REQUESTS and not failed, failed[:3] or outcomes
    return Counter(outcome.endpoint.partition(":")[0] for outcome in outcomes)


def first_node(system: System, lab: Lab, package: Path) -> None:
    """From the package to a steered packet, by hand."""
    timer = Timer()
    shutil.copyfile(package, system.root / "tmp" / package.name)
    say("Installing the package")
    system.run("dpkg", "--install", f"/tmp/{package.name}")
    assert system.run("lbctl", "--version").startswith("lbctl ")
    assert "no agent runs" in system.run("lbctl", "status", code=1)
    system.run("sh", "-c", "cp /usr/share/doc/lbctl/examples/configs/nat-tcp/*.yaml /etc/lbctl/")
    system.run("lbctl", "validate", "/etc/lbctl")
    assert "to add" in system.run("lbctl", "plan", "/etc/lbctl", netns=lab.balancer)
    system.run("lbctl", "apply", "/etc/lbctl", "--auto-approve", netns=lab.balancer)
    served = steered(lab)
    assert len(served) == 3, served
    say(f"From the package to steered packets: {timer}; {dict(served)}")
    assert (system.root / "usr/share/man/man8/lbctl.8.gz").stat().st_size > 5_000
    system.run("bash", "-n", "/usr/share/bash-completion/completions/lbctl")


def data_planes(system: System) -> None:
    """What this system's compiler makes of every feature passes the verifier."""
    say("Compiling the data plane with all features")
    shutil.copyfile(Path(__file__).with_name("loads.py"), system.root / "tmp/loads.py")
    sets = [list(FEATURES), [*FEATURES, "EXPLAIN"], [*FEATURES, "WATCHING"]]
    sets += [[mode, *(name for name in FEATURES if name not in MODES)] for mode in MODES]
    system.run("python3", "-I", "/tmp/loads.py", json.dumps(sets))


def as_a_service(system: System, lab: Lab, work: Path) -> None:
    """The agent as its own user, on what root applied before; root and others beside it."""
    say("The agent as its own user")
    system.run("install", "-d", "-o", "lbctl", "-g", "lbctl", "/var/lib/lbctl", "/var/cache/lbctl", "/run/lbctl")
    for path in ("/var/lib/lbctl", "/var/cache/lbctl"):
        system.run("chown", "-R", "lbctl:lbctl", path)
    system.run("/usr/lib/lbctl/prepare", "default")
    agent = system.start(
        "lbctl", "run", "--group", "lbctl", "--resync", "1s", "--metrics", "9105", "/etc/lbctl",
        netns=lab.balancer, user="lbctl", log=work / "agent.log",
    )  # fmt: skip
    try:
        try:
            ask(system, lab, "status", "--wait", "synced")
            remote = system.root / "etc/lbctl/pools.yaml"
            text = remote.read_text()
            lines = [line for line in text.splitlines(keepends=True) if "10.2.0.13" not in line]
            remote.write_text("".join(lines))
            ask(system, lab, "status", "--wait", "synced")
            assert set(steered(lab)) == {"10.2.0.11", "10.2.0.12"}
            status = json.loads(ask(system, lab, "status", "--json"))
            assert (status["sync"], status["health"]) == ("Synced", "Healthy"), status
            served = system.run("python3", "-c", SCRAPE, netns=lab.balancer, user="nobody")
            assert 'lbctl_sync{state="Synced"} 1' in served and 'packets_total{verdict="request"}' in served, served
            say("Root beside it, and those without rights")
            assert "10.2.0.11:8080" in ask(system, lab, "get", "endpoints")
            ask(system, lab, "rollback", "--auto-approve")
            assert len(steered(lab)) == 3
            assert "rolled back" in ask(system, lab, "status")
            remote.write_text(text)
            ask(system, lab, "resume")
            ask(system, lab, "status", "--wait", "synced")
            owners = {path.stat().st_uid for path in (system.root / "run/lbctl/default").iterdir()}
            assert owners == {(system.root / "run/lbctl/default").stat().st_uid} != {0}, owners
            for words, refusal in REFUSED.items():
                refused = system.run("lbctl", *words.split(), netns=lab.balancer, user="nobody", code=1)
                assert refusal in refused, refused
            assert len(steered(lab)) == 3
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(timeout=60)
    except BaseException:
        print((work / "agent.log").read_text(), file=sys.stderr)
        raise


def ask(system: System, lab: Lab, *words: str) -> str:
    return system.run("lbctl", *words, netns=lab.balancer)


def removed(system: System, lab: Lab) -> None:
    """The package goes, and traffic goes on; it comes back, and takes everything off."""
    say("Removing the package under traffic, and what it left")
    load = lab.load(VIP, PORT, seconds=600, rate=50)
    system.run("dpkg", "--remove", "lbctl")
    assert not (system.root / "usr/bin/lbctl").exists()
    (deb,) = (system.root / "tmp").glob("lbctl_*.deb")
    system.run("dpkg", "--install", f"/tmp/{deb.name}")
    outcomes = load.stop()
    assert outcomes and not [outcome for outcome in outcomes if outcome.error]
    ask(system, lab, "delete", "--auto-approve")
    assert not list((system.root / "run/lbctl").glob("default/bpf/*"))
    system.run("dpkg", "--purge", "lbctl")
    left = [str(p) for p in (system.root / "var/lib/lbctl", system.root / "usr/lib/lbctl") if p.exists()]
    assert left == [], left


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
