# SPDX-License-Identifier: Apache-2.0
import gc
import json
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.config import checked as checked_module
from reconciler.config import document as document_module
from reconciler.config import load as load_module
from reconciler.config.diagnostic import render_json, render_text
from reconciler.config.load import Loader, load
from reconciler.model import (
    Algorithm,
    Endpoint,
    EndpointState,
    Interface,
    Mode,
    Node,
    Pool,
    Protocol,
    Service,
    Undefined,
    VipBinding,
    XdpMode,
)  # fmt: skip
from reconciler.resource import Span
from tests.config.manifests import as_text, node, pool, service
from tests.strategies import fleets


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


def test_manifests_become_the_model(write):
    directory = write({
        "all.yaml": """\
apiVersion: lbctl/v1
kind: Service
metadata: {name: web}
spec:
  vip: 20.20.20.1
  protocol: tcp
  ports: [443, "8000-8002", 80]
  mode: nat
  algorithm: source-hash
  pool: web
---
apiVersion: lbctl/v1
kind: Node
metadata: {name: lb1}
spec:
  role: balancer
  interfaces:
    - name: front
      xdp: generic
      addresses: [10.1.0.1/24, 10.3.0.0/31]
    - {name: back}
  undefinedTraffic: pass
  vipBinding: address
""",
        "pools/web.yml": """\
apiVersion: lbctl/v1
kind: Pool
metadata: {name: web}
spec:
  endpoints:
    - {address: 10.2.0.11, weight: 2}
    - address: 10.2.0.12
      state: draining
      weight: 0
""",
    })  # fmt: skip
    loaded = load(directory)
    assert loaded.diagnostics == ()
    fleet = loaded.fleet
    assert fleet.services == (
        Service("web", (IPv4Address("20.20.20.1"),), Protocol.TCP, (80, 443, 8000, 8001, 8002), "web",
                Mode.NAT, Algorithm.SOURCE_HASH),
    )  # fmt: skip
    assert fleet.pools == (
        Pool("web", (Endpoint(IPv4Address("10.2.0.11"), None, 2),
                     Endpoint(IPv4Address("10.2.0.12"), None, 0, EndpointState.DRAINING))),
    )  # fmt: skip
    assert fleet.nodes == (
        Node("lb1", (Interface("front", XdpMode.GENERIC, (IPv4Interface("10.1.0.1/24"), IPv4Interface("10.3.0.0/31"))),
                     Interface("back")), Undefined.PASS, VipBinding.ADDRESS),
    )  # fmt: skip
    assert fleet.digest == loaded.digest != ""
    assert fleet.services[0].span == Span("all.yaml", 1)
    assert fleet.nodes[0].span == Span("all.yaml", 12)
    assert [interface.span for interface in fleet.nodes[0].interfaces] == [
        Span("all.yaml", 18, 7),
        Span("all.yaml", 21, 7),
    ]
    assert [endpoint.span for endpoint in fleet.pools[0].endpoints] == [
        Span("pools/web.yml", 6, 7),
        Span("pools/web.yml", 7, 7),
    ]


def test_objects_are_in_order_of_their_names_wherever_they_are(write):
    text = service("b", ports="[81]") + service("a") + pool()
    assert [s.name for s in load(write({"1.yaml": text})).fleet.services] == ["a", "b"]


def test_errors_of_all_files_are_found_at_once(write):
    directory = write({
        "1-not-utf-8.yaml": b"\xff",
        "2-no-yaml.yaml": "a: [",
        "3-no-manifest.yaml": "a: 1\n",
        "4-bad-values.yaml": service(ports="[0, 70000]", vip="nonsense") + pool(endpoints="{adress: 10.2.0.11}"),
        "5-bad-rule.yaml": node(interfaces=""),
    })  # fmt: skip
    loaded = load(directory)
    assert loaded.fleet is None
    assert [(d.span.file[0], d.rule) for d in loaded.diagnostics] == [
        ("1", "source-encoding"),
        ("2", "yaml-syntax"),
        ("3", "missing-key"),
        ("4", "wrong-format"),
        ("4", "out-of-range"),
        ("4", "out-of-range"),
        ("4", "unknown-key"),
        ("5", "balancer-without-interfaces"),
    ]


def test_an_edit_costs_only_its_own_file(write, monkeypatch):
    files = {f"{name}.yaml": service(name, vip=f"20.20.20.{i}") for i, name in enumerate("abc")}
    directory = write({**files, "pools.yaml": pool() + pool("unused")})
    loader = Loader(directory)
    parsed = []
    real = load_module.check_file
    monkeypatch.setattr(load_module, "check_file", lambda file, former: parsed.append(file.name) or real(file, former))
    first = loader.load()
    assert sorted(set(parsed)) == ["a.yaml", "b.yaml", "c.yaml", "pools.yaml"]

    parsed.clear()
    assert loader.load() is first  # a warning of a rule included
    assert loader.load(afresh=True) is first
    assert parsed == []

    (directory / "b.yaml").write_text(service("b", vip="20.20.20.9"))
    (directory / "c.yaml").unlink()
    second = loader.load()
    assert parsed == ["b.yaml"]
    assert second.fleet.services[0] is first.fleet.services[0]
    assert [(s.name, str(s.vips[0])) for s in second.fleet.services] == [("a", "20.20.20.0"), ("b", "20.20.20.9")]
    assert second.digest != first.digest


def test_nothing_is_remembered_of_what_is_gone(write):
    directory = write({"a.yaml": pool(), "b.yaml": pool("b")})
    loader = Loader(directory)
    loader.load()
    (directory / "b.yaml").unlink()
    loader.load()
    assert [*loader._known.files] == ["a.yaml"]
    assert [*loader._memory.contents] == ["a.yaml"]


def test_a_failed_load_leaves_nothing_half_done(write, monkeypatch):
    directory = write({"a.yaml": pool(), "b.yaml": pool("b")})
    loader = Loader(directory)
    loader.load()
    (directory / "a.yaml").write_text(pool("other"))
    with monkeypatch.context() as patch:
        patch.setattr(load_module, "in_order", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loader.load()
    assert loader.load() == load(directory)


def test_same_content_under_another_name_has_other_places(write):
    directory = write({"a.yaml": pool()})
    load(directory)
    (directory / "a.yaml").rename(directory / "b.yaml")
    assert load(directory).fleet.pools[0].span.file == "b.yaml"


def test_garbage_collector_is_as_before(write):
    directory = write({"a.yaml": pool()})
    for setting in (gc.enable, gc.disable):
        setting()
        before = gc.isenabled()
        load(directory)
        assert gc.isenabled() is before
    gc.enable()


def test_validating_imports_nothing_heavy():
    """These cost more to import than a small directory takes to check."""
    code = "import reconciler.config.load, json, sys; print(json.dumps([*sys.modules]))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert "yaml" in modules
    assert not {"pyroute2", "bcc", "numpy", "msgspec", "jsonschema", "difflib", "asyncio"} & set(modules)


def test_problems_of_a_file_are_bounded(write):
    items = ", ".join("{address: x}" for _ in range(1000))
    loaded = load(write({"a.yaml": "".join(pool(f"p{i}", endpoints=items) for i in range(3)), "b.yaml": "a: ["}))
    assert rules_of(loaded).count("wrong-format") == checked_module.MAX_SHOWN
    assert rules_of(loaded)[0] == "too-many-problems"
    assert rules_of(loaded)[-1] == "yaml-syntax"


def test_thousands_of_unknown_keys_take_bounded_time(write):
    keys = "".join(f"knd{i}: 1\n" for i in range(50_000))
    text = f"{keys}---\n{service()}{keys}"
    assert load(write({"a.yaml": text})).fleet is None


def test_only_the_first_problem_of_a_huge_document_is_looked_for(write, monkeypatch):
    text = pool(endpoints=", ".join(["{address: x}"] * 10))
    monkeypatch.setattr(checked_module.schema, "MAX_SEARCHED", len(text) - 1)
    assert rules_of(load(write({"a.yaml": text}))) == ["too-many-problems", "wrong-format"]


def test_ranges_of_ports_in_a_file_are_bounded(write):
    text = service(ports=f"[{', '.join(['1-65535'] * 5)}]")
    loaded = load(write({"a.yaml": text, "z.yaml": pool()}))
    assert rules_of(loaded) == ["too-many-ports"]


def test_ranges_of_ports_in_all_files_are_bounded(write):
    files = {f"{i}.yaml": service(f"s{i}", vip=f"20.20.20.{i}", ports="[1-65535]") for i in range(8)}
    loaded = load(write({**files, "z.yaml": pool()}))
    assert [(d.span.file, d.rule) for d in loaded.diagnostics] == [("4.yaml", "too-many-ports")]


def test_alias_bomb_is_refused(write):
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert rules_of(load(write({"a.yaml": "l0: &l0 [x]\n" + levels}))) == ["yaml-anchor"]


def test_depth_of_ten_thousand_is_refused(write):
    indented = "\n".join(" " * i + "a:" for i in range(3_000))
    texts = ("[" * 10_000, "{a: " * 10_000, "- " * 10_000, "? " * 10_000, indented)
    loaded = load(write({f"{i}.yaml": text for i, text in enumerate(texts)}))
    assert rules_of(loaded) == ["yaml-depth", "yaml-depth", "yaml-depth", "yaml-key", "yaml-depth"]


VALID = (service(more="protocol: tcp, mode: nat, algorithm: source-hash, targetPort: 80") + pool() + node()).encode()
mutations = st.lists(
    st.tuples(st.integers(0, len(VALID)), st.integers(0, 12), st.binary(max_size=6) | st.sampled_from(
        [b"\n", b"  ", b"\t", b"- ", b": ", b"{", b"}", b"[", b"]", b"'", b"&a ", b"*a", b"---\n", b"null", b"-1"]
    )),
    min_size=1, max_size=6,
)  # fmt: skip


def mutated(changes):
    content = VALID
    for at, length, replacement in changes:
        content = content[:at] + replacement + content[at + length :]
    return content


@settings(deadline=None, max_examples=300, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.one_of(st.binary(), mutations.map(mutated)))
def test_no_content_raises(write, content):
    loaded = load(write({"a.yaml": content}))
    assert (loaded.fleet is None) <= bool(loaded.diagnostics)
    lines = render_text(loaded.diagnostics, loaded.texts).split("\n")
    assert all(line.isprintable() or line.replace("\t", "").isprintable() for line in lines)
    assert json.loads(render_json(loaded.diagnostics))["valid"] is (loaded.fleet is not None)


@settings(deadline=None, max_examples=100, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(fleets())
def test_every_fleet_can_be_written_as_manifests(write, fleet):
    loaded = load(write({"all.yaml": as_text(fleet)}))
    for kind in ("services", "pools", "nodes"):
        assert [*getattr(loaded.fleet, kind)] == sorted(getattr(fleet, kind), key=lambda item: item.name)


def test_what_a_file_may_hold_is_not_given_anew_behind_each_broken_document(monkeypatch):
    """Each value costs memory until the whole file is checked."""
    monkeypatch.setattr(document_module, "MAX_EVENTS", 1_000)
    text = "---\na: [" + "1, " * 300 + "]\n---\n]\n"
    documents = document_module.parse("a.yaml", text * 5)
    rules = [d.rule for document in documents for d in document.diagnostics]
    assert rules == ["yaml-syntax", "yaml-syntax", "yaml-syntax", "source-too-large"]
    assert sum(len(document.root["a"]) for document in documents if document.root) == 900


def test_endpoints_of_all_pools_are_bounded(write, monkeypatch):
    monkeypatch.setattr(load_module, "MAX_ENDPOINTS", 3)
    files = {f"{i}.yaml": service(f"s{i}", vip=f"20.20.20.{i}", pool=f"p{i}") + pool(f"p{i}") for i in range(3)}
    assert load(write(files)).fleet is not None
    files["3.yaml"] = pool("p3", endpoints="{address: 10.2.0.1}, {address: 10.2.0.2}")
    loaded = load(write(files))
    assert [(d.span.file, d.rule) for d in loaded.diagnostics if d.severity == "error"] == [
        ("3.yaml", "source-too-large")
    ]


def test_what_is_too_long_to_be_searched_may_declare_anything(write, monkeypatch):
    """Looking for names in it would take more memory than the whole tree."""
    monkeypatch.setattr(document_module, "MAX_EVENTS", 1_000)
    monkeypatch.setattr(checked_module.schema, "MAX_SEARCHED", 2_000)
    long = "a: [" + "1, " * 2_000 + "]\n"
    assert rules_of(load(write({"all.yaml": service(), "b.yaml": long}))) == ["source-too-large"]
