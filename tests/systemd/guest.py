# SPDX-License-Identifier: Apache-2.0
"""What is done in the guest, where systemd is the first process: the commands of docs/install.md word by word, then
what may befall a service, under traffic from the first minute to the last.

The balancer is the guest itself, in no namespace. A lab has client and endpoints, and gives it its balancer's
interfaces.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from reconciler.config.load import load
from reconciler.doctor.finding import FOUND
from reconciler.lab import netns
from reconciler.lab.lab import Lab
from tests.lab.sequence import sequence
from tests.sources.servers import https, ssh

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "examples" / "configs" / "nat-tcp"
VIP, PORT, UDP = IPv4Address("20.20.20.1"), 80, 53
PATIENCE_S = 900
"""The processor is emulated, and may share the machine's with others."""
MAX_EXPOSURE = 3.0
CAPABILITIES = {12, 13, 21, 38, 39}
"""CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF: include/uapi/linux/capability.h."""
DROP_IN = Path("/etc/systemd/system/lbctl.service.d/test.conf")
NAMES = """\
apiVersion: lbctl/v1
kind: Service
metadata: {name: names}
spec: {vip: 20.20.20.1, protocol: udp, ports: [53], targetPort: 8080, pool: web}
"""
STARTED_S = time.monotonic()


def say(text: str) -> None:
    print(f"==> {text} ({time.monotonic() - STARTED_S:.0f} s)", flush=True)


def sh(line: str, code: int = 0) -> str:
    """What a line of shell prints. AssertionError unless it ends with this exit code."""
    done = subprocess.run(
        ["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def allowed(line: str, code: int) -> str:
    """What a member of the group is told, who asks again when an emulated processor has made the answers before this
    one too dear."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        refused = re.search(r"try again in (\d+) s", told := sh(f"{line} 2>&1; echo exit $?"))
        if not refused:
            assert told.endswith(f"exit {code}\n"), told
            return told
        assert time.monotonic() < give_up, told
        time.sleep(int(refused[1]))


def typed(line: str, cwd: str = "/root") -> str:
    """What a line shows on a terminal to somebody who says yes to every question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(["bash", "-c", line], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # as a terminal ends
            break
        if not part:
            break
        shown += part
        if re.search(rb"(Only 'yes' will do: |\[Y/n\] )$", shown):
            os.write(ours, b"yes\n")
    os.close(ours)
    text = shown.decode(errors="replace")
    assert process.wait(PATIENCE_S) == 0, f"{line}\n{text[-3000:]}"
    return text


def of_manual(heading: str, page: str = "install") -> list[str]:
    """The commands below a heading of a page."""
    text = (CHECKOUT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\$ (.*)$", section.partition("```console\n")[2].partition("```")[0], re.MULTILINE)


def until(what: str, condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.2)


def shown(name: str) -> str:
    return sh(f"systemctl show -p {name} --value lbctl").strip()


def status() -> dict[str, dict[str, str]]:
    told: dict[str, dict[str, str]] = json.loads(sh("lbctl status --json"))
    return told


def synced() -> None:
    sh("lbctl status --wait synced --timeout 14m")


@contextmanager
def balanced(lab: Lab) -> Iterator[None]:
    """Traffic meanwhile: connections that are kept, short ones, datagrams. Nothing may break, nothing may be lost."""
    with sequence(lab, str(VIP), UDP, rate=40, flows=4) as numbered:
        loads = [
            lab.load(VIP, PORT, concurrency=4, requests_per_connection=0, rate=20, timeout_s=60),
            lab.load(VIP, PORT, concurrency=2, rate=10, timeout_s=60),
        ]
        yield
        sent, missing = numbered.stop()
        for load in loads:
            outcomes = load.stop()
            broken = [outcome for outcome in outcomes if outcome.error]
            assert len(outcomes) > 20 and not broken, broken[:5] or len(outcomes)
            sent += len(outcomes)
    assert not missing, f"of {sent:,} datagrams {len(missing)} were lost: {missing[:10]}"
    say(f"  {sent:,} requests meanwhile, none was lost, and no connection broke")


def main(packages: Path) -> None:
    [package] = packages.glob("lbctl_0.1.0~*.deb")
    [later] = packages.glob("lbctl_0.2.0~*.deb")
    fleet = load(EXAMPLE).fleet
    assert fleet is not None
    with Lab(fleet) as lab:
        lab.serve_http()
        links = {"front": "10.1.0.1/24", "back": "10.2.0.1/24"}
        netns.ip((f"link set {link} netns 1" for link in links), lab.balancer)
        netns.ip(f"link set {link} up" for link in links)
        netns.ip(f"address add {address} dev {link}" for link, address in links.items())
        try:
            first_node(lab, package)
            restricted()
            edited()
            with balanced(lab):
                killed_and_reloaded()
            with balanced(lab):
                hangs()
            fetches()
            with balanced(lab):
                upgraded(package, later)
            removed()
            from_wheel(lab, packages)
        except BaseException:
            print(subprocess.run(["journalctl", "-u", "lbctl", "--no-pager", "-n", "80"], check=False,
                                 capture_output=True, text=True).stdout)  # fmt: skip
            raise
    say("The service works.")


def first_node(lab: Lab, package: Path) -> None:
    """From the package to a steered packet, by the words of the manual."""
    os.makedirs("/root/dist")  # noqa: PTH103
    sh(f"cp {package} /root/dist/")
    began_s = time.monotonic()
    install = [line for line in of_manual("Debian 12 and 13") if not line.startswith("make ")]
    lines = [*install, *of_manual("The first node")]
    assert len(lines) == 7, lines
    for line in lines:
        say(f"$ {line}")
        typed(line)
    outcomes = lab.load(VIP, PORT, count=30, timeout_s=30).wait()
    took_s = time.monotonic() - began_s
    answered = {outcome.endpoint.partition(":")[0] for outcome in outcomes if not outcome.error}
    assert len(outcomes) == 30 and answered == {"10.2.0.11", "10.2.0.12", "10.2.0.13"}, outcomes
    say(f"From the package to steered packets of the service in {took_s:.0f} s")


def restricted() -> None:
    """The unit's restrictions are in force for the agent."""
    lines = Path(f"/proc/{shown('MainPID')}/status").read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert set(facts["Uid"].split()) == {sh("id -u lbctl").strip()} != {"0"}
    for name in ("CapBnd", "CapEff"):
        assert {bit for bit in range(64) if int(facts[name], 16) >> bit & 1} == CAPABILITIES, facts[name]
    assert facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2"
    rated = re.search(r"exposure level for lbctl.service: ([0-9.]+)", sh("systemd-analyze security lbctl"))
    assert rated and float(rated[1]) < MAX_EXPOSURE
    unprivileged = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    for words in ("pause --reason x", "rollback --auto-approve", "delete --auto-approve", "drain 10.2.0.11"):
        assert "root" in sh(f"{unprivileged} lbctl {words} 2>&1", code=1)
    member = "setpriv --reuid=65534 --regid=lbctl --clear-groups"
    sh("lbctl explain 10.1.0.9:4000 20.20.20.1:80")  # compiles: emulated, that takes longer than the agent waits
    for words, expected in (
        ("get endpoints", "10.2.0.11:8080"), ("history", "root"), ("metrics", "lbctl_sync"), ("status", "Synced"),
        ("explain 10.1.0.9:4000 20.20.20.1:80", "forwarded to an endpoint"), ("plan /etc/lbctl", "No changes."),
        ("doctor /etc/lbctl", ""), ("export", "resources"),
    ):  # fmt: skip
        code = FOUND if words.startswith("doctor") else 0
        assert expected in allowed(f"{member} lbctl {words}", code), words
    assert "Synced" in sh("systemctl status lbctl")
    say(f"As its own user, restricted: exposure {rated[1]}; nobody else may change anything")


def edited() -> None:
    """An edit of the files is in force; datagrams are balanced, too, from now on."""
    Path("/etc/lbctl/names.yaml").write_text(NAMES)
    synced()
    assert "20.20.20.1:53/udp" in sh("lbctl get services")
    say("It has applied an edit")


def killed_and_reloaded() -> None:
    pid, restarts = shown("MainPID"), int(shown("NRestarts"))
    sh("systemctl kill -s KILL lbctl")
    until("it is started again", lambda: int(shown("NRestarts")) > restarts and shown("MainPID") not in ("0", pid))
    synced()
    pid = shown("MainPID")
    sh("systemctl reload lbctl")
    synced()
    assert shown("MainPID") == pid
    sh("systemctl restart lbctl")
    synced()
    say("It was killed, reloaded and restarted")


def hangs() -> None:
    """An agent that hangs is killed by the watchdog, and another one works."""
    DROP_IN.parent.mkdir(parents=True)
    DROP_IN.write_text("[Service]\nWatchdogSec=20s\n")
    sh("systemctl daemon-reload && systemctl restart lbctl")
    synced()
    pid, restarts = shown("MainPID"), int(shown("NRestarts"))
    os.kill(int(pid), 19)  # SIGSTOP
    until("the watchdog notices", lambda: int(shown("NRestarts")) > restarts)
    synced()
    assert shown("MainPID") != pid
    assert "Watchdog timeout" in sh("journalctl -u lbctl --no-pager")
    DROP_IN.unlink()
    sh("systemctl daemon-reload && systemctl restart lbctl")
    synced()
    say("It hung, and the watchdog had it replaced")


def fetches() -> None:
    """Manifests come from servers: within the unit's restrictions, by HTTPS and by SSH."""
    work, bare, keys = Path("/srv/work"), Path("/srv/git/fleet.git"), Path("/srv/keys")
    keys.mkdir(parents=True)
    git = f"git -C {work} -c user.name=a -c user.email=a@example.org"
    sh(f"git init -q -b main {work} && git init -q --bare -b main {bare} && cp -r /etc/lbctl {work}/lb")
    sh(f"{git} add -A && {git} commit -qm first && {git} push -q {bare} main")

    def follows(url: str, options: str) -> None:
        Path("/etc/default/lbctl").write_text(
            f"LBCTL_SOURCE={url}\nLBCTL_OPTIONS=--ref main --path lb --interval 1s {options}\n"
        )
        sh("systemctl restart lbctl")
        for weight in (3, 4):
            newest = sh(f"{git} rev-parse HEAD").strip()
            until(f"{url} is in force", lambda newest=newest: status()["commit"]["applied"] == newest)  # type: ignore[misc]
            synced()
            sh(f"sed -i 's/weight: [0-9]/weight: {weight}/' {work}/lb/pools.yaml")
            sh(f"{git} commit -qam 'weight {weight}' --allow-empty && {git} push -q {bare} main")

    with https(bare.parent, keys) as server:
        server.credentials = "lb1:secret"
        sh(f"cp {server.ca} /usr/local/share/ca-certificates/tests.crt && update-ca-certificates")
        sh("umask 027 && echo lb1:secret > /etc/lbctl-token && chgrp lbctl /etc/lbctl-token")
        follows(f"{server.url}/fleet.git", "--token /etc/lbctl-token")
    say("It has fetched from a server by HTTPS")
    with ssh(keys, Path("/usr/sbin/sshd")) as shell:
        sh(f"install -o lbctl -m 0600 {shell.key} /etc/lbctl-key && cp {shell.known_hosts} /etc/lbctl-known-hosts")
        follows(f"{shell.url}{bare}", "--ssh-key /etc/lbctl-key --known-hosts /etc/lbctl-known-hosts")
    say("It has fetched from a server by SSH")
    Path("/etc/default/lbctl").write_text("")
    sh("systemctl restart lbctl")
    synced()


def upgraded(package: Path, later: Path) -> None:
    """To a version whose maps have another layout, and back, by the words of the page on that."""
    for line in of_manual("Before an upgrade", "lifecycle"):
        say(f"$ {line}")
        typed(line)
    for each, version in ((later, "0.2.0"), (package, "0.1.0")):
        sh(f"apt-get install -y -qq --allow-downgrades {each}")
        synced()
        lines = of_manual("The upgrade", "lifecycle")
        assert len(lines) == 2, lines
        for line in lines:
            typed(line)
        assert status()["agent"]["version"] == version
        assert sh("lbctl plan /etc/lbctl").startswith("No changes.")
        say(f"Version {version} has taken over")


def removed() -> None:
    for line in of_manual("Remove"):
        say(f"$ {line}")
        typed(line)
    for path in ("/run/lbctl", "/var/lib/lbctl", "/usr/bin/lbctl"):
        assert not Path(path).exists(), path
    assert "xdp" not in sh("ip link show dev front")


def from_wheel(lab: Lab, packages: Path) -> None:
    """From the wheel to a steered packet, by the words of the manual. Other wheels are in a directory, as on PyPI."""
    Path("/etc/pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {packages}/wheels\n")
    sh(f"cp {packages}/*.whl /root/ && mkdir -p /etc/lbctl && cp {EXAMPLE}/*.yaml /etc/lbctl/")
    began_s = time.monotonic()
    lines = of_manual("A wheel")
    assert len(lines) == 5, lines
    for line in lines:
        say(f"$ {line}")
        typed(line)
    outcomes = lab.load(VIP, PORT, count=30, timeout_s=30).wait()
    assert len(outcomes) == 30 and not [outcome for outcome in outcomes if outcome.error], outcomes
    say(f"From the wheel to steered packets in {time.monotonic() - began_s:.0f} s")
    typed("sudo /opt/lbctl/bin/lbctl delete")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
