# SPDX-License-Identifier: Apache-2.0
"""The agent's wish and the process that checks, which hear of each other late: whatever is edited meanwhile, they
agree in the end, and who is dead and known to be is never given anything."""

from collections import deque
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.health.state import Health
from reconciler.model import Endpoint, Interface, Node, Pool, Protocol, Service
from reconciler.view import NodeView
from reconciler.wish.known import Known
from reconciler.wish.wish import Wish

from .test_monitor import CHECK, ROOM, World, address

NODE = Node("lb1", (Interface("front"),))
COUNT = 4
PORTS = (80,), (80, 8080)
LATE_S = 0.2
"""How long edits and news are on their way at most."""
SURE_S = 1.0
"""From the death of a server until no good news of it are on their way any more."""


def view_of(places: set[int], fall: int, ports: tuple[int, ...]) -> NodeView:
    endpoints = tuple(Endpoint(address(number)) for number in sorted(places))
    web = Service("web", (address(200),), Protocol.TCP, ports, "web")
    return NodeView(NODE, (web,), {"web": Pool("web", endpoints, health_check=replace(CHECK, fall=fall))}, {})


class Both:
    """A wish and a monitor with pipes between them, in which things are for `late_s`."""

    def __init__(self, world: World, late_s: float) -> None:
        self.world, self.late_s = world, late_s
        self.wish = Wish(Known(changed_s=world.now_s), world.clock, world.clock)
        self.monitor = world.monitor()
        self.monitor.max_in_flight = ROOM
        self.edits: deque = deque()
        self.news: deque = deque()

    def want(self, view: NodeView) -> dict[int, int]:
        """The weights that endpoints get by now."""
        wanted = self.wish.of(view).pools["web"]
        edits = self.wish.take_edits()
        if edits.targets:
            self.edits.append((self.world.now_s + self.late_s, edits))
        return {int(e.address) - int(address(0)): e.weight for e in wanted.endpoints}

    def go_on(self, for_s: float) -> None:
        end_s = self.world.now_s + for_s
        while self.world.now_s < end_s:
            while self.edits and self.edits[0][0] <= self.world.now_s:
                edits = self.edits.popleft()[1]
                self.monitor.edit(edits.targets, edits.states)
            found = {item.target.digest: item.after for item in self.monitor.run(0.05)}
            self.news.append((self.world.now_s + self.late_s, found))
            while self.news and self.news[0][0] <= self.world.now_s:
                self.wish.learn(self.news.popleft()[1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("udsfpbx"), st.integers(1, COUNT - 1), st.sampled_from([0.1, 0.5, 3.0])),
        min_size=5, max_size=40,
    ),
    st.floats(0, LATE_S),
)  # fmt: skip
def test_whatever_is_edited_while_servers_die_and_come_back(steps, late_s):
    world = World()
    world.servers |= {address(number): "u" for number in range(COUNT)}
    both = Both(world, late_s)
    places, fall, ports = set(range(COUNT)), 3, PORTS[0]
    died_s: dict[int, float] = {}
    given_up: set[int] = set()
    both.want(view_of(places, fall, ports))
    both.go_on(10.0)
    for step, number, pause_s in steps:
        if step in "uds":
            world.servers[address(number)] = step
            if step == "u":
                died_s.pop(number, None)
                given_up.discard(number)
            else:
                died_s.setdefault(number, world.now_s)
        elif step == "x":
            places ^= {number}
        else:
            fall = 5 - fall if step in "fb" else fall
            ports = PORTS[ports != PORTS[1]] if step in "pb" else ports
        end_s = world.now_s + pause_s
        while world.now_s < end_s:
            weights = both.want(view_of(places, fall, ports))
            given_up |= {n for n in died_s if weights.get(n) == 0 and world.now_s - died_s[n] > SURE_S}
            assert not any(weights.get(n) for n in given_up), (weights, given_up)
            both.go_on(0.1)
    both.go_on(400.0)
    weights = both.want(view_of(places, fall, ports))
    assert {n for n, weight in weights.items() if weight} == {n for n in places if world.servers[address(n)] == "u"}
    known = {target.digest: state.health for target, state in both.monitor.states.items()}
    assert {digest: state.health for digest, state in both.wish.states.items()} == known
    assert Health.UNKNOWN not in known.values()
