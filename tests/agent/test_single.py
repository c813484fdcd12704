# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from reconciler.agent.single import only_agent
from reconciler.errors import LbctlError
from reconciler.kernel.instance import AGENT_LOCK


def test_a_second_agent_is_refused_and_told_who_the_first_is(tmp_path):
    (tmp_path / "lb1").mkdir()
    (tmp_path / "lb1" / AGENT_LOCK).write_text("1234567890\n")  # of one that ended long ago
    with only_agent(tmp_path / "lb1"):
        second = only_agent(tmp_path / "lb1")
        with pytest.raises(LbctlError, match=f"lb1 already: pid {os.getpid()}\n") as caught:
            second.__enter__()
    assert "--instance" in caught.value.hint


def test_the_place_is_free_again_after_the_first(tmp_path):
    for _ in range(2):
        with only_agent(tmp_path):
            pass


def test_instances_do_not_hinder_each_other(tmp_path):
    with only_agent(tmp_path / "lb1"), only_agent(tmp_path / "lb2"):
        pass
