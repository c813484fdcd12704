# SPDX-License-Identifier: Apache-2.0
"""Whatever is imported is valid: the schemas and all rules accept it, for any input that the parsers take."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.config.diagnostic import Severity, render_text
from reconciler.config.load import load
from reconciler.importers import emit
from tests.importers.test_golden import CASES, parse
from tests.importers.test_hostile import damaged, outcome

v4 = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "20.0.0.1", "20.0.0.2", "127.0.0.1", "0.0.0.0"])
v6 = st.sampled_from(["2001:db8::1", "2001:db8::2", "2001:db8:1::1", "fe80::1"])
addresses = st.one_of(v4, v4, v6)
ports = st.sampled_from([80, 80, 81, 443, 8080, 65_535, 0])
small = st.integers(0, 9)


def host(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def assert_valid(imported):
    with tempfile.TemporaryDirectory() as directory:
        for name, text in emit.files(imported.manifests, "a test").items():
            (Path(directory) / name).write_text(text)
        loaded = load(Path(directory))
    errors = [d for d in loaded.diagnostics if d.severity is Severity.ERROR]
    assert not errors, render_text(errors, loaded.texts)


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_becomes_of_real_world_input_is_valid(path):
    assert_valid(parse(path))


@given(damaged())
@settings(max_examples=150, deadline=None)
def test_what_becomes_of_damaged_input_is_valid(sample):
    if (imported := outcome(*sample)) and imported.manifests:
        assert_valid(imported)


@st.composite
def ipvs_tables(draw):
    lines = []
    for key in draw(
        st.lists(st.tuples(st.sampled_from(["-t", "-u", "--sctp-service"]), addresses, ports), unique=True)
    ):
        option, vip, port = key
        service = f"{option} {host(vip, port)}"
        scheduler = draw(st.sampled_from(["rr", "wrr", "lc", "wlc", "sh", "mh", "dh", "fo", "ovf", "sed", "future"]))
        persistence = draw(st.sampled_from(["", " -p", " -p 360", " -p 2678400 -M 255.255.0.0"]))
        lines.append(f"-A {service} -s {scheduler}{persistence}{draw(st.sampled_from(['', ' -b sh-port', ' -o']))}")
        for address, target in draw(st.lists(st.tuples(addresses, ports), max_size=4)):
            method = draw(st.sampled_from(["-m", "-m", "-g", "-i"]))
            lines.append(f"-a {service} -r {host(address, target)} {method} -w {draw(st.integers(0, 65_535))}")
    return "\n".join(lines)


@given(ipvs_tables())
@settings(max_examples=150, deadline=None)
def test_what_becomes_of_any_ipvs_table_is_valid(text):
    if imported := outcome("ipvsadm", text):
        assert_valid(imported)


texts = st.sampled_from(["", "a", "/x", "x y", "\u00e9", "x" * 2000])
rules = st.fixed_dictionaries(
    {
        "serviceArguments": st.fixed_dictionaries(
            {
                "externalIP": addresses,
                "port": ports,
                "protocol": st.sampled_from(["tcp", "udp", "sctp", "icmp", "none"]),
            },
            optional={
                "portMax": ports,
                "sel": small,
                "mode": small,
                "Monitor": st.booleans(),
                "name": texts,
                "inactiveTimeOut": st.integers(0, 2**31),
                "persistTimeout": st.integers(0, 2**31),
                "block": small,
                "probetype": st.sampled_from(["", "ping", "tcp", "udp", "sctp", "http", "https", "none", "odd"]),
                "probeport": ports,
                "probereq": texts,
                "proberesp": texts,
                "probeTimeout": st.integers(0, 86_400),
                "probeRetries": st.integers(0, 1000),
                "security": st.integers(0, 2),
                "proxyprotocolv2": st.booleans(),
            },
        ),
    },
    optional={
        "secondaryIPs": st.lists(st.fixed_dictionaries({"secondaryIP": addresses}), max_size=3),
        "allowedSources": st.lists(
            st.fixed_dictionaries({"prefix": st.sampled_from(["10.0.0.0/8", "10.1.2.3/8", "::/0"])})
        ),
        "endpoints": st.lists(
            st.fixed_dictionaries(
                {"endpointIP": addresses, "targetPort": ports}, optional={"weight": st.integers(0, 255)}
            ),
            max_size=4,
        ),
    },
)
hosts = st.fixed_dictionaries(
    {"hostName": addresses},
    optional={
        "name": texts,
        "probeType": st.sampled_from(["", "ping", "http", "connect-udp"]),
        "probePort": ports,
        "probeReq": texts,
        "inactiveReTries": st.integers(0, 1000),
        "probeDuration": st.integers(0, 86_400),
    },
)


@given(st.lists(rules, max_size=4), st.lists(hosts, max_size=2))
@settings(max_examples=200, deadline=None)
def test_what_becomes_of_any_loxilb_rules_is_valid(found, endpoints):
    imported = outcome("loxilb", json.dumps({"lbAttr": found}) + json.dumps({"Attr": endpoints}))
    assert imported is not None
    assert_valid(imported)


@st.composite
def keepalived_files(draw):
    checks = st.sampled_from(
        [
            "TCP_CHECK { }",
            "PING_CHECK { }",
            "UDP_CHECK {\n payload 6869\n}",
            "MISC_CHECK { }",
            "HTTP_GET {\n url {\n path /a b\n status_code 200-599 700\n }\n}",
            "SSL_GET {\n virtualhost \u00e9\n}",
            "HTTP_GET {\n connect_port 0\n url {\n path x\n }\n}",
            "DNS_CHECK {\n retry 9999\n}",
            "",
        ]
    )
    settings_ = [
        "delay_loop 0.001",
        "delay_loop 99999",
        "connect_timeout 70",
        "quorum 3",
        "persistence_timeout 4000000000",
    ]
    text = "virtual_server_group g {\n 20.0.1.1-80 80\n 2001:db8:9::1-4 80\n 20.0.0.1 81\n}\n"
    places = st.one_of(st.just("group g"), st.tuples(addresses, ports).map(lambda p: f"{p[0]} {p[1]}"))
    for place in draw(st.lists(places, max_size=3)):
        text += f"virtual_server {place} {{\n protocol {draw(st.sampled_from(['TCP', 'UDP', 'SCTP']))}\n"
        text += f" lvs_method {draw(st.sampled_from(['NAT', 'DR', 'TUN']))}\n"
        text += f" lb_algo {draw(st.sampled_from(['rr', 'wrr', 'wlc', 'fo', 'mh', 'x']))}\n"
        text += "".join(f" {line}\n" for line in draw(st.lists(st.sampled_from(settings_), max_size=2)))
        for address, port in draw(st.lists(st.tuples(addresses, ports), max_size=3)):
            text += f" real_server {address} {port} {{\n weight {draw(st.integers(0, 65_535))}\n {draw(checks)}\n }}\n"
        text += "}\n"
    return text


@given(keepalived_files())
@settings(max_examples=150, deadline=None)
def test_what_becomes_of_any_keepalived_file_is_valid(text):
    if imported := outcome("keepalived", text):
        assert_valid(imported)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("AEaed"), st.sampled_from("tu"), addresses, ports, addresses, st.integers(0, 2**31 - 1)
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_what_becomes_of_any_katran_script_is_valid(commands):
    text = "".join(
        f"-{c} -{p} {host(vip, port)} -r {real} -w {weight}\n" for c, p, vip, port, real, weight in commands
    )
    if imported := outcome("katran", text):
        assert_valid(imported)
