# SPDX-License-Identifier: Apache-2.0
"""An endpoint: an HTTP server that says who it is. Run as a script, with nothing but the standard library.

    server.py NAME PORT [PORT …]

Listens on all addresses of its host, VIPs too. Answers with `NAME:PORT` as the header X-Endpoint and as the body,
followed by whatever was posted. Connections are kept open until the client closes them. Prints "ready" as soon as
all ports listen. From SIGUSR1 on it answers a byte every other second, from SIGUSR2 on that it is unwell (status 503).
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

DRIP_S = 2.0


class Handler(BaseHTTPRequestHandler):
    server: Server
    mode = 0
    """The signal that came last."""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        name = f"{self.server.name}:{self.server.server_address[1]}".encode()
        body = name + self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while Handler.mode == signal.SIGUSR1:
            self.wfile.write(b"H")
            time.sleep(DRIP_S)
        self.send_response(503 if Handler.mode == signal.SIGUSR2 else 200)
        self.send_header("X-Endpoint", name.decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    address_family = socket.AF_INET6  # this takes IPv4 connections, too
    name: str

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own looks up the host's name, which takes long in a lab.

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may close connections at any time
            super().handle_error(request, client_address)


def turn(number: int, _frame: object) -> None:
    Handler.mode = number


def main(name: str, *ports: str) -> None:
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, turn)
    servers = [Server(("", int(port)), Handler) for port in ports]
    for server in servers:
        server.name = name
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    servers[0].serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
