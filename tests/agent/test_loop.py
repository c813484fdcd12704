# SPDX-License-Identifier: Apache-2.0
"""The agent's promises, round by round: real manifests, a kernel in memory, a clock that the test moves."""

import fcntl
import random
import re
from dataclasses import replace

import pytest

from reconciler.agent.fights import FIGHT, PAUSE_S
from reconciler.agent.loop import FIRST_RETRY_S, LAST_RETRY_S
from reconciler.agent.wake import Doorbell, Wake
from reconciler.config.rest import SECOND_LOOK_S
from reconciler.config.source import read_tree
from reconciler.dataplane.layout import ENDPOINTS, RINGS, SERVICES
from reconciler.errors import KernelError
from reconciler.kernel.objects import Neighbour
from reconciler.lock import apply_lock
from reconciler.reconcile import RECORD
from reconciler.render.style import Style
from reconciler.resource import Key
from tests.agent.conftest import POOLS, RESYNC_S, Node, edit

BROKEN = {
    "bad indentation": ("pools.yaml", "  endpoints:\n", "   endpoints:\n  oops: 1\n", "pools.yaml:6"),
    "unknown key": ("pools.yaml", "weight: 2", "wieght: 2", "pools.yaml:6"),
    "half a file": ("pools.yaml", "8080}\n---", "80", "pools.yaml:"),
    "unknown pool": ("services.yaml", "pool: mail", "pool: male", "services.yaml:21"),
}


NEIGHBOUR = Neighbour("10.2.0.1", "back")


def published(kernel):
    return len(kernel.maps[SERVICES.name])


def spoil_a_service(kernel):
    """What somebody with bpftool may do."""
    kernel.maps[SERVICES.name].popitem()


# --- applying --------------------------------------------------------------------------------------------
def test_the_first_round_applies_everything_and_says_what_and_where(node):
    node.agent.round(Wake.TIME)
    told = node.told()
    assert published(node.kernel) == 2
    assert re.search(r"^\+ endpoint 10\.2\.0\.1:8080 pools\.yaml:6  manifests: [0-9a-f]{12}$", told, re.M)
    assert re.search(r"^\+ service 20\.20\.20\.1:80/tcp services\.yaml:1  manifests: [0-9a-f]{12}$", told, re.M)
    assert re.search(r"^Applied: \d+ added, \d+ changed, 0 removed in 0 ms\. Manifests [0-9a-f]{12}$", told, re.M)


def test_an_agent_that_starts_on_a_finished_node_writes_nothing_and_says_so(node, tmp_path):
    node.start()
    again = Node(node.directory, tmp_path / "run")
    again.share(node.kernel)
    again.agent.round(Wake.TIME)
    assert again.told() == "No changes. The node holds what the manifests say.\n"
    assert again.wrote() == []
    assert again.ready == 1


def test_nothing_is_written_or_said_when_nothing_changed(node):
    node.start()
    for _ in range(5):
        assert node.tick() == ""
        assert node.files_moved() == ""
    assert node.wrote() == []


def test_an_edited_weight_changes_exactly_one_ring(node):
    node.start()
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    told = node.files_moved()
    assert set(node.wrote()) <= {"update"}
    revision = read_tree(node.directory).digest[:12]
    change, applied = told.splitlines()
    assert change == (
        "~ ring web/round-robin pools.yaml:1  slots 3 -> 4  10.2.0.1:8080 66.7% -> 75.0%  10.2.0.2:8080 33.3% -> 25.0%"
        f"  traffic: 8.3% of new connections move; open connections stay  manifests: {revision}"
    )
    assert applied.startswith("Applied: 0 added, 1 changed") and applied.endswith(f"Manifests {revision}")


def test_on_a_terminal_a_change_takes_the_lines_that_it_needs(node):
    node.start()
    node.agent.report.style = Style(columns=80)
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    told = node.files_moved()
    assert told.splitlines()[0].endswith(" pools.yaml:1")
    assert "\n    10.2.0.1:8080  66.7% -> 75.0%\n    10.2.0.2:8080  33.3% -> 25.0%\n" in told
    assert "\n    traffic: 8.3% of new connections move; open connections stay\nApplied: 0 added, 1 changed" in told


def test_a_removed_service_is_removed(node):
    node.start()
    edit(node.directory / "services.yaml", "ports: [80]", "ports: [81]")
    told = node.files_rested()
    assert "- service 20.20.20.1:80/tcp" in told
    assert "+ service 20.20.20.1:81/tcp" in told


def test_files_that_are_on_their_way_remove_nothing(node):
    """Half a checkout is valid by itself: what is missing in it comes a moment later, by another name."""
    node.start()
    one, _, other = (node.directory / "services.yaml").read_text().partition("---\n")
    (node.directory / "services.yaml").write_text(one)
    assert "warning: no Service uses Pool 'mail'" in node.files_moved()
    (node.directory / "moved.yaml").write_text(other)
    assert node.files_rested() == "No changes. The node holds what the manifests say.\n"
    assert node.wrote() == []
    assert published(node.kernel) == 2


def test_files_that_are_broken_after_they_were_half_there_remove_nothing(node):
    node.start()
    services = node.directory / "services.yaml"
    one, _, other = services.read_text().partition("---\n")
    services.write_text(one)
    node.files_moved()
    services.write_text(one + "oops")
    node.files_rested()
    node.tick()
    assert node.wrote() == []
    services.write_text(one + "---\n" + other)
    assert "manifests: recovered" in node.files_rested()
    assert node.wrote() == []


def test_an_edit_does_not_wait_until_what_it_removes_may_go(node):
    node.start()
    edit(node.directory / "services.yaml", "ports: [80]", "ports: [81]")
    assert "+ service 20.20.20.1:81/tcp" in node.files_moved()
    assert published(node.kernel) == 3
    assert 0 < node.agent.next_look_s() <= SECOND_LOOK_S
    node.now += node.agent.next_look_s()
    node.agent.round(Wake.TIME)
    told = node.told()
    assert told.startswith("- service 20.20.20.1:80/tcp ")
    assert "\nApplied: 0 added, 0 changed, 1 removed" in told
    assert published(node.kernel) == 2


def test_an_agent_that_starts_into_half_a_checkout_removes_nothing(node, tmp_path):
    node.start()
    again = Node(node.directory, tmp_path / "run")
    again.share(node.kernel)
    one, _, other = (node.directory / "services.yaml").read_text().partition("---\n")
    (node.directory / "services.yaml").write_text(one)
    again.agent.round(Wake.TIME)
    (node.directory / "moved.yaml").write_text(other)
    again.files_rested()
    assert again.wrote() == []


def test_warnings_are_told_and_hold_nothing_up(node):
    edit(node.directory / "services.yaml", "pool: mail", "pool: web")
    node.agent.round(Wake.TIME)
    told = node.told()
    assert "pools.yaml:11:18: warning: no Service uses Pool 'mail'" in told
    assert "Applied" in told


# --- manifests that can't be had -------------------------------------------------------------------------
@pytest.mark.parametrize(("file", "old", "new", "where"), BROKEN.values(), ids=BROKEN)
def test_a_broken_edit_changes_nothing_and_is_told_once_with_its_line_and_its_repair_is_applied(
    node, file, old, new, where
):
    node.start()
    good = (node.directory / file).read_text()
    edit(node.directory / file, old, new)
    told = node.files_moved()
    assert where in told
    assert told.endswith("\n    the node is kept as it was last asked for\n")
    assert [node.tick(), node.files_moved(), node.tick()] == ["", "", ""]
    assert node.wrote() == []
    (node.directory / file).write_text(good.replace("weight: 2", "weight: 3"))
    told = node.files_moved()
    assert "manifests: recovered" in told
    assert ("~ ring web/round-robin" in told) == (file == "pools.yaml")


def test_another_problem_is_told(node):
    node.start()
    edit(node.directory / "pools.yaml", "weight: 2", "wieght: 2")
    assert "wieght" in node.files_moved()
    edit(node.directory / "pools.yaml", "wieght: 2", "wait: 2")
    told = node.files_moved()
    assert "wait" in told
    assert "recovered" not in told


def test_a_file_that_is_gone_in_the_middle_of_a_save_changes_nothing(node):
    node.start()
    (node.directory / "pools.yaml").unlink()
    assert "services.yaml:10" in node.files_moved()
    (node.directory / "pools.yaml").write_text(POOLS)
    assert "manifests: recovered" in node.files_moved()
    assert node.wrote() == []


def test_a_broken_directory_at_the_start_changes_nothing(node):
    good = (node.directory / "pools.yaml").read_text()
    (node.directory / "pools.yaml").write_text(good.replace("weight", "wieght"))
    node.agent.round(Wake.TIME)
    assert "nothing was changed" in node.told()
    assert node.tick() == ""
    assert (node.wrote(), node.ready) == ([], 0)
    (node.directory / "pools.yaml").write_text(good)
    assert "Applied" in node.files_moved()
    assert node.ready == 1


def test_while_the_manifests_are_broken_drift_is_mended_still(node):
    node.start()
    edit(node.directory / "pools.yaml", "weight: 2", "wieght: 2")
    node.files_moved()
    spoil_a_service(node.kernel)
    assert "drift" in node.tick()
    assert published(node.kernel) == 2


def test_a_node_that_the_manifests_no_longer_name_is_a_problem_and_no_removal(node):
    node.start()
    (node.directory / "node.yaml").unlink()
    told = node.files_moved()
    assert "the manifests declare no Node" in told
    assert "the node is kept as it was last asked for" in told
    node.tick()
    assert node.wrote() == []


def test_a_mistake_of_ours_while_loading_is_shown_and_drift_is_mended_still(node, monkeypatch):
    node.start()

    def load():
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("tests.agent.conftest.load", lambda directory: load())
        edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
        told = node.files_moved()
        assert "ZeroDivisionError: a bug" in told
        assert "test_loop.py" in told
        spoil_a_service(node.kernel)
        assert "drift" in node.tick()
    edit(node.directory / "pools.yaml", "weight: 3", "weight: 2")
    assert "manifests: recovered" in node.files_moved()


# --- nothing at all --------------------------------------------------------------------------------------
def test_manifests_without_any_service_are_refused_and_the_services_stay(node):
    node.start()
    (node.directory / "services.yaml").unlink()
    assert "--allow-empty" in node.files_moved()
    assert node.wrote() == []
    spoil_a_service(node.kernel)
    assert "drift" in node.tick()
    assert published(node.kernel) == 2


def test_services_that_somebody_else_made_are_not_all_removed_either(manifests, tmp_path):
    other = Node(manifests, tmp_path / "run")
    services = (manifests / "services.yaml").read_text()
    (manifests / "services.yaml").unlink()
    node = Node(manifests, tmp_path / "run")
    node.start()
    (manifests / "services.yaml").write_text(services)
    other.share(node.kernel)
    other.start()
    (manifests / "services.yaml").unlink()
    node.kernel.writes.clear()
    assert "--allow-empty" in node.tick()
    assert node.wrote() == []


def test_manifests_without_any_service_are_applied_where_that_is_allowed(manifests, tmp_path):
    node = Node(manifests, tmp_path / "run", allow_empty=True)
    node.start()
    (manifests / "services.yaml").unlink()
    assert "- service 20.20.20.1:80/tcp" in node.files_rested()
    assert published(node.kernel) == 0


# --- where the files are ---------------------------------------------------------------------------------
def test_a_change_that_no_event_told_of_is_found_at_the_next_tick(node):
    node.start()
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    assert "~ ring web/round-robin" in node.tick()


def test_a_swapped_link_is_followed(manifests, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in manifests.iterdir():
        (other / file.name).write_text(file.read_text().replace("weight: 2", "weight: 3"))
    link = tmp_path / "current"
    link.symlink_to(manifests)
    node = Node(link, tmp_path / "run")
    node.start()
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").rename(link)
    assert "~ ring web/round-robin" in node.files_moved()


def test_a_directory_that_is_gone_is_a_problem_until_it_is_there_again(node, tmp_path):
    node.start()
    node.directory.rename(tmp_path / "away")
    told = node.files_moved()
    assert str(node.directory) in told
    assert "Traceback" not in told
    assert node.tick() == ""
    (tmp_path / "away").rename(node.directory)
    assert "manifests: recovered" in node.files_moved()
    assert node.wrote() == []


def test_the_watch_is_armed_before_each_reading(node):
    node.start()
    before = node.watched
    node.files_moved()
    node.tick()
    assert node.watched == before + 2


def test_without_a_watch_the_timer_still_finds_changes(node):
    node.start()

    def watch(afresh):
        raise OSError(28, "No space left on device", str(node.directory))

    object.__setattr__(node.agent.manifests, "watch", watch)
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    told = node.tick()
    assert "watching: " in told
    assert "No space left on device" in told
    assert "Traceback" not in told
    assert "~ ring web/round-robin" in told


# --- drift -----------------------------------------------------------------------------------------------
def test_drift_is_mended_when_the_node_is_next_looked_at_and_is_called_drift(node):
    node.start()
    spoil_a_service(node.kernel)
    told = node.tick()
    assert re.match(r"\+ service 20\.20\.20\.2:25/tcp drift services\.yaml:12  manifests: \w+\nApplied: 1 added", told)
    assert node.wrote() == ["update", "update"]  # its front, then the service


def test_keys_that_somebody_names_are_looked_at_at_once_and_no_others(node):
    node.start()
    gone = sorted(node.kernel.vips)
    node.kernel.vips.clear()
    node.agent.round(Wake.KEYS, [Key("loopback", gone[0].address)])
    assert node.kernel.vips == {gone[0]}
    assert f"+ loopback {gone[0].address}" in node.told()
    node.tick()
    assert node.kernel.vips == set(gone)


def test_a_look_at_the_whole_node_makes_way_for_an_edit_and_goes_on(node):
    node.start()
    spoil_a_service(node.kernel)
    calls = iter([False, False, True])
    node.agent.upkeep.is_called = lambda: next(calls, False)
    assert node.tick() == ""
    assert node.agent.next_look_s() == 0
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    told = node.files_moved()
    assert told.index("~ ring web/round-robin") < told.index("+ service 20.20.20.2:25/tcp")
    assert node.agent.due == node.now + RESYNC_S


def test_another_process_that_applied_something_is_a_reason_to_look_at_everything(node):
    node.start()
    spoil_a_service(node.kernel)
    with (node.agent.instance_dir / RECORD).open("a") as file:
        file.write("\n[]")
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    assert "+ service 20.20.20.2:25/tcp" in node.files_moved()


def test_files_that_did_not_change_are_no_reason_to_look_at_the_node(node):
    node.start()
    spoil_a_service(node.kernel)
    assert node.files_moved() == ""
    assert node.wrote() == []


def test_the_time_between_two_looks_is_the_resync_time(node):
    node.start()
    assert node.agent.due == node.now + RESYNC_S


def test_a_fight_over_what_traffic_stands_on_is_shouted_about_and_never_rests(node):
    node.start()
    for _ in range(FIGHT):
        spoil_a_service(node.kernel)
        told = node.tick()
        assert "drift" in told
    assert "service 20.20.20.2:25/tcp: was removed by somebody else 5 times in 10 minutes; traffic stands on" in told
    for _ in range(FIGHT):
        spoil_a_service(node.kernel)
        assert "drift" in node.tick()
        assert published(node.kernel) == 2


def test_a_fight_over_what_traffic_does_not_stand_on_is_told_once_and_fought_slowly(node):
    edit(node.directory / "node.yaml", "name: back}", "name: back, addresses: [10.2.0.254/24]}")
    node.start()
    for _ in range(FIGHT):
        node.kernel.kept.remove(NEIGHBOUR)
        told = node.tick()
        assert "drift" in told
    assert "was removed by somebody else 5 times in 10 minutes; from now on it is set back once in" in told
    last = node.now
    node.kernel.kept.remove(NEIGHBOUR)
    assert node.tick() == ""
    kept = len(node.kernel.kept)
    node.now = node.agent.due = last + PAUSE_S
    node.agent.round(Wake.TIME)
    told = node.told()
    assert "drift" in told
    assert "somebody else" not in told
    assert len(node.kernel.kept) == kept + 1


def test_a_key_that_is_fought_over_does_not_keep_its_edit_waiting(node):
    node.start()
    for _ in range(FIGHT + 1):
        spoil_a_service(node.kernel)
        node.tick()
    spoil_a_service(node.kernel)
    node.kernel.fails = lambda: True
    edit(node.directory / "services.yaml", "source-hash", "round-robin")
    assert "injected fault" in node.files_rested()
    node.kernel.fails = lambda: False
    assert "+ service 20.20.20.2:25/tcp" in node.tick()


def test_drift_is_called_drift_even_where_the_record_was_lost_before_the_start(node, tmp_path):
    node.start()
    (tmp_path / "run" / RECORD).unlink()
    again = Node(node.directory, tmp_path / "run")
    again.share(node.kernel)
    again.agent.round(Wake.TIME)
    spoil_a_service(node.kernel)
    again.told()
    assert "drift" in again.tick()


# --- failures --------------------------------------------------------------------------------------------
def test_failed_changes_are_tried_again_ever_more_slowly_and_told_once(node):
    node.start()
    node.kernel.fails = lambda: True
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    told = node.files_moved()
    assert "node: ring web/round-robin: injected fault" in told
    assert "trying again" in told
    delays = []
    for _ in range(15):
        delays.append(node.agent.due - node.now)
        assert node.tick() == ""
    assert delays[:4] == pytest.approx([FIRST_RETRY_S * 2**i for i in range(4)])
    assert delays[-1] == min(LAST_RETRY_S, RESYNC_S)
    node.kernel.fails = lambda: False
    told = node.tick()
    assert "~ ring web/round-robin" in told
    assert "node: recovered" in told
    assert node.agent.due == node.now + RESYNC_S
    assert node.tick() == ""
    node.kernel.fails = lambda: True
    spoil_a_service(node.kernel)
    assert "injected fault" in node.tick()
    assert node.agent.due - node.now == pytest.approx(FIRST_RETRY_S)


def test_what_is_blocked_for_long_does_not_keep_the_rest_from_being_looked_at(node):
    node.kernel.foreign_vips["20.20.20.2"] = "address on eth0"
    node.start()
    for _ in range(15):
        node.tick()
    assert node.agent.due - node.now == RESYNC_S
    spoil_a_service(node.kernel)
    assert "drift" in node.tick()
    assert published(node.kernel) == 1


def test_what_the_manifests_ask_for_is_asked_again_where_it_could_not_be_told(node, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("reconciler.agent.loop.node_view", lambda *_: refuse())
        node.agent.round(Wake.TIME)
        assert "manifests: no buffer space" in node.told()
        assert node.tick() == ""
        assert node.agent.due - node.now == pytest.approx(2 * FIRST_RETRY_S)
    told = node.tick()
    assert "manifests: recovered" in told
    assert published(node.kernel) == 2
    assert node.agent.due == node.now + RESYNC_S


def refuse():
    raise KernelError("no buffer space")


def test_an_interface_that_is_gone_is_told_and_its_program_stays_where_it_is(node):
    """An interface that is renamed: its number, its program and its rows are the same."""
    node.start()
    kernel = node.kernel
    kernel.interfaces = ("front", "lan0")
    kernel.attached["lan0"] = replace(kernel.attached.pop("back"), interface="lan0")
    kernel.sysctls |= {n.replace("/back/", "/lan0/"): v for n, v in kernel.sysctls.items() if "/back/" in n}
    told = node.tick()
    assert "node: interface back: there is no interface back; there are: front, lan0" in told
    assert "xdp lan0: kept until there is interface back" in told
    assert set(kernel.attached) == {"front", "lan0"}
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    assert "~ ring web/round-robin" in node.files_moved()
    edit(node.directory / "node.yaml", "name: back", "name: lan0")
    assert "node: recovered" in node.files_moved()
    assert set(kernel.attached) == {"front", "lan0"}
    assert "detach" not in node.wrote()


def test_a_retry_does_not_come_early_because_files_moved(node):
    node.start()
    node.kernel.fails = lambda: True
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    node.files_moved()
    for _ in range(10):
        node.tick()
    due = node.agent.due
    node.kernel.fails = lambda: False
    assert node.files_moved() == ""
    assert node.agent.due == due


def test_new_manifests_are_tried_at_once_whatever_failed_before(node):
    node.start()
    node.kernel.fails = lambda: True
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    node.files_moved()
    for _ in range(10):
        node.tick()
    edit(node.directory / "pools.yaml", "weight: 3", "weight: 4")
    node.files_moved()
    assert node.agent.due - node.now == pytest.approx(FIRST_RETRY_S)


def test_a_kernel_that_can_not_be_read_ends_nothing(node, monkeypatch):
    def dump(map_name):
        raise KernelError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(node.kernel, "dump", dump)
        node.agent.round(Wake.TIME)
        assert "node: no memory" in node.told()
        delays = []
        for _ in range(5):
            delays.append(node.agent.due - node.now)
            assert node.tick() == ""
    assert delays == pytest.approx([FIRST_RETRY_S * 2**i for i in range(5)])
    assert "Applied" in node.tick()


def test_a_mistake_of_ours_ends_nothing_and_is_shown_with_its_place(node, monkeypatch):
    def dump(map_name):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(node.kernel, "dump", dump)
        node.agent.round(Wake.TIME)
        told = node.told()
        assert "ZeroDivisionError: a bug" in told
        assert "test_loop.py" in told
    assert "node: recovered" in node.tick()


def test_a_service_that_fails_is_named_and_the_other_goes_through(node):
    node.kernel.foreign_vips["20.20.20.1"] = "address on eth0"
    node.agent.round(Wake.TIME)
    told = node.told()
    assert "loopback 20.20.20.1: in the way: address on eth0" in told
    assert "+ loopback 20.20.20.2" in told
    assert "+ loopback 20.20.20.1" not in told
    assert node.ready == 1, "a restart by systemd would mend nothing"
    assert node.tick() == ""
    node.kernel.foreign_vips.clear()
    told = node.tick()
    assert "+ loopback 20.20.20.1" in told
    assert "node: recovered" in told
    assert node.ready == 1


def test_what_had_to_wait_for_something_that_failed_is_named_too(node, monkeypatch):
    update = node.kernel.update

    def refuse(map_name, rows):
        return [KernelError("full")] * len(rows) if map_name == ENDPOINTS.name else update(map_name, rows)

    monkeypatch.setattr(node.kernel, "update", refuse)
    node.agent.round(Wake.TIME)
    told = node.told()
    assert "endpoint 10.2.0.1:8080: full" in told
    assert "service 20.20.20.1:80/tcp: needs ring web/round-robin" in told


def test_what_could_not_be_undone_is_named(node, monkeypatch):
    node.start()
    update, delete = node.kernel.update, node.kernel.delete

    def refuse(map_name, keys):
        return [KernelError("stuck fast")] * len(keys) if map_name == RINGS.name else delete(map_name, keys)

    def refuse_services(map_name, rows):
        return [KernelError("full")] * len(rows) if map_name == SERVICES.name else update(map_name, rows)

    monkeypatch.setattr(node.kernel, "update", refuse_services)
    monkeypatch.setattr(node.kernel, "delete", refuse)
    edit(node.directory / "services.yaml", "source-hash", "round-robin")
    told = node.files_rested()
    assert "service 20.20.20.2:25/tcp: full" in told
    assert "ring mail/round-robin could not be undone: stuck fast" in told


def test_a_change_that_the_kernel_only_pretends_to_make_is_a_failure(node, monkeypatch):
    node.start()
    monkeypatch.setattr(node.kernel, "delete", lambda map_name, keys: [None] * len(keys))
    edit(node.directory / "services.yaml", "ports: [80]", "ports: [81]")
    told = node.files_rested()
    assert "+ service 20.20.20.1:81/tcp" in told
    assert "- service" not in told
    assert "node: service 20.20.20.1:80/tcp: reads back as" in told


def test_it_waits_while_somebody_else_applies(node, monkeypatch):
    monkeypatch.setattr("reconciler.agent.upkeep.apply_lock", lambda directory: apply_lock(directory, patience_s=0.0))
    lock = node.agent.instance_dir / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        node.agent.round(Wake.TIME)
        assert "another lbctl has been writing" in node.told()
        assert node.wrote() == []
    assert "Applied" in node.tick()


@pytest.mark.parametrize("seed", range(5))
def test_with_one_write_in_ten_failing_it_arrives_all_the_same(node, seed):
    chance = random.Random(seed)
    node.kernel.fails = lambda: chance.random() < 0.1
    node.agent.round(Wake.TIME)
    edit(node.directory / "services.yaml", "vip: 20.20.20.1", "vips: [20.20.20.1, 20.20.20.3, 20.20.20.4]")
    edit(node.directory / "pools.yaml", "weight: 2", "weight: 3")
    node.files_moved()
    for _ in range(50):
        node.tick()
    node.told()
    node.wrote()
    assert node.tick() == ""
    assert node.wrote() == []
    assert published(node.kernel) == 4


# --- waking, reloading, stopping -------------------------------------------------------------------------
def test_a_reload_looks_at_everything_and_tells_problems_again(node):
    node.start()
    edit(node.directory / "pools.yaml", "weight: 2", "wieght: 2")
    told = node.files_moved()
    assert node.tick() == ""
    spoil_a_service(node.kernel)
    node.now += 1.0
    node.agent.round(Wake.RELOAD)
    again = node.told()
    assert again.startswith(told)
    assert "drift" in again


def test_ready_comes_once_after_the_first_good_round(node):
    node.kernel.fails = lambda: True
    node.agent.round(Wake.TIME)
    assert node.ready == 0
    node.kernel.fails = lambda: False
    node.tick()
    node.tick()
    assert node.ready == 1


def test_run_waits_until_the_next_look_is_due_and_ends_at_the_stop_signal(node):
    node.wakes = iter([Wake.TIME, Wake.FILES, Wake.STOP])
    node.agent.run()
    assert node.waits == [RESYNC_S, RESYNC_S, RESYNC_S]
    assert published(node.kernel) == 2


def test_a_change_under_way_is_finished_before_the_stop(node):
    bell = Doorbell()
    node.agent.wait = bell.wait
    node.kernel.on_write = lambda: bell.ring(Wake.STOP)
    node.agent.run()
    assert published(node.kernel) == 2
    assert "Applied" in node.told()


def test_warnings_are_told_once_until_they_are_over(node):
    edit(node.directory / "node.yaml", "{name: front}", "{name: front, xdp: native}")
    node.kernel.veths["front"] = False
    node.agent.round(Wake.TIME)
    assert "warning: xdp front: front is a veth" in node.told()
    assert "warning" not in node.tick()
    node.kernel.veths["front"] = True
    assert node.tick() == ""
    node.kernel.veths["front"] = False
    assert "warning: xdp front" in node.tick()
