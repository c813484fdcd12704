# SPDX-License-Identifier: Apache-2.0
"""Servers of DNS are played by scapy's messages, which are not ours."""

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR

from reconciler.health.checks.dns import question
from reconciler.model import Rcode, Record
from tests.health.run import LATE_S, said


def replying(change=lambda reply: reply, rcode=0, **fields):
    def answer(data):
        query = DNS(data)
        reply = DNS(id=query.id, qr=1, rd=1, ra=1, rcode=rcode, qd=query.qd,
                    an=[DNSRR(rrname="x.", rdata="192.0.2.1")])
        for name, value in fields.items():
            setattr(reply, name, value)
        return [bytes(change(reply))]

    return answer


def test_query(serve_udp):
    seen = []

    def answer(data):
        seen.append(DNS(data))
        return replying()(data)

    assert said("dns", serve_udp(answer), query="www.Example.com.", record=Record.AAAA) == ("OK", "")
    (query,) = seen
    assert (query.qr, query.rd, query.qdcount, query.ancount) == (0, 1, 1, 0)
    assert (query.qd[0].qname, query.qd[0].qtype, query.qd[0].qclass) == (b"www.Example.com.", 28, 1)


@pytest.mark.parametrize("record", Record)
def test_records(record):
    asked = DNSQR(question("a.example.com", record))
    assert asked.qname == b"a.example.com."
    assert asked.get_field("qtype").i2repr(asked, asked.qtype) == record


def test_root():
    assert question(".", Record.SOA) == b"\0\0\6\0\1"


@pytest.mark.parametrize(("rcode", "words"), [
    (0, ""), (1, "FORMERR, expected NOERROR"), (2, "SERVFAIL, expected NOERROR"), (3, "NXDOMAIN, expected NOERROR"),
    (4, "NOTIMP, expected NOERROR"), (5, "REFUSED, expected NOERROR"), (11, "code 11, expected NOERROR"),
])  # fmt: skip
def test_code(serve_udp, rcode, words):
    assert said("dns", serve_udp(replying(rcode=rcode)), query="x.example.com") == ("FAILED" if words else "OK", words)


def test_another_code_can_be_the_expected_one(serve_udp):
    port = serve_udp(replying(rcode=3))
    assert said("dns", port, query="no.example.com", rcode=Rcode.NXDOMAIN) == ("OK", "")
    assert said("dns", port, query="no.example.com", rcode=Rcode.REFUSED) == ("FAILED", "NXDOMAIN, expected REFUSED")


def test_names_may_come_back_in_other_letters(serve_udp):
    port = serve_udp(lambda data: [bytes(replying()(data)[0]).replace(b"example", b"eXAMPLE")])
    assert said("dns", port, query="www.example.com") == ("OK", "")


def test_a_refusal_may_leave_out_the_question(serve_udp):
    port = serve_udp(replying(rcode=5, qd=[], qdcount=0, an=[]))
    assert said("dns", port, query="x.example.com") == ("FAILED", "REFUSED, expected NOERROR")


@pytest.mark.parametrize("answer", [
    lambda data: [], lambda data: [data], lambda data: [b""], lambda data: [data[:11]], lambda data: [b"\xff" * 4000],
    replying(qd=[DNSQR(qname="other.example.com")]), replying(opcode=2), replying(qr=0),
    replying(qd=[], qdcount=0),
    lambda data: [bytes([data[0] ^ 1]) + replying()(data)[0][1:]],
    lambda data: [replying()(data)[0][:14]],
], ids=range(11))  # fmt: skip
def test_what_is_no_answer_to_the_query_is_ignored(serve_udp, answer):
    found = said("dns", serve_udp(answer), query="www.example.com", timeout_s=LATE_S)
    assert found == ("UNREACHED", "no answer within 200 ms")


def test_the_answer_counts_among_others(serve_udp):
    def answer(data):
        junk = bytes([data[0] ^ 1]) + replying(rcode=2)(data)[0][1:]
        return [junk, b"", data, *replying()(data)]

    assert said("dns", serve_udp(answer), query="www.example.com") == ("OK", "")
