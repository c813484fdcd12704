# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - a case a line, its message whole
"""What is wrong with one item costs that item, and says so: everything else is imported."""

import importlib

import pytest

KEPT = {
    "ipvsadm": "-A -t 10.0.0.9:80\n",
    "keepalived": "virtual_server 10.0.0.9 80 {\n}\n",
    "katran": "-A -t 10.0.0.9:80\n",
    "loxilb": '[{"serviceArguments": {"externalIP": "10.0.0.9", "port": 80, "protocol": "tcp"}},',
}
"""A first service, which stays whatever follows."""


def in_server(text):
    return f"virtual_server 10.0.0.1 80 {{\n protocol TCP\n{text}\n}}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ipvsadm", "-A -t 10.0.0.1:80 -z", "2: option -z has no counterpart: it is left out"),
        ("ipvsadm", "-A -t 10.0.0.9:80", "2: there is a service 10.0.0.9:80/tcp before this line: the command is left out"),
        ("ipvsadm", "-a -t 10.0.0.9:80 -r 10.0.0.2 -w x", "2: expected a weight from 0 to 2147483647, got 'x': server 10.0.0.2 of 10.0.0.9:80/tcp is left out"),
        ("ipvsadm", "-A -t 10.0.0.1:80 -s rr -p 0", "2: expected seconds from 1 to 2678400, got '0': the service 10.0.0.1:80/tcp is left out"),
        ("ipvsadm", "-A -t web:80", "2: expected an IP address, got 'web': the command is left out (names are not looked up, and variables not filled in: write the address)"),
        ("ipvsadm", "-A -t '10.0.0.1:80", "2: a quote is not closed: the command is left out"),
        ("ipvsadm", "echo done", "2: this is no command of ipvsadm: 'echo done': the command is left out (give what `ipvsadm-save -n` or `ipvsadm -L -n` prints)"),
        ("ipvsadm", "--start-daemon master --mcast-interface eth0", "2: --start-daemon, the synchronization of connections between balancers, has no counterpart: it is left out"),
        ("ipvsadm", "-P -z 192.168.100.200 -t 10.0.0.9:80 -F dpdk0", "2: -P, a local address of DPVS, has no counterpart: it is left out"),
        ("ipvsadm", "--set 900 60 300", "2: --set: the timeout of TCP after a FIN, 60 seconds, has no counterpart: it is left out"),
        ("keepalived", "virtual_server { }", "3: expected virtual_server ADDRESS PORT, fwmark MARK or group NAME: the virtual_server is left out"),
        ("keepalived", "virtual_server group x { }", "3: there is no virtual_server_group 'x': the virtual_server is left out"),
        ("keepalived", "virtual_server 10.0.0.1 http { }", "3: expected the number of a port, got 'http': the virtual_server is left out (names of services are not looked up: with -n tools write numbers)"),
        ("keepalived", in_server("lb_kind TUNNEL"), "5: virtual_server 10.0.0.1 80: keepalived ignores lb_kind TUNNEL: nat is written"),
        ("keepalived", in_server("real_server"), "5: expected real_server ADDRESS PORT: a real_server of virtual_server 10.0.0.1 80 is left out"),
        ("keepalived", in_server("real_server fwmark 7 { }"), "5: expected an IP address, got 'fwmark': a real_server of virtual_server 10.0.0.1 80 is left out (names are not looked up, and variables not filled in: write the address)"),
        ("keepalived", in_server("protocol ICMP"), "5: virtual_server 10.0.0.1 80: keepalived ignores protocol ICMP"),
        ("keepalived", in_server("lb_algo best"), "5: virtual_server 10.0.0.1 80: keepalived ignores scheduler best"),
        ("keepalived", in_server("persistence_timeout ever"), "5: expected seconds from 1 to 2678400, got 'ever': the persistence of virtual_server 10.0.0.1 80 is left out"),
        ("keepalived", in_server("real_server 10.0.1.1 80 {\n weight -1\n}"), "6: expected a weight from 0 to 2147483647, got '-1': the weight of virtual_server 10.0.0.1 80: real_server 10.0.1.1 is left out"),
        ("keepalived", in_server("delay_loop 0\nreal_server 10.0.1.1 80 {\n TCP_CHECK { }\n}"), "5: expected a number of seconds, got '0': virtual_server 10.0.0.1 80: real_server 10.0.1.1: delay_loop is left out"),
        ("keepalived", in_server("real_server 10.0.1.1 80 {\n HTTP_GET {\n url {\n status_code ok\n}\n}\n}"), "8: expected a status code from 100 to 599, got 'ok': the health check of virtual_server 10.0.0.1 80: real_server 10.0.1.1 is left out"),
        ("keepalived", "virtual_server_group g {\n 10.0.0.9-1 80\n}\nvirtual_server group g { }", "4: the range '10.0.0.9-1' ends before it begins: an address of virtual_server_group g is left out"),
        ("keepalived", "virtual_server_group g {\n ::/0 80\n}\nvirtual_server group g { }", "4: the range '::/0' has more than 1024 addresses: an address of virtual_server_group g is left out"),
        ("keepalived", "real_server 10.0.0.1 80 { }", "3: a real_server outside of any virtual_server belongs to none: it is left out"),
        ("keepalived", "~SEQ(N, a) real_server 10.0.1.${N} 80 { }", "3: expected ~SEQ(NAME, START, STEP, END), got 'N, a': the line is left out"),
        ("keepalived", "include more.conf", "3: include more.conf is not read, standard input is in no directory: whatever it holds, servers too, is left out (name the file)"),
        ("katran", "-A -t 10.0.0.1:80 -z", "2: option -z has no counterpart: it is left out"),
        ("katran", "-a -t 10.0.0.9:80 -r 10.0.0.2:80", "2: expected an IP address, got '10.0.0.2:80': the command is left out (names are not looked up, and variables not filled in: write the address)"),
        ("katran", "systemctl start katran", "2: this is no command of Katran's client: 'systemctl start katran': the command is left out"),
        ("loxilb", '\n{"serviceArguments": {"externalIP": "vip", "port": 80, "protocol": "tcp"}}]', "2: expected an IP address, got 'vip': the service is left out (names are not looked up, and variables not filled in: write the address)"),
        ("loxilb", '\n{"serviceArguments": {"externalIP": "10.0.0.1", "port": 80, "protocol": "tcp"}, "endpoints": [\n{"endpointIP": "x"}]}]', "3: expected an IP address, got 'x': an endpoint of 10.0.0.1:80/tcp is left out (names are not looked up, and variables not filled in: write the address)"),
        ("loxilb", '\n{"serviceArguments": {"externalIP": "10.0.0.1", "port": 80, "protocol": "tcp"}, "allowedSources": [{"prefix": "x"}]}]', "2: expected a prefix like 10.0.0.0/8, got 'x': the service is left out"),
    ],
)  # fmt: skip
def test_one_bad_item_costs_itself_and_nothing_else(name, text, message):
    imported = importlib.import_module(f"reconciler.importers.{name}").parse(KEPT[name] + text)
    assert message in [f"{notice.line}: {notice.message}" for notice in imported.warnings]
    assert "10.0.0.9" in {manifest["spec"].get("vip") for manifest in imported.manifests}
