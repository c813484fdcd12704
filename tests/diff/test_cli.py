# SPDX-License-Identifier: Apache-2.0
"""`lbctl diff` as users and CI call it, on real repositories."""

import json
import os
import subprocess
import sys
from pathlib import Path

from reconciler.config import load
from tests.config.manifests import node, pool, service

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent

WEB = "{address: 10.2.0.11, port: 8080, weight: 2}, {address: 10.2.0.12, port: 8080}, {address: 10.2.0.13, port: 8080}"
NETWORKS = "{name: front, addresses: [10.1.0.1/24]}, {name: back, addresses: [10.2.0.1/24]}"
LB1 = node("lb1", interfaces=NETWORKS)
FILES = {
    "services.yaml": service("web") + service("api", vip="20.20.20.2", pool="api"),
    "pools.yaml": pool("web", endpoints=WEB) + pool("api", endpoints="{address: 10.2.0.21}"),
    "nodes.yaml": LB1 + node("lb2", interfaces=NETWORKS.replace(".0.1/", ".0.2/")),
}
LIGHTER = {"pools.yaml": FILES["pools.yaml"].replace("weight: 2", "weight: 1")}
ONE_WEIGHT = """\
HEAD~1..HEAD: 1 pool changed, 1 service affected on 2 nodes
  ~ pool web                                      pools.yaml:2
      ~ endpoint 10.2.0.11:8080  weight 2 -> 1
        service web (20.20.20.1:80/tcp): 16.7% of new connections move; open connections stay
  nodes lb1, lb2: Plan: 0 to add, 1 to change, 0 to remove.
"""


def test_a_changed_weight_reads_so(repository, diff):
    repository.commit(FILES)
    repository.commit(LIGHTER)
    assert diff("HEAD~1..HEAD") == (1, ONE_WEIGHT, "")


def test_one_weight_among_a_thousand_services_is_the_one_change(repository, diff, monkeypatch):
    def files(i):
        network = f"10.{32 + (i >> 6)}.{i & 63}"
        endpoints = f"{{address: {network}.1, weight: 2}}, {{address: {network}.2}}"
        vip = f"20.20.{i >> 8}.{i & 255}"
        return service(f"s{i}", vip=vip, pool=f"s{i}") + pool(f"s{i}", endpoints=endpoints)

    checked = []
    check_file = load.check_file
    monkeypatch.setattr(load, "check_file", lambda file, former: checked.append(file.name) or check_file(file, former))
    repository.commit({"nodes.yaml": node(), **{f"s{i}.yaml": files(i) for i in range(1000)}})
    repository.commit({"s500.yaml": files(500).replace("weight: 2", "weight: 3")})
    code, out, _ = diff("HEAD~1..HEAD")
    assert code == 1
    assert out.splitlines()[1:] == [
        "  ~ pool s500                                     s500.yaml:7",
        "      ~ endpoint 10.39.52.1  weight 2 -> 3",
        "        service s500 (20.20.1.244:80/tcp): 8.3% of new connections move; open connections stay",
        "  node lb1: Plan: 0 to add, 1 to change, 0 to remove.",
    ]
    assert len(checked) == 1002  # every content once: 1,001 files, and the one that changed


def test_moved_files_another_order_and_comments_are_no_difference(repository, diff):
    repository.commit(FILES)
    *first, last = WEB.split("}, ")
    reversed_ = ", ".join([last, *(f"{item}}}" for item in first[::-1])])
    repository.commit({
        "services.yaml": None, "pools.yaml": None,
        "all/web.yaml": "# moved\n" + pool("api", endpoints="{address: 10.2.0.21}"),
        "all/more.yaml": service("api", vip="20.20.20.2", pool="api"),
        "all/api.yaml": service("web", more="algorithm: round-robin") + pool("web", endpoints=reversed_),
    })  # fmt: skip
    assert diff("HEAD~1") == (0, "HEAD~1..HEAD: no differences\n", "")


def test_a_renamed_pool_is_shown_as_that(repository, diff):
    repository.commit(FILES)
    repository.commit({
        "pools.yaml": FILES["pools.yaml"].replace("name: web", "name: www"),
        "services.yaml": FILES["services.yaml"].replace("pool: web", "pool: www"),
    })  # fmt: skip
    code, out, _ = diff("HEAD~1..HEAD")
    assert (code, out) == (1, """\
HEAD~1..HEAD: 1 pool renamed; no traffic moves
  ~ pool web -> www (renamed)                     pools.yaml:2
  nodes lb1, lb2: Plan: 1 to add, 1 to change, 1 to remove.
""")  # fmt: skip


def test_nodes_that_come_and_go_are_told(repository, diff):
    repository.commit(FILES)
    repository.commit({"nodes.yaml": LB1 + node("lb3", interfaces="{name: front}, {name: back}")})
    code, out, _ = diff("HEAD~1..HEAD")
    assert code == 1
    assert "1 node added, 1 node removed" in out
    assert "  + node lb3                                      nodes.yaml:7\n      + interface front\n" in out
    assert "  - node lb2                                      HEAD~1:nodes.yaml:7\n" in out
    assert "  node lb3 (new): Plan: " in out
    assert "  node lb2 (removed): it keeps what it was last asked for" in out


def test_services_that_go_end_connections_and_the_headline_says_so(repository, diff):
    repository.commit(FILES)
    repository.commit({"services.yaml": service("api", vip="20.20.20.2", pool="api"),
                       "pools.yaml": pool("api", endpoints="{address: 10.2.0.21}")})  # fmt: skip
    _, out, _ = diff("HEAD~1..HEAD")
    assert out.startswith(
        "HEAD~1..HEAD: 1 service removed, 1 pool removed, 1 service affected on 2 nodes; open connections end\n"
        "  - service web                                   HEAD~1:services.yaml:2\n"
        "        service web (20.20.20.1:80/tcp): connections on it end\n"
    )


def test_one_node_is_shown_with_its_whole_plan(repository, diff):
    repository.commit(FILES)
    repository.commit(LIGHTER)
    code, out, _ = diff("HEAD~1..HEAD", "--node", "lb2")
    assert code == 1
    assert "  node lb2: Plan: 0 to add, 1 to change, 0 to remove.\n    ~ ring web/round-robin" in out
    assert "lb1" not in out
    repository.commit({"nodes.yaml": FILES["nodes.yaml"] + node("lb3", interfaces="{name: front}")})
    assert diff("HEAD~1..HEAD", "--node", "lb2")[:2] == (0, "HEAD~1..HEAD: no differences\n")
    code, _, err = diff("HEAD~1..HEAD", "--node", "lb22")
    assert code == 2
    assert "did you mean 'lb2'?" in err


def test_json_holds_everything(repository, diff):
    old = repository.commit({f"conf/{name}": text for name, text in FILES.items()})
    new = repository.commit({"conf/pools.yaml": LIGHTER["pools.yaml"]})
    code, out, _ = diff("HEAD~1..HEAD", "conf", "--format", "json")
    assert code == 1
    found = json.loads(out)
    assert found["from"] == {"revision": "HEAD~1", "commit": old}
    assert found["to"] == {"revision": "HEAD", "commit": new}
    assert found["path"] == "conf"
    assert found["summary"] == "1 pool changed, 1 service affected on 2 nodes"
    [change] = found["changes"]
    told = {key: change[key] for key in ("kind", "name", "action", "origin")}
    assert told == {"kind": "pool", "name": "web", "action": "update", "origin": "pools.yaml:2"}
    assert change["items"][0]["fields"] == [{"name": "weight", "before": "2", "after": "1"}]
    assert found["traffic"] == [{
        "service": "web", "at": "20.20.20.1:80/tcp", "nodes": ["lb1", "lb2"], "moved_share": 0.166667,
        "effect": "16.7% of new connections move; open connections stay", "connections_end": False,
    }]  # fmt: skip
    assert [(n["name"], n["plan"]["change"], n["plan"]["resource_changes"][0]["address"]) for n in found["nodes"]] == [
        ("lb1", 1, "ring web/round-robin"), ("lb2", 1, "ring web/round-robin")
    ]  # fmt: skip


def test_markdown_is_as_expected(repository, diff):
    """After a change of form: LBCTL_WRITE_EXPECTED=1 pytest tests/diff/test_cli.py, and read the diff."""
    repository.commit(FILES)
    repository.git("checkout", "-q", "-b", "feature")
    repository.commit({
        "pools.yaml": pool("web", endpoints="{address: 10.2.0.11, port: 8080, state: disabled}, {address: 10.2.0.14}"),
        "services.yaml": service("web") + service("new", vip="20.20.20.3", more="targetPort: 8080"),
        "nodes.yaml": node("lb1", interfaces=NETWORKS, more="undefinedTraffic: pass"),
    })  # fmt: skip
    code, out, _ = diff("main...feature", "--format", "markdown")
    assert code == 1
    out = out.replace(repository.git("merge-base", "main", "feature")[:12], "MERGE-BASE")
    expected = HERE / "merge-request.md"
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        expected.write_text(out)
    assert out == expected.read_text()


def test_markdown_fits_into_a_comment(repository, diff):
    repository.commit({"nodes.yaml": node(), "pools.yaml": pool(endpoints="{address: 10.2.0.11}")})
    many = "".join(service(f"s{i}", vip=f"20.20.{i >> 8}.{i & 255}") for i in range(1, 1000))
    repository.commit({"services.yaml": many})
    _, out, _ = diff("HEAD~1..HEAD", "--format", "markdown")
    assert 55_000 < len(out) < 65_536
    assert " more lines are not shown)\n```\n\n</details>\n" in out


def test_markdown_without_differences_has_nothing_to_fold(repository, diff):
    repository.commit(FILES)
    assert diff("HEAD", "--format", "markdown") == (0, "**lbctl diff `HEAD..HEAD`**: no differences\n", "")


def test_three_dots_leave_out_what_the_other_branch_did(repository, diff):
    repository.commit(FILES)
    repository.git("checkout", "-q", "-b", "feature")
    repository.commit(LIGHTER)
    repository.git("checkout", "-q", "main")
    repository.commit({"services.yaml": service("web"), "pools.yaml": pool("web", endpoints=WEB)})
    assert diff("main...feature")[1] == ONE_WEIGHT.replace("HEAD~1..HEAD", "main...feature")
    assert "1 service added" in diff("main..feature")[1]


def test_invalid_manifests_are_shown_with_their_revision(repository, diff):
    repository.commit(FILES)
    repository.commit({"services.yaml": FILES["services.yaml"].replace("pool: api", "pool: apis")})
    code, out, err = diff("HEAD~1..HEAD")
    assert (code, out) == (3, "")
    assert "HEAD:services.yaml:10:44: error: there is no Pool named 'apis' [service-pool-missing]" in err
    assert "spec: {vip: 20.20.20.2, ports: [80], pool: apis}" in err
    assert "error: the manifests of HEAD are not valid" in err
    assert "HEAD~1:" not in err
    assert "warning" not in err


def test_warnings_are_shown_that_the_new_revision_brings_and_what_was_not_read(repository, diff):
    inner = repository.commit({**FILES, "spare.yaml": pool("spare", endpoints="")})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{inner},modules/inner")
    repository.git("commit", "-q", "-m", "submodule")
    (repository.root / "modules" / "inner").mkdir(parents=True)  # so that it is not removed again
    repository.commit({**LIGHTER, "spare.yaml": None, "moved.yaml": "# moved\n" + pool("spare", endpoints="")})
    repository.commit({"other.yaml": pool("other", endpoints="")})

    def warned(range_):
        _, _, err = diff(range_)
        return [line.split(": warning")[0] for line in err.splitlines() if ": warning" in line]

    assert warned("HEAD~2..HEAD~1") == ["HEAD~1:modules/inner"]
    assert warned("HEAD~1..HEAD") == ["HEAD:modules/inner", "HEAD:other.yaml:4:18", "HEAD:other.yaml:5:19"]
    assert warned("HEAD~2..HEAD~3") == ["HEAD~2:modules/inner"]


def test_what_can_not_be_compared_is_wrong_usage(repository, diff, tmp_path):
    repository.commit(FILES)
    code, out, err = diff("main..nowhere")
    assert (code, out) == (2, "")
    assert "there is no revision 'nowhere' in this repository" in err
    assert diff("HEAD", str(tmp_path))[0] == 2
    assert diff("HEAD", "nowhere")[0] == 2


def test_the_whole_directory_may_come_or_go(repository, diff):
    repository.commit({"README": "nothing yet"})
    repository.commit({f"conf/{name}": text for name, text in FILES.items()})
    code, out, err = diff("HEAD~1..HEAD", "conf")
    assert code == 1
    assert "HEAD~1..HEAD: 2 services added, 2 pools added, 2 nodes added" in out
    assert "HEAD~1:conf: warning: there is no manifest" in err
    assert "2 services removed, 2 pools removed, 2 nodes removed" in diff("HEAD..HEAD~1", "conf")[1]


def test_templates_are_rendered_for_an_environment(repository, diff):
    template = FILES["pools.yaml"].replace("weight: 2", "weight: {{ weight }}")
    repository.commit({**FILES, "pools.yaml": "---", "pools.yaml.j2": template,
                       "environments/prod.yaml": "weight: 2", "environments/test.yaml": "weight: 1"})  # fmt: skip
    repository.commit({"environments/prod.yaml": "weight: 1"})
    assert diff("HEAD~1..HEAD", "--env", "prod")[:2] == (1, ONE_WEIGHT.replace("pools.yaml:2", "pools.yaml.j2:2"))
    assert diff("HEAD~1..HEAD", "--env", "test")[:2] == (0, "HEAD~1..HEAD: no differences\n")
    assert diff("HEAD~1..HEAD")[0] == 3


def test_a_dirty_checkout_is_neither_compared_nor_touched(repository, diff):
    repository.commit(FILES)
    repository.commit(LIGHTER)
    (repository.root / "pools.yaml").write_text("not: {valid")
    (repository.root / "new.yaml").write_text("also not valid: [")
    (repository.root / "nodes.yaml").unlink()
    (repository.root / "staged.yaml").write_text("staged")
    repository.git("add", "staged.yaml")

    def state():
        files = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in repository.root.rglob("*") if p.is_file()}
        return files, repository.git("--no-optional-locks", "status", "--porcelain", "--branch")

    before = state()
    assert diff("HEAD~1..HEAD")[:2] == (1, ONE_WEIGHT)
    assert state() == before


def test_a_repair_is_compared_with_the_last_state_that_was_valid(repository, diff):
    repository.commit(FILES)
    valid = repository.commit({"README.md": "text"})
    repository.commit({"pools.yaml": "not: a manifest\n"})
    repository.git("tag", "broken", repository.commit({"README.md": "another"}))
    repository.commit(LIGHTER)
    code, out, err = diff("broken..HEAD")
    assert code == 1
    first, *rest = out.splitlines()
    assert first.startswith("broken (not valid, so ")
    assert first.endswith(ONE_WEIGHT.splitlines()[0].removeprefix("HEAD~1"))
    used = first.split()[4]
    assert used == valid[:12]
    assert rest == ONE_WEIGHT.splitlines()[1:]
    assert "broken:pools.yaml:1:1: error" in err
    assert f"broken is not valid; compared with {used} before it" in err


def test_where_nothing_was_ever_valid_everything_is_new_but_a_shallow_clone_can_not_tell(repository, diff, tmp_path):
    repository.commit(FILES | {"pools.yaml": "not: a manifest\n"})
    repository.commit(FILES)
    code, out, _ = diff("HEAD~1")
    assert code == 1
    added = "2 services added, 2 pools added, 2 nodes added"
    assert out.startswith(f"HEAD~1 (not valid, so nothing before it)..HEAD: {added}")
    repository.commit({"pools.yaml": "broken"})
    repository.commit(FILES)
    shallow = tmp_path / "shallow"
    repository.git("clone", "-q", "--depth=2", f"file://{repository.root}", str(shallow))
    code, _, err = diff("HEAD~1..HEAD", str(shallow))
    assert code == 3
    assert "git fetch --unshallow" in err


def test_an_edited_work_tree_is_not_passed_over_in_silence(repository, diff):
    repository.commit(FILES)
    repository.commit(LIGHTER)
    assert diff("HEAD~1")[2] == ""
    (repository.root / "pools.yaml").write_text(FILES["pools.yaml"])
    (repository.root / "new.yaml").write_text("# nothing yet\n")
    for revisions in ("HEAD~1", "HEAD", "HEAD~1..", "HEAD~1..HEAD"):
        assert "not in HEAD, and so not compared: new.yaml, pools.yaml" in diff(revisions)[2]
    assert diff("HEAD~1..main")[2] == ""


def test_trouble_is_never_taken_for_differences(repository, diff, monkeypatch):
    from reconciler.errors import LbctlError

    def fail(*_):
        raise LbctlError("something is wrong")

    repository.commit(FILES)
    monkeypatch.setattr("reconciler.diff.fleet.compare", fail)
    assert diff("HEAD")[0] == 3


def test_ci_needs_no_power_over_the_kernel_and_no_bcc(repository):
    repository.commit(FILES)
    repository.commit(LIGHTER)
    code = (
        "import sys; from reconciler.cli.main import main; code = main(['diff', 'HEAD~1', sys.argv[1]]);"
        "print(code, sorted({'bcc', 'pyroute2', 'watchdog', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+dac_override",
         sys.executable, "-c", code, repository.root], cwd=CHECKOUT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "1 []", done.stdout + done.stderr


def test_help_has_examples_and_exit_codes():
    done = subprocess.run(
        [sys.executable, "-m", "reconciler.cli.main", "diff", "--help"], cwd=CHECKOUT, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert "A...B" in done.stdout
    assert "exit codes: 0 no differences, 1 differences" in done.stdout
