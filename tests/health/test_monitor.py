# SPDX-License-Identifier: Apache-2.0
"""The whole of it in a world without sockets, whose clock goes by itself: edits, restarts, flaps, a lost uplink."""

import random
from dataclasses import replace
from heapq import heappop, heappush
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.health.monitor import Monitor
from reconciler.health.outcome import Outcome, Verdict, failed, not_checked, unreached
from reconciler.health.pool import Condition, members
from reconciler.health.row import Clocks, packed, unpacked
from reconciler.health.schedule import Schedule
from reconciler.health.state import Health, State, inherited
from reconciler.health.target import Target, Use
from reconciler.model import CheckType, Endpoint, HealthCheck, Pool
from reconciler.wish.known import Known
from reconciler.wish.wish import Wish, _Watched

CHECK = HealthCheck(CheckType.TCP)
ROOM = 4096


class World:
    """Servers by address, and how they answer: `u` well, `d` refused, `s` not at all."""

    def __init__(self, start_s=1000.0):
        self.now_s = start_s
        self.servers = {}
        self.checks = []
        self.ends = []

    def clock(self):
        return self.now_s

    def start(self, target, way=None):
        self.checks.append((self.now_s, target))
        answer = self.servers.get(target.address, "s")
        took_s = target.check.timeout_s if answer == "s" else 0.001
        heappush(self.ends, (self.now_s + took_s, len(self.checks), target, answer))

    def poll(self, timeout_s=0.0):
        until_s = self.now_s + max(timeout_s, 0.0005)
        self.now_s = min([until_s, *(max(self.now_s, end[0]) for end in self.ends[:1])])
        results = []
        while self.ends and self.ends[0][0] <= self.now_s:
            _, _, target, answer = heappop(self.ends)
            results.append((target, OUTCOMES[answer]))
        return results

    def monitor(self, known=None, lack=lambda target: ""):
        return Monitor(self, Schedule(b"lb1", random.Random(3)), known, clock=self.clock, lack_of_way=lack)


OUTCOMES = {
    "u": Outcome(Verdict.OK), "d": failed("refused"), "s": unreached("no answer within 1 s"),
    "n": not_checked("this node is out of file descriptors"),
}  # fmt: skip


def address(i):
    return ip_address("10.2.0.0") + i


def target(i, **changes):
    return Target(address(i), 80, replace(CHECK, **changes))


def use(i, pool="web"):
    return Use(pool, address(i), 80)


def web(*numbers, pool="web", **changes):
    return {use(i, pool): target(i, **changes) for i in numbers}


def run(world, monitor, for_s):
    """Transitions, and when they were."""
    found, end_s = [], world.now_s + for_s
    while world.now_s < end_s:
        found += [(world.now_s, item) for item in monitor.run(end_s - world.now_s)]
    return found


def health(monitor, i, **changes):
    return monitor.states[target(i, **changes)].health


def told(transitions):
    return [(item.target.address, item.after.health) for _, item in transitions]


def started(world, count=1, answer="u", for_s=10.0):
    """A monitor of so many servers after ten seconds."""
    world.servers |= {address(i): answer for i in range(count)}
    monitor = world.monitor()
    monitor.want(web(*range(count)), ROOM)
    run(world, monitor, for_s)
    return monitor


def test_one_check_on_the_wire_for_all_who_share_it():
    world = World()
    world.servers[address(1)] = "u"
    monitor = world.monitor()
    monitor.want({Use(f"pool{i}", address(1), 80): target(1) for i in range(50)}, ROOM)
    run(world, monitor, 100.0)
    assert 48 <= len(world.checks) <= 53


def test_a_dead_server_is_noticed_in_time():
    for answer, limit_s in (("s", 7.0), ("d", 4.0)):
        world = World()
        monitor = started(world)
        died_s, world.servers[address(0)] = world.now_s, answer
        ((when_s, item),) = run(world, monitor, 20.0)
        assert item.after.health is Health.DOWN
        assert when_s - died_s <= limit_s
        assert item.after.error == OUTCOMES[answer].error


def test_a_node_in_trouble_of_its_own_changes_nothing():
    world = World()
    monitor = started(world, 20)
    world.servers |= {address(i): "n" for i in range(20)}
    assert run(world, monitor, 60.0) == []
    assert {state.error for state in monitor.states.values()} == {"this node is out of file descriptors"}
    assert not monitor.is_suspect()


# What keepalived had to learn in public, one report each.

def test_check_edited_while_it_failed():
    """keepalived #106, #1163: a server whose failed check got another identity never came back."""
    world = World()
    monitor = started(world, 2)
    world.servers[address(0)] = "d"
    run(world, monitor, 10.0)
    monitor.want(web(0, 1, timeout_s=0.5), ROOM)
    assert health(monitor, 0, timeout_s=0.5) is Health.DOWN          # it isn't let in by the edit
    world.servers[address(0)] = "u"
    assert told(run(world, monitor, 10.0)) == [(address(0), Health.UP)]


def test_check_edited_so_that_it_fails():
    """keepalived #608: a check was changed, and the server stayed up for ever."""
    world = World()
    monitor = started(world, 2)
    monitor.want(web(0, 1, port=81), ROOM)
    assert health(monitor, 0, port=81) is Health.UP                  # no write to a ring for the edit
    world.servers[address(0)] = "d"
    assert told(run(world, monitor, 10.0)) == [(address(0), Health.DOWN)]


def test_failures_are_counted_over_edits_whatever_the_agent_knew():
    """It hears of transitions alone, so it knows nothing of streaks; and somebody may edit faster than checks fail."""
    world = World()
    monitor = started(world, 1)
    world.servers[address(0)] = "s"
    for number in range(12):
        edits = {use(0): target(0, fall=3, path=f"/{number}")}
        run(world, monitor, 1.3)
        monitor.edit(edits, {item: State(Health.UP, world.now_s) for item in edits.values()})
    assert health(monitor, 0, path="/11") is Health.DOWN


def test_the_agent_hears_of_what_was_found_while_its_edit_was_on_its_way():
    world = World()
    monitor = started(world, 2)
    before = monitor.states[target(0)]
    world.servers[address(0)] = "d"
    run(world, monitor, 10.0)
    edited = target(0, fall=2)
    monitor.edit({use(0): edited}, {edited: inherited(before)})
    assert [(item.target, item.after.health) for item in monitor.run(0.01)] == [(edited, Health.DOWN)]
    monitor.edit({use(1): target(1)}, {target(1): monitor.states[target(1)]._replace(health=Health.DOWN)})
    assert [(item.target, item.after.health) for item in monitor.run(0.01)] == [(target(1), Health.UP)]


def test_server_that_is_new_is_not_up_for_a_moment():
    """keepalived #1144, #1180: after a reload a new server was used before its first check."""
    world = World()
    monitor = started(world, 1)
    world.servers[address(1)] = "d"
    monitor.want(web(0, 1), ROOM)
    pool = Pool("web", (Endpoint(address(0)), Endpoint(address(1))), CHECK)

    def weights():
        return members(pool, [(monitor.states[target(i)],) for i in range(2)], world.now_s).weights

    assert weights() == (1, 0)
    end_s = world.now_s + 20
    while world.now_s < end_s:
        monitor.run(0.01)
        assert weights() == (1, 0)


def test_edit_during_the_first_round():
    """keepalived #373, #381: a reload before the first round was over left servers that nobody checked."""
    world = World()
    world.servers |= {address(i): "u" for i in range(20)}
    monitor = world.monitor()
    monitor.want(web(*range(20)), ROOM)
    run(world, monitor, 0.2)
    assert any(state.health is Health.UNKNOWN for state in monitor.states.values())
    monitor.want(web(*range(20), rise=3), ROOM)
    run(world, monitor, 5.0)
    assert {state.health for state in monitor.states.values()} == {Health.UP}


def test_removed_and_added_again_while_it_was_down():
    """keepalived #1165: it came back as up. Here it is unknown, and has to prove itself beside one that is up."""
    world = World()
    monitor = started(world, 2)
    world.servers[address(0)] = "d"
    run(world, monitor, 10.0)
    monitor.want(web(1), ROOM)
    assert target(0) not in monitor.states
    run(world, monitor, 1.0)
    monitor.want(web(0, 1), ROOM)
    assert health(monitor, 0) is Health.UNKNOWN
    assert told(run(world, monitor, 10.0)) == [(address(0), Health.DOWN)]


def test_removed_and_added_again_during_its_check():
    world = World()
    monitor = started(world, 1, answer="s", for_s=3.0)
    while not world.ends:
        monitor.run(0.01)
    monitor.want({}, ROOM)
    monitor.want(web(0), ROOM)
    flights = []
    end_s = world.now_s + 20
    while world.now_s < end_s:
        monitor.run(0.05)
        flights.append(len(world.ends))
    assert max(flights) == 1
    assert health(monitor, 0) is Health.DOWN


def test_same_server_in_two_pools():
    """keepalived #1171, #1182: taken out of one virtual server, it changed in the other."""
    world = World()
    world.servers |= {address(0): "d", address(1): "u"}
    monitor = world.monitor()
    both = web(0, 1) | web(0, 1, pool="other")
    monitor.want(both, ROOM)
    run(world, monitor, 10.0)
    monitor.want(web(0, 1, pool="other"), ROOM)
    assert (health(monitor, 0), health(monitor, 1)) == (Health.DOWN, Health.UP)
    monitor.want(both, ROOM)
    assert (health(monitor, 0), health(monitor, 1)) == (Health.DOWN, Health.UP)
    assert run(world, monitor, 10.0) == []


def test_one_of_two_pools_edits_its_check():
    """Each of them keeps what it knew; the one without an edit notices nothing at all."""
    world = World()
    monitor = started(world, 1)
    monitor.want(web(0) | web(0, pool="other"), ROOM)
    before = monitor.states[target(0)]
    monitor.want(web(0) | web(0, pool="other", fall=2), ROOM)
    assert monitor.states[target(0)] is before
    assert monitor.states[target(0, fall=2)] == inherited(before)
    monitor.want(web(0) | web(0, pool="other"), ROOM)
    assert set(monitor.states) == {target(0)}


def test_pools_of_different_opinion_get_the_same_check():
    """One pool's check failed, the other's didn't. Whoever serves goes on, and new answers decide."""
    world = World()
    monitor = world.monitor()
    world.servers[address(0)] = "u"
    monitor.want({use(0): target(0, port=1)}, ROOM)
    run(world, monitor, 5.0)
    world.servers[address(0)] = "d"
    monitor.want({use(0): target(0, port=1), use(0, "other"): target(0, port=2)}, ROOM)
    while health(monitor, 0, port=2) is Health.UNKNOWN:
        monitor.run(0.01)
    assert (health(monitor, 0, port=1), health(monitor, 0, port=2)) == (Health.UP, Health.DOWN)
    monitor.want(web(0) | web(0, pool="other"), ROOM)
    assert health(monitor, 0) is Health.UP
    assert told(run(world, monitor, 10.0)) == [(address(0), Health.DOWN)]


def test_a_thousand_checks_are_started_evenly():
    """keepalived #1173: ten thousand checks at once ran out of descriptors."""
    world = World()
    monitor = started(world, 1000, for_s=0.0)
    monitor.max_in_flight = 50
    flights = []
    end_s = world.now_s + 20
    while world.now_s < end_s:
        monitor.run(0.05)
        flights.append(len(world.ends))
    assert max(flights) <= 50
    assert len({item for _, item in world.checks}) == 1000


# Restarts.

def restarted(world, monitor, wanted, before):
    """Another process, which has what this one wrote down: rows of states, and the target of each use. The agent's
    wish finds out what is known of which target, and tells the process that checks."""
    clocks = Clocks(500_000.0, world.now_s)
    rows = {item.digest: packed(state, clocks) for item, state in monitor.states.items()}
    uses = {key: item.digest for key, item in before.items()}
    states = {key: state for key, row in rows.items() if (state := unpacked(row, clocks))}
    wish = Wish(Known(states, uses), world.clock)
    watched = _Watched(Pool("web", ()), (), tuple((pair,) for pair in wanted.items()))
    wish._exchange({"web": watched}, (), world.now_s)
    edits = wish.take_edits()
    again = world.monitor()
    again.max_in_flight = ROOM
    world.ends.clear()
    again.edit(edits.targets, edits.states)
    return again


def test_a_restart_changes_nothing():
    world = World()
    monitor = started(world, 6)
    world.servers |= {address(0): "d", address(1): "s"}
    run(world, monitor, 20.0)
    healths = {item: state.health for item, state in monitor.states.items()}
    again = restarted(world, monitor, web(*range(6)), web(*range(6)))
    assert {item: state.health for item, state in again.states.items()} == healths
    assert run(world, again, 60.0) == []
    assert not any(state.has_returned for state in again.states.values())  # no slow start


def test_after_a_restart_checks_are_spread_over_their_interval():
    """What is known needs no hurry."""
    world = World()
    monitor = started(world, 200)
    again = restarted(world, monitor, web(*range(200)), web(*range(200)))
    world.checks.clear()
    run(world, again, 0.5)
    assert 20 < len(world.checks) < 100


def test_a_restart_with_an_edited_check_changes_nothing_either():
    world = World()
    monitor = started(world, 2)
    world.servers[address(0)] = "d"
    run(world, monitor, 10.0)
    again = restarted(world, monitor, web(0, 1, timeout_s=0.5), web(0, 1))
    assert (health(again, 0, timeout_s=0.5), health(again, 1, timeout_s=0.5)) == (Health.DOWN, Health.UP)
    assert run(world, again, 30.0) == []


def test_a_restart_without_what_was_written_down():
    """Everybody serves until the first answers; nobody is thrown out for being unknown."""
    world = World()
    monitor = started(world, 3, for_s=0.0)
    pool = Pool("web", tuple(Endpoint(address(i)) for i in range(3)), CHECK)
    end_s = world.now_s + 10
    while world.now_s < end_s:
        monitor.run(0.01)
        result = members(pool, [(monitor.states[target(i)],) for i in range(3)], world.now_s)
        assert result.weights == (1, 1, 1)


# The uplink.

@pytest.mark.parametrize("fall", [2, 3, 5])
def test_lost_uplink_holds_for_two_intervals(fall):
    world = World()
    count = 60
    world.servers |= {address(i): "u" for i in range(count)}
    monitor = world.monitor()
    monitor.want(web(*range(count), fall=fall), ROOM)
    run(world, monitor, 10.0)
    cut_s = world.now_s
    world.servers |= {address(i): "s" for i in range(count)}
    falls = run(world, monitor, 30.0)
    assert len(falls) == count
    assert falls[0][0] - cut_s >= 4.0 + fall * 0.5
    world.servers |= {address(i): "u" for i in range(count)}
    assert len(run(world, monitor, 30.0)) == count
    assert not monitor.is_suspect()


def test_uplink_that_comes_back_in_time_changes_nothing():
    world = World()
    monitor = started(world, 60)
    world.servers |= {address(i): "s" for i in range(60)}
    assert run(world, monitor, 5.0) == []
    assert monitor.is_suspect()
    world.servers |= {address(i): "u" for i in range(60)}
    assert run(world, monitor, 60.0) == []
    assert not any(state.is_held for state in monitor.states.values())
    for _ in range(3):  # and the next time it is the same
        world.servers |= {address(i): "s" for i in range(60)}
        assert run(world, monitor, 4.5) == []
        world.servers |= {address(i): "u" for i in range(60)}
        assert run(world, monitor, 60.0) == []


def test_half_of_all_is_no_uplink():
    world = World()
    monitor = started(world, 60)
    world.servers |= {address(i): "s" for i in range(30)}
    falls = run(world, monitor, 12.0)
    assert {item.target.address for _, item in falls} == {address(i) for i in range(30)}
    assert not monitor.is_suspect()


def test_refusals_are_no_uplink():
    """All servers are stopped at once, for a deployment. Whoever refuses is there."""
    world = World()
    monitor = started(world, 60)
    began_s = world.now_s
    world.servers |= {address(i): "d" for i in range(60)}
    falls = run(world, monitor, 12.0)
    assert len(falls) == 60
    assert falls[-1][0] - began_s < 4.5


def test_many_ports_of_one_host_are_one_host():
    world = World()
    world.servers[address(0)] = "u"
    monitor = world.monitor()
    wanted = {Use("web", address(0), port): Target(address(0), port, CHECK) for port in range(1, 41)}
    monitor.want(wanted, ROOM)
    run(world, monitor, 10.0)
    world.servers[address(0)] = "s"
    assert len(run(world, monitor, 8.0)) == 40


def test_what_was_down_before_does_not_make_suspicious():
    """A hundred are down for a while, and then six of the ten others follow."""
    world = World()
    monitor = started(world, 110)
    world.servers |= {address(i): "d" for i in range(100)}
    assert len(run(world, monitor, 15.0)) == 100
    world.servers |= {address(i): "s" for i in range(106)}
    run(world, monitor, 8.0)
    assert [health(monitor, i) for i in range(100, 110)] == [Health.DOWN] * 6 + [Health.UP] * 4
    assert monitor.suspicion is None


@pytest.mark.parametrize(("lack", "held"), [("interface back has no carrier", True), ("", False)])
def test_an_uplink_that_is_down_is_suspicious_however_few_are_behind_it(lack, held):
    world = World()
    world.servers |= {address(i): "u" for i in range(3)}
    monitor = world.monitor(lack=lambda target: lack)
    monitor.want(web(*range(3)), ROOM)
    run(world, monitor, 10.0)
    world.servers |= {address(i): "s" for i in range(3)}
    run(world, monitor, 6.5 if held else 7.5)  # the first one would be down after 3 s at the earliest
    assert {health(monitor, i) for i in range(3)} == {Health.UP if held else Health.DOWN}
    assert (monitor.suspicion.why if held else monitor.suspicion) == (lack if held else None)
    found = run(world, monitor, 20.0)  # two intervals later they go down, once and for all
    assert {health(monitor, i) for i in range(3)} == {Health.DOWN}
    assert len(found) == (3 if held else 0)


def test_one_silent_host_is_no_uplink_that_is_down():
    world = World()
    world.servers |= {address(i): "u" for i in range(3)}
    monitor = world.monitor(lack=lambda target: "interface back has no carrier")
    monitor.want(web(*range(3)), ROOM)
    run(world, monitor, 10.0)
    world.servers[address(0)] = "s"
    ((_, item),) = run(world, monitor, 7.5)
    assert item.after.health is Health.DOWN


def test_who_refuses_goes_down_although_the_others_are_silent():
    world = World()
    monitor = started(world, 60)
    world.servers |= {address(i): "s" for i in range(60)} | {address(0): "d", address(1): "d"}
    assert {item.target.address for _, item in run(world, monitor, 5.0)} == {address(0), address(1)}
    assert {health(monitor, 0), health(monitor, 1)} == {Health.DOWN}
    assert health(monitor, 2) is Health.UP


# All of it at random.

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("udsex-r"), st.integers(0, 4), st.floats(0.1, 4)), max_size=40))
def test_whatever_happens(steps):
    """Servers come, go and change, checks are edited, the agent restarts. In the end everybody is known for what it
    is, and never was one up that had been down for long."""
    world = World()
    wanted = web(*range(5))
    monitor = world.monitor()
    monitor.want(wanted, ROOM)
    last_well = dict.fromkeys(range(5), world.now_s)
    for step, i, pause_s in steps:
        before = dict(wanted)
        if step in "uds":
            world.servers[address(i)] = step
        elif step == "e":
            edited = replace(wanted.get(use(i), target(i)).check, path=f"/{pause_s}")
            wanted[use(i)] = Target(address(i), 80, edited)
        elif step == "x":
            wanted.pop(use(i), None)
        elif step == "-":
            wanted.setdefault(use(i), target(i))
        if step == "r":
            monitor = restarted(world, monitor, wanted, before)
        else:
            monitor.want(wanted, ROOM)
        assert set(monitor.states) == set(wanted.values())
        end_s = world.now_s + pause_s
        while world.now_s < end_s:
            monitor.run(0.05)
            for number in range(5):
                if world.servers.get(address(number)) == "u":
                    last_well[number] = world.now_s
                item = wanted.get(use(number))
                if item and world.now_s - last_well[number] > 15:
                    assert monitor.states[item].health is not Health.UP
    run(world, monitor, 400.0)
    for key, item in wanted.items():
        expected = Health.UP if world.servers.get(key.address) == "u" else Health.DOWN
        assert monitor.states[item].health is expected


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["web", "other"]), st.none() | st.integers(2, 4))))
def test_single_edits_lead_to_the_same_as_all_at_once(edits):
    world = World()
    one, all_at_once, wanted = world.monitor(), world.monitor(), {}
    for i, pool, fall in edits:
        item = None if fall is None else target(i, fall=fall)
        one.edit({use(i, pool): item})
        wanted = {key: other for key, other in wanted.items() if key != use(i, pool)}
        wanted |= {use(i, pool): item} if item else {}
        all_at_once.want(wanted, ROOM)
        assert dict(one.states) == dict(all_at_once.states)
        assert set(one.states) == set(wanted.values())
        assert one._schedule._slots.keys() == one.states.keys()


def test_condition_when_all_are_down():
    world = World()
    monitor = started(world, 3)
    world.servers |= {address(i): "d" for i in range(3)}
    run(world, monitor, 10.0)
    pool = Pool("web", tuple(Endpoint(address(i)) for i in range(3)), CHECK)
    result = members(pool, [(monitor.states[target(i)],) for i in range(3)], world.now_s)
    assert (result.weights, result.condition) == ((1, 1, 1), Condition.ALL_UNHEALTHY)
