# SPDX-License-Identifier: Apache-2.0
"""Root beside an agent with a user of its own: it works as that user, and keeps its capabilities."""

import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from reconciler.cli.identity import take_on
from tests.cli import rights
from tests.cli.rights import effective

NOBODY = pwd.getpwnam("nobody")
TAKE_ON = """
import json, os, sys
from pathlib import Path
from reconciler import private
from reconciler.cli.identity import take_on
instance, secret = Path(sys.argv[1]), Path(sys.argv[2])
take_on(instance, sys.argv[3])
private.write(instance / "note", b"x")
capabilities = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff"))
print(json.dumps([os.geteuid(), capabilities, secret.read_text()]))
"""
START = """
import json, subprocess, sys
from pathlib import Path
from reconciler import children, notes
from reconciler.cli.identity import take_on
take_on(Path(sys.argv[1]), "nobody")
ours = subprocess.check_output(children.module("tests.cli.rights"), cwd=children.DIRECTORY, env=children.ENVIRONMENT)
theirs = children.run(children.script(sys.argv[2])).stdout
print(json.dumps([ours.decode().split(), theirs.decode().split(), notes.user()]))
"""


@pytest.fixture
def instance():
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "lba"


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@ROOT_ONLY
def test_root_takes_on_the_agents_user_and_can_do_as_much_as_before(instance):
    instance.mkdir(0o711)
    os.chown(instance, NOBODY.pw_uid, NOBODY.pw_gid)
    secret = instance.parent / "secret"
    secret.write_text("for root only")
    secret.chmod(0o600)
    command = [sys.executable, "-c", TAKE_ON, instance, secret]
    done = subprocess.run([*command, "nobody"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    uid, capabilities, read = json.loads(done.stdout)
    assert (uid, capabilities, read) == (NOBODY.pw_uid, effective(), "for root only")
    made = (instance / "note").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (NOBODY.pw_uid, NOBODY.pw_gid, 0o600)
    # A directory of any other user is refused, as ever.
    done = subprocess.run([*command, "root"], capture_output=True, text=True, timeout=60)
    assert "could have been written by somebody else" in done.stderr


@ROOT_ONLY
def test_what_such_a_process_starts_has_its_rights_and_is_written_down_as_its_callers(instance):
    """The compiler makes maps, the process that takes a change back changes the node, and templates are confined by
    giving up root for good."""
    instance.mkdir()
    os.chown(instance, NOBODY.pw_uid, NOBODY.pw_gid)
    command = [sys.executable, "-c", START, instance, rights.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"SUDO_USER": "eve"})
    assert done.returncode == 0, done.stderr
    ours, theirs, who = json.loads(done.stdout)
    assert ours == [str(NOBODY.pw_uid), effective()]
    assert theirs == ["0", effective()]
    assert who == "eve (sudo)"


def test_without_such_a_user_or_directory_nothing_happens(instance):
    before = os.getresuid()
    take_on(instance, "nobody")
    take_on(instance.parent, "no-such-user")
    take_on(instance.parent, "root")
    assert os.getresuid() == before
