# SPDX-License-Identifier: Apache-2.0
"""Certificates of all sorts, made by openssl when the tests run."""

import subprocess
import time
from pathlib import Path

_CONFIG = """
[ca]
default_ca = test
[test]
database = {directory}/index.txt
new_certs_dir = {directory}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
"""
_DAY_S = 86_400


class Authority:
    """An authority in a directory; `pem` is its certificate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "index.txt").touch()
        self.config = directory / "openssl.cnf"
        self.config.write_text(_CONFIG.format(directory=directory))
        _openssl(
            "req", "-x509", "-config", self.config, "-extensions", "authority", "-subj", "/CN=authority", "-days",
            "30", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", directory / "ca.key",
            "-out", directory / "ca.pem",
        )  # fmt: skip
        self.pem = (directory / "ca.pem").read_text()

    def issue(self, names: str, first_day: float = -1, last_day: float = 30) -> Path:
        """A file with the key and the certificate of a server, e.g. for `DNS:www.example.com`; days are from now."""
        name = f"{names}-{first_day}-{last_day}".replace(":", "_")
        request, key, issued = (self.directory / f"{name}.{end}" for end in ("csr", "key", "crt"))
        _openssl(
            "req", "-new", "-config", self.config, "-subj", "/CN=server", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", request,
        )  # fmt: skip
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName = {names}\n")
        _openssl(
            "ca", "-batch", "-notext", "-config", self.config, "-extfile", extensions, "-cert",
            self.directory / "ca.pem", "-keyfile", self.directory / "ca.key", "-startdate", _date(first_day),
            "-enddate", _date(last_day), "-in", request, "-out", issued,
        )  # fmt: skip
        both = self.directory / f"{name}.pem"
        both.write_text(key.read_text() + issued.read_text())
        return both


def _date(days: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * _DAY_S))


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
