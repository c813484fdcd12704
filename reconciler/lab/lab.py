# SPDX-License-Identifier: Apache-2.0
"""The lab itself: builds a topology, runs things in it, and takes it all away again.

    with Lab(fleet) as lab:
        lab.serve_http()
        lab.lbctl("apply", "examples/configs/nat-tcp", "--auto-approve")
        outcomes = lab.load(IPv4Address("10.1.0.100"), 80, count=100).wait()
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from reconciler import children
from reconciler.kernel.real import RUN_DIR
from reconciler.lab import LabError, netns, server, traffic
from reconciler.lab.build import await_answer, build
from reconciler.lab.capture import Capture, capture
from reconciler.lab.load import Load
from reconciler.lab.topology import CLIENT, SWITCH, host_of, topology
from reconciler.model import Address, Fleet

PREFIX = "lbctl-lab"

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lab(AbstractContextManager["Lab"]):
    """One balancer of a fleet (None: the only one) with its client and endpoints, each in a namespace.

    `spares` are endpoints that no pool names yet. Namespaces are named `<prefix>-<host>`; any namespace with such a
    name is removed first and last. Raises LabError if a lab of this prefix is running already.
    """

    def __init__(
        self,
        fleet: Fleet,
        node_name: str | None = None,
        prefix: str = PREFIX,
        *,
        spares: Collection[Address] = (),
        run_dir: Path = RUN_DIR,
    ) -> None:
        self.fleet = fleet
        self.topology = topology(fleet, node_name, spares)
        self.prefix = prefix
        self.run_dir = run_dir
        self.servers: dict[Address, subprocess.Popen[bytes]] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._loads: list[Load] = []
        self._held = ExitStack()

    def __enter__(self) -> Self:
        if os.geteuid():
            raise LabError("making network namespaces needs root", hint="sudo")
        self._held.enter_context(_claim(self.prefix))
        try:
            self._held.enter_context(signals_as_exit())
            netns.destroy(self.prefix, self.run_dir)
            build(self.topology, self.prefix)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything away, whatever signals arrive meanwhile. Doing it twice is no error."""
        with self._held, _handling(signal.SIG_IGN):
            netns.destroy(self.prefix, self.run_dir)
            for child in self._children:
                child.wait()
            for load in self._loads:
                load.close()

    def netns(self, host: str) -> str:
        """The name of a host's namespace: "lb1", "10.2.0.11", "client", "switch"."""
        return netns.name(self.prefix, host)

    @property
    def balancer(self) -> str:
        """The namespace of the chosen balancer, for `lbctl --netns`."""
        return self.netns(self.topology.node.name)

    def run(self, host: str, *argv: str) -> str:
        """Run a command on a host; returns what it prints. Raises LabError if it fails."""
        done = self._complete(netns.command(self.netns(host), argv), 60)
        if done.returncode:
            raise LabError(f"`{' '.join(argv)}` on {host}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return done.stdout

    def start(self, host: str, *argv: str, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start a command on a host. It ends with the lab, at the latest."""
        return self._start(netns.command(self.netns(host), argv), stdout=output or subprocess.DEVNULL)

    def lbctl_argv(self, *args: str, host: str | None = None) -> list[str]:
        """The command line that a person types to run `args` on a host (None: the balancer)."""
        run_dir = [] if self.run_dir == RUN_DIR else ["--run-dir", str(self.run_dir)]
        return ["lbctl", "--netns", self.netns(host or self.topology.node.name), *run_dir, *args]

    def lbctl(self, *args: str, host: str | None = None, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run lbctl on a host (None: the balancer) to its end, whatever its exit code is."""
        return self._complete(_module(self.lbctl_argv(*args, host=host)), timeout_s)

    def apply(self, directory: Path) -> None:
        """Apply manifests on every endpoint that is a Node, then on the balancer. Raises LabError."""
        nodes = {host_of(address): name for address, name in self.topology.endpoint_nodes.items()}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: self._apply(directory, host, nodes[host]), nodes))
        self._apply(directory, self.topology.node.name, self.topology.node.name)

    def _apply(self, directory: Path, host: str, node: str) -> None:
        done = self.lbctl("apply", str(directory), "--node", node, "--auto-approve", host=host)
        if done.returncode:
            raise LabError(f"`lbctl apply` for node {node} failed:\n{done.stdout}{done.stderr}")

    def start_lbctl(
        self, *args: str, host: str | None = None, output: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start lbctl on a host (None: the balancer), e.g. the agent. Its output goes to `output` (None: nowhere)."""
        argv = _module(self.lbctl_argv(*args, host=host))
        return self._start(argv, stdout=output or subprocess.DEVNULL, stderr=subprocess.STDOUT)

    # Processes get groups of their own, so that only the lab gets Ctrl-C; it then ends them in order.
    def _complete(self, argv: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", check=False,
                timeout=timeout_s,
                env=self._environment(), process_group=0,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LabError(f"`{' '.join(argv)}` takes longer than {timeout_s:.0f} s") from None

    def _start(
        self, argv: Sequence[str], stdout: IO[bytes] | int, stderr: int | None = None
    ) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self._environment(), process_group=0
        )
        self._children.append(child)
        return child

    def _environment(self) -> dict[str, str]:
        return os.environ | {netns.MARK: self.prefix}

    def serve_http(self) -> None:
        """Start a server on each endpoint, spares too, and wait until all of them answer."""
        for address, ports in self.topology.endpoints.items():
            argv = children.script(str(server.__file__), str(address), *map(str, ports))
            self.servers[address] = self.start(host_of(address), *argv)
        for address, ports in self.topology.endpoints.items():
            what = f"the server on {address} starts"
            for port in ports:
                netns.inside(self.netns(host_of(address)), await_answer, what, str(address), port, True)

    def load(
        self,
        vip: Address,
        port: int,
        *,
        count: int = 0,
        seconds: float = 0,
        rate: float = 0,
        concurrency: int = 4,
        requests_per_connection: int = 1,
        payload_bytes: int = 0,
        timeout_s: float = 3,
        clients: int = 1,
    ) -> Load:
        """Start sending requests from the client: `count` of them, or for `seconds`, or until stopped.

        `rate` is in requests a second (0: as fast as can be). With 0 requests per connection each of the
        `concurrency` connections is kept for good. A payload is posted and must come back. Connections come
        from as many addresses as there are `clients`, in turn.
        """
        options = {
            "count": count, "seconds": seconds, "rate": rate, "concurrency": concurrency, "timeout": timeout_s,
            "requests-per-connection": requests_per_connection, "payload-bytes": payload_bytes,
        }  # fmt: skip
        argv = children.script(str(traffic.__file__), str(vip), str(port))
        argv += [f"--{name}={value}" for name, value in options.items()]
        own = [address for address in self.topology.client if address.version == vip.version]
        argv += [f"--source={address}" for address in own[:clients]]
        load = Load(lambda output: self.start(CLIENT, *argv, output=output))
        self._loads.append(load)
        return load

    def capture(self, interface: str) -> AbstractContextManager[Capture]:
        """Watch the packets that pass an interface of the balancer."""
        link = self.topology.link(self.topology.node.name, interface)
        return capture(self.netns(SWITCH), link.port, link.mac)


def _claim(prefix: str) -> socket.socket:
    """Hold the prefix until the socket is closed; its abstract name leaves no file behind. Raises LabError."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0lbctl-lab/{prefix}")
    except OSError as error:
        lock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise LabError(f"a lab {prefix} is running already", hint="choose another prefix") from None
    return lock


def _module(argv: Sequence[str]) -> list[str]:
    return children.module("reconciler.cli.main", *argv[1:])


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """Raise SystemExit at signals that end a program, KeyboardInterrupt at Ctrl-C, and do so once only.

    A second Ctrl-C must not interrupt the removal of the lab. Within another such block, this does nothing.
    """
    if signal.getsignal(signal.SIGTERM) is _end:
        yield
        return
    with _handling(_end):
        yield


def _end(number: int, _frame: FrameType | None) -> None:
    for each in _ENDS:
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    """Handle signals in another way for a while. Only the main thread can do that; in others this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in _ENDS}
    try:
        yield
    finally:
        for number, was in former.items():
            signal.signal(number, was)
