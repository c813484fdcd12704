# SPDX-License-Identifier: Apache-2.0
"""Every output for machines has a version and is as its schema says; and the group's members get the same as root."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource

from reconciler.readings.rows import ROWS
from tests.cli.conftest import CHECKOUT, NETNS

pytestmark = pytest.mark.kernel

SCHEMAS = CHECKOUT / "schema" / "output"
GROUP = "nogroup"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
STRANGER = ("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups")
CALLS = """
import contextlib, io, json, sys
from reconciler.cli.main import main
told = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    told.append([code, out.getvalue(), err.getvalue()])
json.dump(told, sys.__stdout__)
"""
"""Several calls in one process, which starts once."""
CHECKED = """
  healthCheck: {type: tcp, interval: 1s, timeout: 500ms}
"""


def validator(name):
    contents = {path.name: json.loads(path.read_text()) for path in SCHEMAS.iterdir()}
    registry = Registry().with_resources((key, Resource.from_contents(value)) for key, value in contents.items())
    jsonschema.Draft202012Validator.check_schema(contents[name])
    return jsonschema.Draft202012Validator(contents[name], registry=registry)


def calls(where, every, prefix=()):
    """Exit code, output and complaints of each call."""
    words = json.dumps([[*map(str, where), *map(str, call)] for call in every])
    done = subprocess.run([*prefix, sys.executable, "-c", CALLS, words], cwd=CHECKOUT, capture_output=True, text=True,
                          timeout=120, check=True, stdin=subprocess.DEVNULL)  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture
def node(lbctl, manifests):
    """A node with an agent, an unanswered check, a drain and a change of a ring; what it is asked with."""
    pools = manifests / "pools.yaml"
    pools.write_text(pools.read_text().replace("spec:\n", f"spec:{CHECKED}", 1))
    command = [sys.executable, "-m", "reconciler.cli.main", "--netns", NETNS, "--run-dir", lbctl.run_dir, "run",
               manifests, "--group", GROUP]  # fmt: skip
    agent = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        lbctl("status", "--wait", "synced", "--timeout", "1m")
        # Forced, since checks may have found all endpoints down by now.
        lbctl("drain", "10.2.0.12", "--reason", "a test", "--for", "1h", "--force")
        yield lbctl
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(timeout=60)


def test_every_verb_says_its_version_and_keeps_to_its_schema(node, manifests):
    verbs = {
        "status -o json": "status", "history -o json": "history", "history --json --last 1": "history",
        f"plan {manifests} -o json": "plan", f"plan {manifests} --live empty --format json": "plan",
        f"plan {manifests} --target service/web -o json": "plan",
        "explain 198.51.100.7:40000 20.20.20.1:80 -o json": "explain",
        "explain --proto icmp 198.51.100.7 20.20.20.1 -o json": "explain",
        **{f"get {what} -o json": "get" for what in ROWS if what != "history"},
        "get health --history -o json": "get",
    }  # fmt: skip
    names = {path.name.partition(".")[0]: path.name for path in SCHEMAS.iterdir()}
    filled = set()
    where = ("--netns", NETNS, "--run-dir", node.run_dir)
    answers = calls(where, [words.split() for words in verbs])
    for (words, name), (code, out, err) in zip(verbs.items(), answers, strict=True):
        assert code == 0, (words, err)
        told = json.loads(out)
        validator(names[name]).validate(told)
        assert told["format_version"]
        if told.get("items"):
            filled.add(told["kind"])
    assert {"services", "endpoints", "health", "drains", "checker"} <= filled
    for line in node("events", "-o", "json", "--last", "50").splitlines():
        validator(names["event"]).validate(json.loads(line))
    (manifests / "nodes.yaml").write_text((manifests / "nodes.yaml").read_text().replace("back", "wrong"))
    found = json.loads(node("doctor", manifests, "-o", "json", code=8))
    validator(names["doctor"]).validate(found)
    assert found["findings"]


def test_what_an_agent_reads_for_others_imports_nothing_anew(node):
    code = """
import sys
from reconciler.cli import forked
from reconciler.cli.main import main
forked.load()
known = set(sys.modules)
assert main(sys.argv[1:]) == 0
print(*sorted(set(sys.modules) - known), file=sys.stderr)
"""
    for words in (*(f"get {what}" for what in ROWS if what != "history"), "get health --history"):
        where = ["--netns", NETNS, "--run-dir", node.run_dir, *words.split(), "-o", "json"]
        done = subprocess.run([sys.executable, "-c", code, *where], cwd=CHECKOUT, capture_output=True, text=True,
                              timeout=120, check=True)  # fmt: skip
        assert (words, done.stderr.split()) == (words, [])


def test_members_of_the_group_read_and_change_nothing(netns, manifests):
    directory = Path(tempfile.mkdtemp(prefix="lbcli-"))
    directory.chmod(0o755)
    command = [sys.executable, "-m", "reconciler.cli.main", "--run-dir", directory, "--instance", netns,
               "--netns", netns, "run", manifests, "--group", GROUP]  # fmt: skip
    agent = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    reading = [("get", "services"), ("get", "endpoints", "-o", "json"), ("history",), ("status",), ("events",),
               ("metrics",)]  # fmt: skip
    changing = [("pause", "--reason", "x"), ("apply", manifests, "--auto-approve"), ("delete",),
                ("drain", "10.2.0.11"), ("drain", "--balancer"), ("undrain", "10.2.0.11"),
                ("resume",), ("rollback", "--auto-approve"), ("run", manifests), ("top",),
                ("watch", "flow", "10.1.0.1")]  # fmt: skip
    where = ("--run-dir", directory, "--instance", netns)
    try:
        [(code, _, err)] = calls(where, [("status", "--wait", "synced", "--timeout", "1m")])
        assert code == 0, err
        mine, roots = calls(where, reading, NOBODY), calls((*where, "--netns", netns), reading)
        assert [code for code, _, _ in mine] == [0] * len(reading), mine
        assert [out for _, out, _ in mine[:3]] == [out for _, out, _ in roots[:3]]
        assert "20.20.20.1:80/tcp" in mine[0][1]
        assert "lbctl_packets_total" in mine[-1][1]
        held = calls((*where, "--netns", netns), [("history",), ("pause", "--reason", "a test"), ("status", "--json")])
        for words, (code, _, err) in zip(changing, calls(where, changing, NOBODY), strict=True):
            assert code == 1 and "root" in err, (words, err)
        [(code, _, err)] = calls(where, [("confirm",)], NOBODY)
        assert code == 1
        after = calls((*where, "--netns", netns), [("history",), ("status", "--json"), ("resume",)])
        assert after[0] == held[0] and "a test" in json.loads(after[1][1])["paused"]
        [(code, _, err)] = calls(where, reading[:1], STRANGER)
        assert code == 1
        assert "may not ask the agent" in err
        assert calls((*where, "--netns", netns), reading[:1])[0] == roots[0]
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(timeout=60)
        calls((*where, "--netns", netns), [("delete", "--auto-approve")])
        shutil.rmtree(directory, ignore_errors=True)
