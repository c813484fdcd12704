# SPDX-License-Identifier: Apache-2.0
"""Nothing that the language can say is silently ignored: it reaches the kernel, or is refused, or only declares."""

import copy
import functools
import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from reconciler.cli.main import main
from reconciler.compile import compile_node
from reconciler.config import schema
from reconciler.config.build import build
from reconciler.config.document import parse
from reconciler.config.load import load
from reconciler.errors import UnsupportedError
from reconciler.health.state import Health, State
from reconciler.model import Endpoint, Fleet, Node, Pool, Rcode, Record, Role, Service
from reconciler.reconcile import desired_of
from reconciler.resource import Span
from reconciler.safe import SHOWN
from reconciler.support import unsupported
from reconciler.view import view
from reconciler.wish.announcing import Leaving
from reconciler.wish.wish import Wish
from tests.config.manifests import node, pool, service
from tests.strategies import fake_source

EXAMPLES = Path(__file__).parents[1] / "examples" / "configs"


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


BASE = {
    "Service": {"metadata": {"name": "web"}, "spec": {
        "vip": "20.20.20.1", "ports": [80], "pool": "web", "nodeSelector": {"site": "north"}}},
    "Pool": {"metadata": {"name": "web"}, "spec": {"endpoints": [{"address": "10.2.0.11"}, {"address": "10.2.0.12"}]}},
    "Node": {"metadata": {"name": "lb1", "labels": {"site": "north"}}, "spec": {
        "interfaces": [{"name": "front"}]}},
}  # fmt: skip

VRRP = {"id": 7, "addresses": ["10.1.0.77/24"]}
NEIGHBOR = {"address": "10.31.0.254", "asn": 65009}

# Where what a key says is needed to try it: what it takes besides, and a value that is not the example's.
BESIDES = {
    "Service.spec.vips": ("Service.spec.vip", None),
    "Service.spec.protocol=icmp": ("Service.spec.ports", None),
    "Service.spec.pool": ("Pool.metadata.name", "other"),
    "Pool.metadata.name": ("Service.spec.pool", "other"),
    "Pool.spec.fallbackPool": ("Pool.spec.whenNoneHealthy", "fallback"),
    "Pool.spec.whenNoneHealthy=fallback": ("Pool.spec.fallbackPool", "sorry"),
    "Pool.spec.healthCheck.send": ("Pool.spec.healthCheck.type", "udp"),
    "Pool.spec.healthCheck.expect": ("Pool.spec.healthCheck", {"type": "udp", "send": "PING"}),
    "Pool.spec.healthCheck.query": ("Pool.spec.healthCheck.type", "dns"),
    "Pool.spec.healthCheck.type=dns": ("Pool.spec.healthCheck", {"query": "example.org"}),
    "Pool.spec.healthCheck.type=agent": ("Pool.spec.healthCheck", {"port": 8081}),
    "Node.spec.announce.vrrp.id": ("Node.spec.announce.vrrp", VRRP),
    "Node.spec.announce.vrrp.addresses": ("Node.spec.announce.vrrp", VRRP),
    "Node.spec.announce.vrrp.priority": ("Node.spec.announce.vrrp", VRRP),
    "Node.spec.address": ("Node.spec.role", "endpoint"),
    "Node.spec.interfaces.0.tag": ("Node.spec.interfaces.0.trunk", "eth0"),
    "Node.spec.multipath": ("Node.spec.role", "router"),
    "Node.spec.snatAddresses": ("Service.spec.mode", "fullnat"),
    "Node.spec.snatPorts": ("Service.spec.mode", "fullnat"),
    "Node.spec.vipRoutes.buckets": ("Node.spec.role", "router"),
    "Node.spec.vipRoutes.idle": ("Node.spec.role", "router"),
    "Node.spec.bgp.multiprotocol": ("Node.spec.bgp", {"asn": 65001, "neighbors": [NEIGHBOR]}),
    "Node.spec.bgp.routerId": ("Node.spec.bgp.asn", 65001),
    "Node.spec.bgp.bfd": ("Node.spec.bgp", {"asn": 65001, "neighbors": [NEIGHBOR]}),
    "Node.spec.bgp.holdTime": ("Node.spec.bgp", {"asn": 65001, "neighbors": [NEIGHBOR]}),
    "Node.spec.bgp.neighbors.0.address": ("Node.spec.bgp", {"asn": 65001, "neighbors": [NEIGHBOR]}),
    "Node.spec.bgp.neighbors.0.asn": ("Node.spec.bgp", {"asn": 65001, "neighbors": [NEIGHBOR]}),
} | {
    f"Pool.spec.healthCheck.{key}": (
        "Pool.spec.healthCheck", {"type": "agent", "port": 8081, "format": "json", "value": "free"})
    for key in ("value", "format=json", "format=prometheus")
}
VALUES = {
    "Service.spec.vip": "20.20.20.2", "Service.spec.ports": [80, 443], "Service.spec.pool": "other",
    "Service.spec.nodeSelector": {"site": "south"}, "Pool.metadata.name": "other", "Pool.spec.endpoints.0.weight": 3,
    "Node.metadata.labels": {"site": "south"}, "Pool.spec.endpoints.0.address": "10.2.0.13",
    "Pool.spec.healthCheck.rise": 5, "Pool.spec.healthCheck.fall": 5,
    "Pool.spec.healthCheck.query": "example.net", "Pool.spec.healthCheck.value": "load.free",
}  # fmt: skip

# What reaches no kernel and is not refused, each with the reason why that ignores nothing.
DECLARATIVE = {
    "Service.metadata.name": "people and counters call it so; rows are known by VIP and port",
    "Service.metadata.labels": "for people and other programs",
    "Pool.metadata.labels": "for people and other programs",
    "Node.metadata.name": "it chooses which node this is",
    "Node.spec.interfaces.0.xdp=native": "it is what is left out, but for veths (test_concerns)",
    "Node.spec.expectedFlows": "what rules check the source ports by, and the table is made for",
}


def leaves(part, path):
    """Every key of a schema that holds no further keys; of an enumeration, every value."""
    if "properties" in part:
        for name, inner in part["properties"].items():
            yield from leaves(inner, f"{path}.{name}")
    elif "properties" in part.get("items", {}):
        yield from leaves(part["items"], f"{path}.0")
    elif "enum" in part:
        yield from ((f"{path}={value}", value) for value in part["enum"])
    elif "const" not in part:
        yield path, VALUES.get(path, part["examples"][0])


LEAVES = {path: value for kind in schema.KINDS for path, value in leaves(schema.load_schema(kind), kind)}
AS_LEFT_OUT = {
    f"{path.partition('=')[0]}={default}"
    for path, default in {
        "Service.spec.mode": "nat", "Service.spec.protocol": "tcp", "Service.spec.algorithm": "round-robin",
        "Pool.spec.endpoints.0.state": "active", "Pool.spec.healthCheck.type": "none", "Node.spec.role": "balancer",
        "Node.spec.interfaces.0.xdp": "auto", "Node.spec.undefinedTraffic": "drop", "Node.spec.vipBinding": "route",
        "Node.spec.icmpRedirects": "off", "Node.spec.packetTooBig": "answer", "Service.spec.echo": "reply",
        "Pool.spec.whenNoneHealthy": "all", "Pool.spec.onUnhealthy": "keep",
        "Pool.spec.healthCheck.through": "endpoint", "Pool.spec.healthCheck.size": "small",
        "Pool.spec.healthCheck.verify": "none",
        "Pool.spec.healthCheck.record": "A", "Pool.spec.healthCheck.rcode": "NOERROR",
        "Pool.spec.healthCheck.format": "words",
    }.items()
}  # fmt: skip


# What a key is for is not in the base: it is tried with this, and against this.
WITHIN = {
    "Pool.spec.ringSize": {"Service.spec.algorithm": "maglev"},
    "Node.spec.tunnelSource.ipv4": {"Service.spec.mode": "dsr-l3"},
    "Node.spec.tunnelSource.ipv6": {"Service.spec.mode": "dsr-l3"},
    "Node.spec.healthAddress.ipv4": {"Service.spec.mode": "dsr-l3"},
    "Node.spec.healthAddress.ipv6": {"Service.spec.mode": "dsr-l3"},
    "Node.spec.packetTooBig=answer": {"Service.spec.mode": "dsr-l2"},
    "Node.spec.packetTooBig=drop": {"Service.spec.mode": "dsr-l2"},
    "Service.spec.protocol=udp": {"Service.spec.mode": "dsr-l2"},
    "Service.spec.protocol=sctp": {"Service.spec.mode": "dsr-l3"},
    "Pool.spec.announceMin": {"Pool.spec.healthCheck.type": "tcp", "Node.spec.announce.table": 9},
    "Node.spec.announce.degradedMetric": {
        "Pool.spec.healthCheck.type": "tcp", "Pool.spec.announceMin": 2, "Node.spec.announce.table": 9},
} | {
    f"Pool.spec.{key}": {"Pool.spec.healthCheck.type": "tcp"}
    for key in (
        "minHealthy", "slowStart", "whenNoneHealthy=drop", "onUnhealthy=reset", "healthCheck.port",
        "healthCheck.interval", "healthCheck.timeout", "healthCheck.rise", "healthCheck.fall",
        "healthCheck.through=endpoint", "healthCheck.through=vip",
    )
} | {
    f"Pool.spec.healthCheck.{key}": {f"Pool.spec.healthCheck.{name}": value for name, value in check.items()}
    for check, keys in (
        ({"type": "http"}, ("path", "host", "status", "headers", "text", "size=small", "size=full")),
        ({"type": "https"}, ("serverName", "verify=none", "verify=ca", "ca")),
        ({"type": "dns", "query": "example.org"}, (
            *(f"record={record}" for record in Record), *(f"rcode={rcode}" for rcode in Rcode))),
        ({"type": "agent", "port": 8081}, ("format=words",)),
    )
    for key in keys
}  # fmt: skip


def put(documents, path, value):
    *steps, last = path.partition("=")[0].split(".")
    inner = documents
    for step in steps:
        inner = inner[int(step)] if isinstance(inner, list) else inner.setdefault(step, {})
    if value is None:
        del inner[last]
    else:
        inner[last] = copy.deepcopy(value)


def view_of(changes):
    """The node of the base manifests with these changes. Their schemas accept it; rules are not asked."""
    documents = copy.deepcopy(BASE)
    for path, value in changes:
        put(documents, path, value)
    objects = [SORRY]
    for kind, content in documents.items():
        (document,) = parse(kind, json.dumps({"apiVersion": "lbctl/v1", "kind": kind, **content}))
        assert schema.check(document) == []
        objects.append(build(document))
    of = {cls: tuple(item for item in objects if isinstance(item, cls)) for cls in (Service, Pool, Node)}
    return view(Fleet(of[Service], of[Pool], of[Node]), None, "")


SORRY = Pool("sorry", (Endpoint(ip_address("10.2.0.99")),))
LATER_S = 1000.0


def asked(*changes):
    """All that follows from manifests: what the node must hold, what is checked, and what the node must hold once all
    endpoints are down, once one is back, once it has been back for long, once it is down, and while the node is
    drained."""
    taken = view_of(changes)
    times = iter((0.0, 1.0, LATER_S, LATER_S + 1, 8 * LATER_S, 9 * LATER_S, 9 * LATER_S + 20))
    now = functools.partial(next, times)
    wish = Wish(clock=now, epoch=lambda: 0.0)
    found = [compile_node(wish.of(taken)).resources, dict(wish.targets)]
    first, up = next(iter(wish.states), b""), dict.fromkeys(wish.states, State(Health.UP))
    back = State(Health.UP, LATER_S, has_returned=True)
    down = dict.fromkeys(wish.states, State(Health.DOWN))
    for states in (down, up | {first: back}, up, up | {first: State(Health.DOWN)}):
        wish.learn(states)
        found.append(compile_node(wish.of(taken)).resources)
    wish.announcing.leaving = Leaving("", 9 * LATER_S)
    return [*found, compile_node(wish.of(taken)).resources]


@functools.cache
def asked_without(*changes):
    return asked(*changes)


def outcome(path):
    """What becomes of the base manifests with this key or value: `used`, `refused` or `ignored`."""
    within = tuple(WITHIN.get(path, {}).items())
    changes = [*within, (path, LEAVES[path])]
    if path in BESIDES:
        changes.insert(0, BESIDES[path])
    try:
        found = asked(*changes)
    except UnsupportedError:
        return "refused"
    return "ignored" if found == asked_without(*within) else "used"


@pytest.mark.parametrize("path", LEAVES)
def test_nothing_is_silently_ignored(path):
    if path in AS_LEFT_OUT or path in DECLARATIVE:
        assert outcome(path) == "ignored"
    else:
        assert outcome(path) in ("used", "refused")


def test_the_lists_name_what_there_is():
    assert LEAVES.keys() >= {*BESIDES, *VALUES, *DECLARATIVE, *AS_LEFT_OUT, *WITHIN}


@pytest.mark.parametrize(
    "path",
    [
        "Service.spec.vip", "Service.spec.vips", "Service.spec.ports", "Service.spec.targetPort", "Service.spec.pool",
        "Service.spec.algorithm=source-hash", "Service.spec.nodeSelector", "Pool.metadata.name",
        "Pool.spec.endpoints.0.address", "Pool.spec.endpoints.0.port", "Pool.spec.endpoints.0.weight",
        "Pool.spec.endpoints.0.state=draining", "Pool.spec.endpoints.0.state=disabled", "Node.metadata.labels",
        "Node.spec.interfaces.0.name", "Node.spec.interfaces.0.xdp=generic", "Node.spec.undefinedTraffic=pass",
        "Node.spec.vipBinding=address", "Node.spec.icmpRedirects=on", "Service.spec.mode=dsr-l2",
        "Service.spec.mode=dsr-l3", "Service.spec.protocol=udp", "Service.spec.protocol=sctp",
        "Node.spec.tunnelSource.ipv4", "Node.spec.tunnelSource.ipv6", "Node.spec.packetTooBig=drop",
        "Pool.spec.ringSize", "Pool.spec.healthCheck.type=http", "Pool.spec.healthCheck.path", "Pool.spec.minHealthy",
        "Pool.spec.whenNoneHealthy=drop", "Pool.spec.whenNoneHealthy=fallback", "Pool.spec.slowStart",
    ],
)  # fmt: skip
def test_what_is_supported_reaches_the_node(path):
    assert outcome(path) == "used"


V6 = "2001:db8::1"
CASES = [
    (service(more="mode: fullnat, protocol: sctp"), pool(), node(),
     "a.yaml:5: protocol sctp is not supported in mode fullnat yet; supported: tcp, udp"),
    (service(vip=V6, more="protocol: sctp"), pool(), node(),
     f"a.yaml:5: the IPv6 address {V6} is not supported for sctp in mode nat yet; supported: IPv4"),
    (service(ports="[]", more="protocol: icmp"), pool(), node(),
     "a.yaml:5: protocol icmp is not supported in mode nat yet; supported: tcp, udp, sctp"),
    (service(more="affinity: {timeout: 37h}"), pool(), node(),
     "a.yaml:5: a timeout of affinity longer than 36h is not supported: its times come round after 39 hours"),
    (service(more="mode: dsr-l3, idleTimeout: 15m"), pool(), node(),
     "a.yaml:5: idleTimeout does nothing in mode dsr-l3, which remembers no idle connections"),
    (service(more="idleTimeout: 5h"), pool(), node(),
     "a.yaml:5: an idleTimeout longer than 4h is not supported: times of the table come round after five hours"),
    (service(), pool(more="healthCheck: {type: tcp, through: vip}"), node(),
     "b.yaml:5: healthCheck through vip needs an address that node lb1 checks from"),
    (service(), pool(), node(more=f"snatAddresses: [{', '.join(f'10.1.0.{n}' for n in range(10, 19))}]"),
     "c.yaml:5: 9 IPv4 source addresses are not supported; supported: 8 at most"),
]  # fmt: skip


def fleet_of(*texts):
    """Three files, whatever rules say."""
    objects = [build(d) for name, text in zip("abc", texts, strict=True) for d in parse(f"{name}.yaml", text)]
    of = {cls: tuple(item for item in objects if isinstance(item, cls)) for cls in (Service, Pool, Node)}
    return Fleet(of[Service], of[Pool], of[Node])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[-1])
def test_it_is_said_what_is_missing_and_where(case):
    with pytest.raises(UnsupportedError) as raised:
        desired_of(fleet_of(*case[:3]), "lb1")
    assert raised.value.message == case[3]


def test_all_that_is_missing_is_said_at_once_in_the_order_of_lines():
    web = service(more="mode: fullnat, protocol: sctp, idleTimeout: 5h")
    checked = pool(more="healthCheck: {type: tcp, through: vip}")
    with pytest.raises(UnsupportedError) as raised:
        desired_of(fleet_of(web, checked, node()), None)
    assert raised.value.message.splitlines() == [
        "node lb1 is asked for what this version can't do:",
        "  a.yaml:5: protocol sctp is not supported in mode fullnat yet; supported: tcp, udp",
        "  a.yaml:5: an idleTimeout longer than 4h is not supported: times of the table come round after five hours",
        "  b.yaml:5: healthCheck through vip needs an address that node lb1 checks from",
    ]


def test_the_place_is_the_line_of_the_key():
    text = service().replace("spec: {vip: 20.20.20.1, ports: [80], pool: web}", """\
spec:
  vip: 20.20.20.1
  ports: [80]
  pool: web
  affinity: {timeout: 2d}""")
    found = unsupported(view(fleet_of(text, pool(), node()), None, ""))
    assert [item.span for item in found] == [Span("a.yaml", 9, 3)]


def test_the_command_line_refuses_what_validate_accepts(capsys):
    example = str(EXAMPLES / "sctp-fullnat")
    assert main(["validate", example]) == 0
    assert main(["plan", example, "--node", "lb6", "--live", "empty"]) == 1
    assert ": protocol sctp is not supported in mode fullnat yet; supported: tcp, udp\n" in capsys.readouterr().err


RUNNABLE = [
    "nat-tcp", "nat-one-arm", "nat-ipv6", "fullnat", "fullnat-one-arm", "fullnat-ipv6", "dsr-l2", "dsr-l3",
    "dsr-l3-ipv6", "udp-fleet", "nat-affinity",
]  # fmt: skip


@pytest.mark.parametrize("example", RUNNABLE)
def test_examples_that_can_run_say_nothing_else(example):
    fleet = load(EXAMPLES / example).fleet
    assert not any(unsupported(view(fleet, found.name, "")) for found in fleet.nodes if found.role is Role.BALANCER)
    assert "don't support" not in (EXAMPLES / example / "services.yaml").read_text()


@pytest.mark.parametrize("example", ["sctp-fullnat"])
def test_examples_that_can_not_run_yet_say_so(example):
    fleet = load(EXAMPLES / example).fleet
    assert any(unsupported(view(fleet, found.name, "")) for found in fleet.nodes if found.role is Role.BALANCER)
    first_service = (EXAMPLES / example / "services.yaml").read_text().partition("apiVersion")[0]
    assert "`plan` and `apply` don't support" in first_service


def test_thousands_of_things_are_cut_short():
    services = "".join(service(f"web-{number}", more="affinity: {timeout: 2d}") for number in range(SHOWN + 1001))
    with pytest.raises(UnsupportedError) as raised:
        desired_of(fleet_of(services, pool(), node()), None)
    lines = raised.value.message.splitlines()
    assert len(lines) == SHOWN + 2
    assert lines[-1] == "  and 1,001 more"


def test_what_another_node_is_asked_for_does_not_matter():
    away = service("away", vip=V6, more="mode: dsr-l3, nodeSelector: {site: south}", pool="away")
    away_pool = pool("away", endpoints=f"{{address: '{V6}2'}}", more="healthCheck: {type: tcp}")
    others = node("lb2", more="role: router")
    fleet = fleet_of(service() + away, pool() + away_pool, node() + others)
    assert desired_of(fleet, "lb1") == desired_of(fleet_of(service(), pool(), node()), "lb1")


def test_a_health_check_that_is_switched_off_is_none():
    off = pool(more="healthCheck: {type: none, path: /healthz}")
    assert not unsupported(view(fleet_of(service(), off, node()), None, ""))


