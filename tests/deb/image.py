# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.deb.image`: build the container image by its recipe, without a registry, and apply with it.

The recipe's base is a bare Debian from the mirror, under the name that the recipe gives. The image runs in the network
namespace of a lab's balancer, as it would in a host's: it compiles, loads and reads back. Packets are not sent,
since what is mounted in a container of buildah's ends with it. `make test-image` builds the package first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from reconciler.config.load import load
from reconciler.lab.lab import Lab, signals_as_exit
from tests.deb.system import CHECKOUT, STORE, own_mounts, say

RECIPE = CHECKOUT / "packaging" / "Containerfile"
EXAMPLE = CHECKOUT / "examples" / "configs" / "nat-tcp"
CAPABILITIES = ("BPF", "PERFMON", "NET_ADMIN", "NET_RAW", "SYS_ADMIN")
VOLUMES = ("/run/lbctl:/run/lbctl:rshared", "/usr/src:/usr/src:ro", "/lib/modules:/lib/modules:ro")
ENTRYPOINT = ("/usr/bin/lbctl",)
WRITABLE = 'mount -o remount,bind,rw /proc/sys && exec "$0" "$@"'
"""What podman does for `--security-opt unmask=/proc/sys`, and buildah can't be told."""


class Images:
    """Images and containers in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self._words = ["buildah", "--root", str(directory / "root"), "--runroot", str(directory / "run"),
                       "--storage-driver", "vfs"]  # fmt: skip

    def said(self, *words: str, before: tuple[str, ...] = ()) -> str:
        """What buildah says. AssertionError if it fails."""
        done = subprocess.run(
            [*before, *self._words, *words], cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=1200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def lbctl(self, container: str, netns: str, *words: str) -> str:
        """The image's command, in a network namespace."""
        capabilities = [word for name in CAPABILITIES for word in ("--cap-add", f"CAP_{name}")]
        volumes = [word for volume in (f"{EXAMPLE}:/etc/lbctl:ro", *VOLUMES) for word in ("--volume", volume)]
        return self.said(
            "run", "--isolation", "chroot", "--network", "host", *capabilities, *volumes, container, "--",
            "sh", "-c", WRITABLE, *ENTRYPOINT, *words, before=("nsenter", f"--net=/run/netns/{netns}"),
        )  # fmt: skip


def base() -> Path:
    archive = STORE / "slim.tar"
    if not archive.exists():
        STORE.mkdir(exist_ok=True)
        say("Making a bare Debian (a few minutes, once)")
        made = archive.with_suffix(".new")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", "bookworm", str(made)]
        subprocess.run(command, check=True)
        made.rename(archive)
    return archive


def main() -> int:
    assert os.geteuid() == 0, "this needs root: it mounts file systems and makes network namespaces"
    archive = base()
    own_mounts()
    (name,) = [line.split()[1] for line in RECIPE.read_text().splitlines() if line.startswith("FROM ")]
    fleet = load(EXAMPLE).fleet
    assert fleet is not None
    with tempfile.TemporaryDirectory(prefix="lbctl-image-") as directory:
        Path("/run/lbctl").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "run", "/run/lbctl"], check=True)
        subprocess.run(["mount", "--make-shared", "/run/lbctl"], check=True)
        images = Images(Path(directory))
        say(f"Building the image on {name}")
        scratch = images.said("from", "scratch").strip()
        images.said("add", "--quiet", scratch, str(archive), "/")
        images.said("commit", "--quiet", scratch, f"docker.io/library/{name}")
        images.said("bud", "--isolation", "chroot", "--pull-never", "--network", "host", "-f", str(RECIPE), "-t",
                    "lbctl", str(CHECKOUT))  # fmt: skip
        container = images.said("from", "--pull-never", "localhost/lbctl").strip()
        entry = images.said("inspect", "--format", "{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}}", container)
        assert entry.strip() == "[/usr/bin/lbctl] [run /etc/lbctl]", entry
        with Lab(fleet, prefix=f"lbimg-{os.getpid()}", run_dir=Path(directory) / "lab") as lab:
            say("Validating, planning, applying in a container")
            assert ": valid (" in images.lbctl(container, lab.balancer, "validate", "/etc/lbctl")
            assert "to add" in images.lbctl(container, lab.balancer, "plan", "/etc/lbctl", "--node", "lb1")
            images.lbctl(container, lab.balancer, "apply", "/etc/lbctl", "--node", "lb1", "--auto-approve")
    say("The image works.")
    return 0


if __name__ == "__main__":
    with signals_as_exit():
        sys.exit(main())
