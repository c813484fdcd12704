# SPDX-License-Identifier: Apache-2.0
"""The agent: look at the manifests, compare with the node, close the gap; again and again, for years.

It remembers the last state that valid manifests asked for and that the agent may make. It enforces this state until
there is a newer one; a directory that is broken, gone or empty changes nothing on the node. What the node holds it
remembers, too (`upkeep`), so an edit costs what it changes. From time to time all is looked at, a slice at a time.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler import safe
from reconciler.agent.endpoints import Endpoints
from reconciler.agent.notices import Notices, keys_about
from reconciler.agent.report import Report
from reconciler.agent.upkeep import MANIFESTS, Upkeep
from reconciler.agent.wake import Wake
from reconciler.compile import Compiled, compiled
from reconciler.config.diagnostic import render_text
from reconciler.config.load import Loaded, freeze
from reconciler.config.rest import SECOND_LOOK_S
from reconciler.errors import ConfigError, LbctlError
from reconciler.kernel.port import Kernel
from reconciler.model import Fleet
from reconciler.reconcile import node_view, silent_gateways
from reconciler.resource import Key
from reconciler.view import NodeView
from reconciler.wish.wish import Wish

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 60.0

WATCHING, NODE, ENDPOINTS, GATEWAYS = "watching", "node", "endpoints", "gateways"


@dataclass(frozen=True, slots=True)
class Manifests:
    """A directory of manifests. Each of these functions may raise LbctlError or OSError.

    `watch` makes sure that changes from now on wake the loop; True: without relying on an earlier watch. `load` costs
    little if nothing has changed, unless it is to read every file again (True); the objects of files that did not
    change are the same ones each time. `attempted` tells the commit that was tried last, empty if these are files.
    """

    watch: Callable[[bool], None]
    load: Callable[[bool], Loaded]
    attempted: Callable[[], str] = lambda: ""


@dataclass
class Agent:
    """One node and its manifests. Times are seconds of `clock`.

    `wait` returns the reason to look again, at the latest after the given seconds; `named` then tells the keys that it
    is about; `is_called` says whether `wait` would return at once. `ready` is called when the node is first in the
    state that the manifests ask for, apart from what it can't hold.
    """

    manifests: Manifests
    kernel: Kernel
    instance_dir: Path
    node: str | None
    allow_empty: bool
    resync_s: float
    clock: Callable[[], float]
    wait: Callable[[float], Wake]
    report: Report
    ready: Callable[[], None]
    named: Callable[[], Collection[Key]] = lambda: ()
    is_called: Callable[[], bool] = lambda: False
    endpoints: Endpoints | None = None
    """What is known of endpoints; None: nothing, ever."""

    max_prune: int | None = None
    """The most resources that are removed at once because no manifest asks for them any more; None: any number."""
    notices: Notices | None = None
    """Tells what others change on the node; None: nobody does."""
    held: Callable[[], str] = lambda: ""
    """Says by whom and why the node is to be left as it is; empty if it is not."""
    told: Callable[[Agent], None] = lambda _agent: None
    """Hears of the agent after each round."""

    seen: str = ""
    """The digest of the manifests that were loaded last, valid or not; empty if loading them failed altogether."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """The texts of these manifests by file."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """The commits of the manifests that were loaded last and of those in force, by digest."""
    held_by: str = ""
    """What `held` said last."""
    read_s: float | None = None
    """When reading them began last."""
    seen_since: float = 0.0
    """Since when they have been the same."""
    fleet: Fleet | None = None
    """The loaded fleet, until its resources for this node are known."""
    view: NodeView | None = None
    """The node's part of the fleet that was loaded last, as the manifests say."""
    viewed: tuple[Fleet, NodeView] | None = None
    """The fleet that was looked at last, and the node's part of it."""
    accepted: NodeView | None = None
    """The same of the fleet that is enforced; another one if the newest may not be."""
    latest: Compiled | None = None
    """What was compiled last: most of the next is the same."""
    due: float = 0.0
    """The time of the next look at the whole node."""
    retry_s: float = FIRST_RETRY_S
    is_failing: bool = False
    is_ready: bool = False
    upkeep: Upkeep = field(init=False)

    def __post_init__(self) -> None:
        self.upkeep = Upkeep(
            self.kernel, self.instance_dir, self.report, self.clock, self._be_ready, self.is_called, self.allow_empty,
            self.max_prune,
        )  # fmt: skip

    def run(self) -> None:
        """Run until told to stop. Then the node is left as it is: traffic goes on."""
        wake, is_frozen = Wake.TIME, False
        while wake is not Wake.STOP:
            self.round(wake, self.named())
            self.told(self)
            if self.is_ready and not is_frozen:
                is_frozen = True
                freeze()
            wake = self.wait(self.next_look_s())

    def next_look_s(self) -> float:
        """In how many seconds the agent wants to look again if nobody calls before."""
        if self.held_by:
            return self.resync_s
        changes_s = self.endpoints.changes_s if self.endpoints else math.inf
        return max(0.0, min(self.due, self._second_look, changes_s) - self.clock())

    def round(self, wake: Wake, keys: Collection[Key] = ()) -> None:
        """One look at the manifests, and at the node as far as that is due: at the keys that differ from what was
        asked for before, at those that are named, and at all of it from time to time. Raises nothing."""
        self._work(wake, keys)
        if self.endpoints is not None:
            self.endpoints.write_down()  # the node comes first: a disk may take long

    def _work(self, wake: Wake, keys: Collection[Key]) -> None:
        keys = {*keys, *self._noticed()}
        if wake is Wake.RELOAD:
            self.seen, self.due = "", 0.0
            self.upkeep.forget()
            self.report.repeat()
        is_about_files = wake is Wake.TIME and not self.upkeep.is_under_way
        if is_about_files or wake in (Wake.FILES, Wake.RELOAD) or self.clock() >= self._second_look:
            found = f"changes are found by looking every {self.resync_s:g} s"
            if self._attempt(WATCHING, lambda: self.manifests.watch(wake is not Wake.FILES), found):
                self.report.recovered(WATCHING)
            kept = "the node is kept as it was last asked for" if self.upkeep.desired else "nothing was changed"
            self._attempt(MANIFESTS, lambda: self._look(wake in (Wake.TIME, Wake.RELOAD)), kept)
        if self.view is not None and (wake in (Wake.TIME, Wake.KEYS) or keys):
            self._attempt(GATEWAYS, self._look_at_gateways, "VIPs stay announced as they are")
        if self.endpoints is not None and self.endpoints.have_changed():
            self._attempt(ENDPOINTS, self._heed, "endpoints are used as they were")
        if self._is_held():
            self._observe()
            return
        is_due = self.clock() >= self.due
        if not (is_due or keys or self.upkeep.offered or self.clock() >= self._second_look):
            return
        self._attend(is_due, keys)
        if self.notices is not None and self.upkeep.desired is not None:
            self.notices.watch(self.upkeep.desired.whole.wanted, self.view)

    def _noticed(self) -> set[Key]:
        """The keys of what others may have changed. If they changed too much to tell, all of the node is looked at."""
        if self.notices is None:
            return set()
        found = self.notices.take()
        if found.is_lost:
            self.due = 0.0
            self.upkeep.forget()
        desired = self.upkeep.desired
        if desired is None:
            return set()
        return {key for notice in found.notices for key in keys_about(notice, desired.whole.wanted)}

    def _is_held(self) -> bool:
        """Whether somebody wants the node to be left as it is. Afterwards all of it is looked at."""
        before, self.held_by = self.held_by, self.held()
        if self.held_by:
            if self.held_by != before:
                self.report.say(f"The node is left as it is: {self.held_by}")
            self._be_ready()
        elif before:
            self.report.say("The node is no longer left as it is.")
            self.due = 0.0
            self.upkeep.forget()
            if self.endpoints is not None:
                self.endpoints.heed_others()
        return bool(self.held_by)

    def _observe(self) -> None:
        """Look at the node as far as that is due, and leave it as it is."""
        is_due = self.clock() >= self.due
        if self._attempt(NODE, lambda: self.upkeep.observe(is_due=is_due), "whether it is in sync is not known"):
            self.report.recovered(NODE)
        if is_due:
            self.due = self.clock() + self.resync_s

    def _attend(self, is_due: bool, keys: Collection[Key]) -> None:
        last_s = min(LAST_RETRY_S, self.resync_s)  # failures must not delay the resync of the rest
        # Files that keep moving are no reason to delete anything.
        may_delete = self.seen == self.upkeep.newest and self.clock() >= self.seen_since + SECOND_LOOK_S
        offered, view = self.upkeep.offered, self.view
        reconciled = self._attempt(
            NODE, lambda: self.upkeep.look(keys, is_due=is_due, may_delete=may_delete),
            f"trying again, at last every {last_s:g} s",
        )  # fmt: skip
        if offered is not None and self.upkeep.desired is offered:
            self.accepted = view
        self._stay_with_accepted()
        if self.endpoints is not None and reconciled:
            self.endpoints.were_heeded()
        was_failing, self.is_failing = self.is_failing, not reconciled
        if reconciled and self.upkeep.is_under_way:
            self.due = self.clock()  # somebody else comes first
            return
        if reconciled:
            self.report.recovered(NODE)
        if not reconciled or self.fleet is not None:
            self.due = self.clock() + min(self.retry_s, last_s)
            self.retry_s = min(2 * self.retry_s, last_s)
        elif is_due or was_failing:
            self.retry_s = FIRST_RETRY_S
            self.due = self.clock() + self.resync_s

    @property
    def _second_look(self) -> float:
        """When the files have been at rest for long enough to delete what nobody asks for any more."""
        waits = self.upkeep.late and self.seen == self.upkeep.newest and not self.is_failing
        return self.seen_since + SECOND_LOOK_S if waits else math.inf

    def _attempt(self, about: str, step: Callable[[], None], consequence: str) -> bool:
        """Whether the step succeeded; its error is reported."""
        try:
            step()
        except (LbctlError, OSError) as error:
            self.report.problem(about, str(error), consequence)
        except Exception:  # noqa: BLE001 - a mistake in lbctl must not end the upkeep of a node
            self.report.problem(about, traceback.format_exc().rstrip(), consequence)
        else:
            return True
        return False

    def _look(self, afresh: bool) -> None:
        """Load the manifests if they have changed, and find out which resources they ask of this node.

        This also depends on the host's name and on answers of the kernel, so it may fail now and succeed later: it is
        tried until it succeeds. Raises LbctlError, OSError.
        """
        began_s = self.clock()
        try:
            loaded = self.manifests.load(afresh)
        except BaseException:
            self.seen = ""
            raise
        finally:
            self.read_s = began_s
        kept = (loaded.digest, self.upkeep.revision, self.upkeep.newest)
        former = {digest: commit for digest, commit in self.commits.items() if digest in kept}
        self.commits = former | {loaded.digest: loaded.commit}
        if loaded.digest != self.seen:
            self.seen, self.seen_since, self.fleet = loaded.digest, self.clock(), None
            self.texts = loaded.texts
            colour = self.report.style.colour
            text = render_text(loaded.diagnostics, loaded.texts, colour=colour, most=safe.SHOWN).rstrip()
            if loaded.fleet is None:
                self.upkeep.withdraw()
                raise ConfigError(text)
            if text:
                self.report.say(text)
            self.fleet = loaded.fleet
            self.retry_s = FIRST_RETRY_S
        if self.fleet is not None:
            if self.endpoints is not None:
                self.endpoints.note_nodes(self.fleet)
            view = node_view(self.fleet, self.node, self.kernel, self.viewed)
            self.viewed = self.fleet, view
            self.view, self.fleet = self._compile(view), None
            assert self.latest is not None
            self.upkeep.offer(self.latest, self.seen)

    def _heed(self) -> None:
        """Find out what follows from what was learned of endpoints. Raises LbctlError."""
        former = self.latest
        if self.view is None or former is None:
            return
        self._compile(self.view)
        if self.latest is not None and self.latest.changed:
            self.upkeep.offer(self.latest, self.upkeep.newest)
        else:
            self.latest = former

    def _look_at_gateways(self) -> None:
        """Where VIPs are announced or routed, find out whether gateways or balancers answer. Raises LbctlError."""
        assert self.view is not None
        silent = silent_gateways(self.view, self.kernel)
        if silent == self.view.silent_gateways:
            return
        view = replace(self.view, silent_gateways=silent)
        if self.accepted is self.view:
            self.accepted = view
        self.view = view
        self._heed()

    def _stay_with_accepted(self) -> None:
        """If the newest manifests may not be made, go on with those that are enforced, and check their endpoints."""
        is_refused = self.upkeep.offered is None and self.upkeep.desired is not self.latest
        if is_refused and self.accepted is not None and self.view is not self.accepted:
            self.view, self.latest = self.accepted, self.upkeep.desired
            self._attempt(ENDPOINTS, self._heed, "endpoints are used as they were")

    def _compile(self, view: NodeView) -> NodeView:
        """Find out which resources a view asks for. Raises LbctlError."""
        wanted = self.endpoints.wanted(view) if self.endpoints else Wish().of(view)
        try:
            self.latest = compiled(wanted, self.latest)
        except LbctlError:
            if self.endpoints is not None and self.view is not None:
                self.endpoints.wanted(self.view)  # as before: what can't be is no reason to forget anybody
            raise
        if self.endpoints is not None:
            self.endpoints.check()
        return view

    def _be_ready(self) -> None:
        if not self.is_ready:
            self.is_ready = True
            self.ready()
