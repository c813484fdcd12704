# SPDX-License-Identifier: Apache-2.0
"""Malformed input: one sentence with the line, and no half-made manifests."""

import importlib

import pytest

from reconciler.importers.draft import InputError

RULE = '{"lbAttr":[\n{"serviceArguments":{"externalIP":"20.20.20.1","port":80,"protocol":"tcp",\n%s},"endpoints":[]}]}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("loxilb", '{\n"lbAttr" [', "line 2: this is no JSON: expected ':', got '['"),
        ("loxilb", '{\n"lbAttr": [\n', "line 3: this is no JSON: expected a value, got the end of the input"),
        ("loxilb", '{"lbAttr": [1 2]}', "line 1: this is no JSON: expected ',' or ']', got '2]}'"),
        ("loxilb", '{"a": "\n"}', "line 1: a text is not written as JSON asks for it"),
        ("loxilb", '{"x": 1}', 'line 1: this holds no rules of LoxiLB: there is neither "lbAttr" nor "Attr"'),
        ("loxilb", '{\n"lbAttr": [1]}', 'line 2: expected a list of objects as "lbAttr"'),
        ("loxilb", '{"lbAttr": [\n{}]}', 'line 2: a rule has no "serviceArguments"'),
        ("loxilb", RULE % '"sel":"rr"', "line 3: expected a number from 0 to 2147483648 as \"sel\", got 'rr'"),
        ("loxilb", RULE % '"Mode":true', 'line 3: expected a number from 0 to 99 as "Mode", got true'),
        ("loxilb", RULE.replace("20.20.20.1", "vip") % '"sel":0', "line 2: expected an IP address, got 'vip'"),
        ("ipvsadm", "-A -t 10.0.0.1:http -s rr", "line 1: expected the number of a port, got 'http'"),
        ("ipvsadm", "\n-A -t 10.0.0.1:99999", "line 2: expected a port from 0 to 65535, got '99999'"),
        ("ipvsadm", "-A -t web:80", "line 1: expected an IP address, got 'web'"),
        ("ipvsadm", "-A -t 2001:db8::1]:80", "line 1: expected an IP address, got '2001:db8::1]:80'"),
        ("ipvsadm", "-A -t", "line 1: -t needs a value"),
        ("ipvsadm", "-A -a -t 10.0.0.1:80", "line 1: expected one command like -A or -a"),
        ("ipvsadm", "-A -s rr", "line 1: expected a service: -t, -u, --sctp-service or -f"),
        (
            "ipvsadm",
            "-a -t 10.0.0.1:80 -r 10.0.0.2:80",
            "line 1: there is no service 10.0.0.1:80/tcp before this line",
        ),
        ("ipvsadm", "-A -t '10.0.0.1:80", "line 1: a quote is not closed"),
        ("ipvsadm", "rm -rf /", "line 1: this is no command of ipvsadm: 'rm -rf /'"),
        (
            "ipvsadm",
            "TCP  10.0.0.1:80   0  0  0\n  -> 10.0.0.2:80   0  0  0",
            "line 1: this listing shows counters, but neither schedulers nor the servers' ways of forwarding and "
            "weights",
        ),
        ("keepalived", "virtual_server 10.0.0.1 80 {", "line 1: the block that begins here is not closed"),
        ("keepalived", "a {\n}\n}", "line 3: a '}' closes no block"),
        ("keepalived", "\n{", "line 2: a '{' follows no keyword"),
        ("keepalived", 'a "b', "line 1: a quote is not closed"),
        ("keepalived", "vrrp_instance x { }", "there is no virtual_server in the input"),
        (
            "katran",
            "./katran_goclient -a -t 10.0.0.1:80 -r 10.0.0.2",
            "line 1: there is no VIP 10.0.0.1:80 before this line",
        ),
        ("katran", "./katran_goclient -A", "line 1: -A needs a VIP: -t ADDRESS:PORT or -u ADDRESS:PORT"),
        ("katran", "./katran_goclient -A -t $VIP:80", "line 1: expected an IP address, got '$VIP'"),
        ("sbulb", "sbulb eth0 -vs 10.0.0.1 -p 80", "line 1: the real servers are in 'the file of -cfg'"),
        (
            "sbulb",
            "sbulb -vs 10.0.0.1 -rs 10.0.0.2 -p 80",
            "line 1: expected an interface, a virtual server (-vs) and ports (-p)",
        ),
        ("sbulb", "sbulb eth0 -vs 10.0.0.1 -rs 10.0.0.2 -p 0", "line 1: expected a port from 1 to 65535, got '0'"),
        ("sbulb", "[Real Servers]\nserver1\n", "line 2: expected an IP address, got 'server1'"),
        ("sbulb", "sbulb eth0 -x", "line 1: unknown option '-x'"),
    ],
)
def test_the_line_and_what_is_wrong_with_it(name, text, message):
    with pytest.raises(InputError) as error:
        importlib.import_module(f"reconciler.importers.{name}").parse(text)
    assert error.value.message == message
