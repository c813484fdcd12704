# SPDX-License-Identifier: Apache-2.0
"""Servers of git repositories on the loopback, as they are elsewhere: HTTPS with a certificate of a CA of its own and
git's smart protocol behind it, and OpenSSH's sshd."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PATIENCE_S = 60
_BACKEND = "/usr/lib/git-core/git-http-backend"


def sshd() -> Path | None:
    """The program, installed or as tools/setup unpacks it."""
    found = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    own = Path(sys.executable).parent.parent / "sshd" / "usr" / "sbin" / "sshd"
    return Path(found) if found else own if own.exists() else None


@dataclass
class Https:
    """A server of the repositories below a directory. Only USER:TOKEN `credentials` are let in; `asked` counts."""

    url: str
    ca: Path
    credentials: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def https(below: Path, directory: Path) -> Iterator[Https]:
    """Keys and certificates lie in `directory`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*_certificate(directory))

    class Backend(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = PATIENCE_S

        def do_GET(self) -> None:
            made.asked.append(f"{self.command} {self.path}")
            expected = f"Basic {base64.b64encode(made.credentials.encode()).decode()}"
            if made.credentials and self.headers.get("Authorization") != expected:
                self.send_error(403)
                return
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            environment = {
                "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(below), "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_ADDR": HOST,
                "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            }  # fmt: skip
            done = subprocess.run(
                [_BACKEND], input=body, env=environment, capture_output=True, check=False, timeout=PATIENCE_S
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request: Any, client_address: Any) -> None:
            request.settimeout(PATIENCE_S)
            with context.wrap_socket(request, server_side=True) as secured:  # in the thread of the request
                super().finish_request(secured, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that doesn't trust the certificate says so itself."""

    with Server((HOST, 0), Backend) as server:
        made = Https(f"https://{HOST}:{server.server_address[1]}", directory / "ca.pem")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


def _certificate(directory: Path) -> tuple[Path, Path]:
    """The server's certificate, signed by ca.pem, and its key."""
    for name, more in (
        ("ca", ()),
        ("server", ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")),
    ):
        command = [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name} of the tests", "-addext", f"subjectAltName=IP:{HOST}",
            "-keyout", f"{name}.key", "-out", f"{name}.pem", *more,
        ]  # fmt: skip
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=PATIENCE_S)
    return directory / "server.pem", directory / "server.key"


@dataclass(frozen=True)
class Ssh:
    """A server that knows one client's `key`; `known_hosts` is what a client knows of it."""

    url: str
    key: Path
    known_hosts: Path


@contextmanager
def ssh(directory: Path, program: Path) -> Iterator[Ssh]:
    """Needs root: the server has a mount namespace of its own, in which there is the user that it asks for."""
    for name in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
    with socket.socket() as reserved:
        reserved.bind((HOST, 0))
        port = reserved.getsockname()[1]
    shutil.copy(directory / "client.pub", directory / "authorized")
    kind, key = (directory / "host.pub").read_text().split()[:2]
    (directory / "known").write_text(f"[{HOST}]:{port} {kind} {key}\n")
    (directory / "config").write_text(
        f"ListenAddress {HOST}:{port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\nPermitRootLogin yes\n"
    )
    names = [f"sshd:x:{os.getuid() + 60_000}:65534::/run/sshd:/usr/sbin/nologin\n"]
    users = [line for line in Path("/etc/passwd").read_text().splitlines(keepends=True) if line[:5] != "sshd:"]
    (directory / "passwd").write_text("".join(users + names))
    libraries = ":".join(map(str, (program.parents[1] / "lib").glob("*-linux-gnu")))
    script = (
        f"mount --make-rprivate / && mount --bind {directory}/passwd /etc/passwd && mount -t tmpfs run /run && "
        f"mkdir -m 0755 /run/sshd && exec {program} -D -e -f {directory}/config"
    )
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=os.environ | {"LD_LIBRARY_PATH": libraries},
        )  # fmt: skip
        try:
            _await(port, server, directory / "log")
            yield Ssh(f"ssh://root@{HOST}:{port}", directory / "client", directory / "known")
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def _await(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until somebody listens. AssertionError if the server ends before."""
    waiting = threading.Event()
    while True:
        assert server.poll() is None, log.read_text()
        try:
            socket.create_connection((HOST, port), timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            waiting.wait(0.05)
        else:
            return
