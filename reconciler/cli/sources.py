# SPDX-License-Identifier: Apache-2.0
"""Where the manifests of an agent come from: files, a commit, or a repository that it fetches itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.cli.common import state_dir
from reconciler.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from reconciler.agent.loop import Manifests
    from reconciler.agent.report import Report
    from reconciler.config.load import Loaded

_OF_URLS = ("path", "interval", "token", "ssh_key", "known_hosts")
INTERVAL_S = 60
FIRST_S = 5.0
"""How long the first round waits for the first fetch."""
LOOK_S = 8.0
"""How long somebody who wants the newest commit waits for it, see `commands.look`."""


def add_sources(parser: argparse.ArgumentParser, seconds: Callable[[str], int]) -> None:
    git = parser.add_argument_group("manifests in git")
    git.add_argument(
        "--ref", metavar="NAME", help="a branch or tag: read its commit, not files (of a URL: the server's branch)"
    )
    git.add_argument(
        "--allowed-signers",
        metavar="FILE",
        type=Path,
        help="use only commits signed by one of these, see ssh-keygen(1)",
    )
    git.add_argument("--path", metavar="DIR", help="of a URL: where in the repository the manifests are (its root)")
    git.add_argument("--interval", metavar="TIME", type=seconds, help="of a URL: ask for a new commit so often (1m)")
    git.add_argument("--token", metavar="FILE", type=Path, help="of an https URL: a file with USER:TOKEN")
    git.add_argument("--ssh-key", metavar="FILE", type=Path, help="of an ssh URL: the private key")
    git.add_argument("--known-hosts", metavar="FILE", type=Path, help="of an ssh URL: the keys of its host")


@dataclass(frozen=True, slots=True)
class Origin:
    """`shown` names it. `look` has it looked at now, and says whether it was. `hint` of `opened` is called whenever
    something may have changed, with True if all of the change is there already."""

    shown: str
    manifests: Manifests
    start: Callable[[], None]
    stop: Callable[[], None]
    look: Callable[[], bool]


def opened(args: argparse.Namespace, report: Report, hint: Callable[[bool], None]) -> Origin:
    """The source that the arguments name. Raises UsageError, FilesError."""
    from reconciler.config.fetch import is_url

    if is_url(args.source):
        return _fetched(args, report, hint)
    if given := [name for name in _OF_URLS if getattr(args, name) is not None]:
        flag = f"--{given[0].replace('_', '-')}"
        raise UsageError(f"{flag} is about repositories that the agent fetches: name one by its URL")
    directory = Path.cwd() / args.source
    if args.ref is not None:
        return _committed(args, directory, hint)
    if args.allowed_signers is not None:
        raise UsageError("files are signed by nobody, only commits are", hint="say which one: --ref HEAD")
    return _files(args, directory, report, hint)


def _files(args: argparse.Namespace, directory: Path, report: Report, hint: Callable[[bool], None]) -> Origin:
    from reconciler.agent.loop import Manifests
    from reconciler.agent.watch import Watch
    from reconciler.config.load import Loader
    from reconciler.config.rest import at_rest

    loader, watch = Loader(directory, args.env), Watch(directory, hint)
    manifests = Manifests(
        lambda afresh: watch.arm(afresh=afresh), lambda afresh: at_rest(directory, lambda: loader.load(afresh=afresh))
    )

    def start() -> None:
        if not directory.is_dir():
            report.say(_not_there(directory))

    return Origin(str(directory), manifests, start, watch.stop, lambda: True)


def _not_there(directory: Path) -> str:
    """What an agent says that begins before its manifests are there, as beside a tool that fetches them."""
    from reconciler.config.listing import nearby

    what = "is no directory" if directory.exists() else "is not there"
    hint = nearby(directory)
    return f"{directory} {what}{f' ({hint})' if hint else ''}: waiting until it is a directory of manifests"


def _committed(args: argparse.Namespace, directory: Path, hint: Callable[[bool], None]) -> Origin:
    """A new commit shows in the repository's own files, which are all that is watched."""
    from reconciler.agent.loop import Manifests
    from reconciler.agent.watch import Watch
    from reconciler.config.commit import CommitLoader, repository_files

    loader = CommitLoader(directory, args.ref, args.env, args.allowed_signers)
    watch = Watch(repository_files(directory), lambda _is_settled: hint(False))
    manifests = Manifests(
        lambda afresh: watch.arm(afresh=afresh), lambda _afresh: loader.load(), lambda: loader.attempted
    )
    return Origin(f"{directory} at {args.ref}", manifests, lambda: None, watch.stop, lambda: True)


def _fetched(args: argparse.Namespace, report: Report, hint: Callable[[bool], None]) -> Origin:
    from reconciler.agent.fetching import Fetching
    from reconciler.agent.loop import Manifests
    from reconciler.config.commit import CommitLoader
    from reconciler.config.fetch import Remote, Store

    inside = Path(args.path or ".")
    if inside.is_absolute() or ".." in inside.parts:
        raise UsageError(f"--path {inside} leads out of the repository")
    remote = Remote(args.source, args.ref or "HEAD", args.token, args.ssh_key, args.known_hosts)
    store = Store(state_dir(args), remote, args.allowed_signers)
    fetching = Fetching(store, args.interval or INTERVAL_S, report, lambda: hint(True))
    loader = CommitLoader(Path(), "HEAD", args.env)

    def load(_afresh: bool) -> Loaded:
        if fetching.newest is None:
            fetching.wait(FIRST_S)
        if fetching.newest is None:
            raise ConfigError(f"no commit of {remote.url} is here yet")
        loader.directory, loader.ref = fetching.newest / inside, fetching.newest.name
        return loader.load()

    manifests = Manifests(lambda _afresh: None, load, lambda: store.attempted or loader.attempted)
    return Origin(str(remote), manifests, fetching.start, fetching.stop, lambda: fetching.again(LOOK_S))
