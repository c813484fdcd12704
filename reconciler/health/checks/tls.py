# SPDX-License-Identifier: Apache-2.0
"""TLS of checks: contexts, handshakes, and what is wrong with a certificate, in words."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from reconciler.health.checks.wait import Check, Late, Plain, Waiting, connect
from reconciler.health.outcome import Outcome, failed, not_checked, of_errno, quoted
from reconciler.health.target import Target
from reconciler.health.way import Way, opened
from reconciler.model import Verify

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL 1.1.0
T = TypeVar("T")

_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "BAD_RECORD_TYPE")
_WORDS = {
    18: "the certificate is self-signed", 19: "the chain of the certificate ends in an authority that is not trusted",
    20: "the certificate is by an authority that is not trusted",
    21: "the certificate is by an authority that is not trusted",
    23: "the certificate was revoked", 24: "the certificate is by one that is no authority",
    26: "the certificate is not for servers", 66: "the key of the certificate is too small",
    67: "the key of an authority of the certificate is too small",
    68: "the certificate is signed by a method that is too weak",
}  # fmt: skip
"""X509_V_ERR_… of OpenSSL (openssl/x509_vfy.h)."""
_DAY_S = 86_400
_RECORD_BYTES = 16_384
_MAX_NAME = 253


@dataclass(frozen=True, slots=True)
class Failure:
    """A handshake that failed. `is_untimely`: a certificate of the chain has expired or is not valid yet."""

    outcome: Outcome
    is_untimely: bool = False


@lru_cache(maxsize=256)
def context_of(verify: Verify, ca: str | None, at_any_time: bool = False) -> ssl.SSLContext:
    """Without verification, old servers will do as well: clients may still like them. `at_any_time`: times of
    certificates don't matter. Raises ssl.SSLError if `ca` holds no certificates."""
    if verify is Verify.NONE:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        return context
    context = ssl.create_default_context(cadata=ca)
    if at_any_time:
        context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return context


def secured(sock: socket.socket, name: str, verify: Verify, ca: str | None) -> Waiting[Secure | Failure]:
    """A connection with TLS on top of a connected socket, or why there is none."""
    if not all(0 < len(label) < 64 for label in name.split(".")) or len(name) > _MAX_NAME:
        return Failure(not_checked(f"{quoted(name)} can't be a server name of TLS"))
    try:
        context = context_of(verify, ca)
    except ssl.SSLError as error:
        return Failure(not_checked(f"the authorities (ca) can't be read: {quoted(error.reason or str(error))}"))
    secure = Secure(sock, context, name)
    try:
        yield from secure.handshake()
    except ssl.SSLCertVerificationError as error:
        return Failure(failed(_certificate_words(error, name)), error.verify_code in (_NOT_YET_VALID, _EXPIRED))
    except ssl.SSLError as error:
        return Failure(failed(words_of(error)))
    except OSError as error:
        return Failure(of_errno(error.errno or 0, "during the TLS handshake"))
    return secure


def untimely(target: Target, way: Way, name: str) -> Check:
    """Since when the certificate of a target is out of date.

    OpenSSL ends a handshake at such a certificate, and Python doesn't hand it out. So this makes another handshake,
    which overlooks the time.
    """
    times: dict[str, object] = {}
    try:
        with opened(target.asked, way) as sock:
            yield from connect(sock, target)
            secure = Secure(sock, context_of(Verify.CA, target.check.ca, at_any_time=True), name)
            yield from secure.handshake()
            times = dict(secure.tls.getpeercert() or {})
    except (OSError, Late):
        pass  # then it stays unknown
    now_s = time.time()
    begins_s, ends_s = (_seconds(times.get(key)) for key in ("notBefore", "notAfter"))
    if ends_s and ends_s < now_s:
        return failed(f"the certificate expired {_ago(now_s - ends_s)} ago")
    if begins_s and begins_s > now_s:
        return failed(f"the certificate is not valid for another {_ago(begins_s - now_s)}")
    return failed("a certificate of the chain has expired, or is not valid yet")


class Secure:
    """A connection with TLS. OpenSSL never sees the socket: what it has to say and to hear is carried by this."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    def handshake(self) -> Waiting[None]:
        return self._carry(self.tls.do_handshake)

    def send(self, data: bytes) -> Waiting[None]:
        """Send all of it: of memory there is always enough."""
        yield from self._carry(lambda: self.tls.write(data))

    def receive(self, size: int) -> Waiting[bytes]:
        """The next bytes, at most `size`; b"" at the end, which may also be rude (RFC 8446, section 6.1)."""
        try:
            return (yield from self._carry(lambda: self.tls.read(size)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def _carry(self, act: Callable[[], T]) -> Waiting[T]:
        plain = Plain(self._socket)
        while True:
            try:
                result = act()
            except ssl.SSLWantReadError:
                yield from plain.send(self._outgoing.read())
            except ssl.SSLError:
                with suppress(OSError):
                    yield from plain.send(self._outgoing.read())  # the alert
                raise
            else:
                yield from plain.send(self._outgoing.read())
                return result
            if data := (yield from plain.receive(_RECORD_BYTES)):
                self._incoming.write(data)
            else:
                self._incoming.write_eof()


def _certificate_words(error: ssl.SSLCertVerificationError, name: str) -> str:
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return f"the certificate is not for {name}"
    return _WORDS.get(error.verify_code) or f"the certificate is not valid: {quoted(error.verify_message)}"


def words_of(error: ssl.SSLError) -> str:
    """What is wrong with a connection of TLS, apart from its certificate."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "closed during the TLS handshake"
    if error.reason in _NO_TLS:
        return "no TLS: it answers something else"
    return f"TLS failed: {quoted((error.reason or str(error)).replace('_', ' ').lower())}"


def _seconds(time_: object) -> float | None:
    try:
        return ssl.cert_time_to_seconds(time_) if isinstance(time_, str) else None
    except ValueError:
        return None


def _ago(duration_s: float) -> str:
    count, unit = (int(duration_s // _DAY_S), "day") if duration_s >= _DAY_S else (int(duration_s // 60), "minute")
    return f"{count} {unit}{'' if count == 1 else 's'}"
