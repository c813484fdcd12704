# SPDX-License-Identifier: Apache-2.0
import socket
import ssl
import struct
import time

import pytest

from reconciler.health.checks.http import host_name
from reconciler.model import Verify
from tests.health.certificates import Authority
from tests.health.run import LATE_S, said, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "other")


@pytest.fixture
def serve_tls(serve):
    """A function that starts a server of TLS with a file of key and certificate; `start.names` are what clients ask
    for by SNI."""

    def start(file, answer=OK, minimum=None, pause_s=0.0):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.sni_callback = lambda _sock, name, _context: start.names.append(name)

        def talk(connection):
            connection.recv(1, socket.MSG_PEEK)  # wrap_socket() loses a connection that is reset meanwhile
            with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure:
                secure.do_handshake()
                secure.recv(4096)
                time.sleep(pause_s)
                secure.sendall(answer)

        return serve(talk)

    start.names = []
    return start


def test_any_certificate_will_do_without_verification(serve_tls, authority):
    port = serve_tls(authority.issue("DNS:www.example.com", -9, -2))
    assert said("https", port, text="ready") == ("OK", "")
    assert said("https", port, status=(204,)) == ("FAILED", "HTTP 200, expected 204")
    assert serve_tls.names == [None, None]


def test_verified(serve_tls, authority):
    port = serve_tls(authority.issue("DNS:www.example.com"))
    good = {"verify": Verify.CA, "ca": authority.pem}
    assert said("https", port, host="www.example.com:8443", **good) == ("OK", "")
    assert said("https", port, server_name="www.example.com", **good) == ("OK", "")
    assert serve_tls.names == ["www.example.com"] * 2


def test_verified_by_address(serve_tls, authority):
    port = serve_tls(authority.issue("IP:127.0.0.1"))
    assert said("https", port, verify=Verify.CA, ca=authority.pem) == ("OK", "")
    assert serve_tls.names == [None]


@pytest.mark.parametrize(("days", "words"), [
    ((-9, -2.01), "the certificate expired 2 days ago"),
    ((-9, -1.5), "the certificate expired 1 day ago"),
    ((-9, -0.01), "the certificate expired 14 minutes ago"),
    ((3.01, 9), "the certificate is not valid for another 3 days"),
])  # fmt: skip
def test_out_of_date(serve_tls, authority, days, words):
    port = serve_tls(authority.issue("DNS:www.example.com", *days))
    found = said("https", port, server_name="www.example.com", verify=Verify.CA, ca=authority.pem)
    assert found == ("FAILED", words)


def test_other_faults_of_certificates(serve_tls, authority, other):
    port = serve_tls(authority.issue("DNS:www.example.com"))
    strict = {"verify": Verify.CA, "ca": authority.pem}
    for name in ("www.example.org", "127.0.0.1"):
        assert said("https", port, server_name=name, **strict) == ("FAILED", f"the certificate is not for {name}")
    for ca in (other.pem, None):  # another authority; those of the system
        found = said("https", port, server_name="www.example.com", verify=Verify.CA, ca=ca)
        assert found == ("FAILED", "the certificate is by an authority that is not trusted")


def test_self_signed(serve_tls, authority, other):
    both = other.directory / "self.pem"
    both.write_text((other.directory / "ca.key").read_text() + other.pem)
    found = said("https", serve_tls(both), server_name="authority", verify=Verify.CA, ca=authority.pem)
    assert found == ("FAILED", "the certificate is self-signed")


def test_authorities_that_are_none_say_nothing_about_the_target(serve_tls, authority):
    port = serve_tls(authority.issue("DNS:www.example.com"))
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    verdict, words = said("https", port, verify=Verify.CA, ca=pem)
    assert verdict == "NOT_CHECKED"
    assert words.startswith("the authorities (ca) can't be read: ")


@pytest.mark.parametrize("name", ["a..b", ".", "..", "x" * 300])
def test_names_that_tls_cannot_send(serve_tls, authority, name):
    verdict, _ = said("https", serve_tls(authority.issue("DNS:www.example.com")), server_name=name)
    assert verdict in ("OK", "NOT_CHECKED")


def test_no_tls(serve):
    for line in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"220 mail.example.com ESMTP\r\n"):

        def talk(connection, line=line):
            connection.sendall(line)
            connection.recv(4096)

        assert said("https", serve(talk)) == ("FAILED", "no TLS: it answers something else")


def test_closed_during_the_handshake(serve):
    assert said("https", serve(lambda connection: connection.recv(4096))) == (
        "FAILED", "closed during the TLS handshake"
    )  # fmt: skip


def test_reset_at_once(serve):
    def talk(connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    verdict, words = said("https", serve(talk))
    assert verdict == "FAILED"
    assert words in ("connection reset", "connection reset during the TLS handshake")


def test_frozen_during_the_handshake(frozen_port):
    found = said("https", frozen_port, timeout_s=LATE_S)
    assert found == ("FAILED", "connected, but no TLS within 200 ms")


def test_dripped_handshake(serve):
    def talk(connection):
        connection.recv(4096)
        connection.sendall(b"\x16\x03\x03\x20\x00")
        for _ in range(500):
            connection.sendall(b"\x02")
            time.sleep(0.01)

    verdict, _ = said("https", serve(talk), timeout_s=0.5)
    assert verdict == "FAILED"


def test_frozen_after_the_handshake(serve_tls, authority):
    port = serve_tls(authority.issue("DNS:www.example.com"), pause_s=1.0)
    assert said("https", port, timeout_s=0.5) == ("FAILED", "connected, but no whole answer within 500 ms")


def test_refused(closed_port):
    assert said("https", closed_port) == ("FAILED", "refused")


def test_alert(serve, authority):
    """A server that wants a certificate of the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("DNS:www.example.com"))
    context.load_verify_locations(cadata=authority.pem)
    context.verify_mode = ssl.CERT_REQUIRED

    def talk(connection):
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure:
            secure.do_handshake()
            secure.recv(1)

    verdict, words = said("https", serve(talk))
    # The server closes with our request unread, so a reset may overtake its alert.
    assert verdict == "FAILED"
    assert words in ('TLS failed: "tlsv13 alert certificate required"', "connection reset after it was accepted")


@pytest.mark.parametrize(("host", "name"), [
    ("www.example.com", "www.example.com"), ("www.example.com:8443", "www.example.com"), ("10.2.0.1", ""),
    ("10.2.0.1:80", ""), ("[2001:db8::1]", ""), ("[2001:db8::1]:443", ""), ("2001:db8::1", ""), ("", ""),
])  # fmt: skip
def test_name_of_a_host(host, name):
    assert host_name(host) == name


def test_every_connection_is_closed(serve_tls, serve, authority):
    """Also the one that only finds out when a certificate expired."""
    port = serve_tls(authority.issue("DNS:www.example.com", -9, -2))
    said("https", port, server_name="www.example.com", verify=Verify.CA, ca=authority.pem)
    until(lambda: len(serve.peers) == 2)
    for peer in serve.peers:
        with socket.socket() as probe:
            probe.bind(peer)  # in use as long as a connection is open
