# SPDX-License-Identifier: Apache-2.0
"""`lbctl VERB …`: finds the verb, runs it, turns errors into words and exit codes.

A verb is a module of this package with HELP (a line), EXAMPLES, `arguments(parser)` and `run(args) -> int`.
Only the called verb is imported, so `validate` starts fast and needs neither bcc nor pyroute2.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import keyword
import os
import signal
import sys
import traceback
from collections.abc import Collection, Sequence
from types import ModuleType

from reconciler.cli import progress, streams
from reconciler.cli.common import instance_dir
from reconciler.cli.identity import take_on
from reconciler.cli.parser import Parser, add_everywhere, called_verb, verbs_of
from reconciler.errors import LbctlError, UsageError
from reconciler.render.style import Style
from reconciler.safe import block

VERBS = {
    "validate": "check manifests",
    "fmt": "write manifests in their canonical form",
    "render": "show the manifests that the templates of an environment become",
    "plan": "show what would change on this node, and what it does to traffic",
    "diff": "compare two git revisions by what they mean, and what that does to traffic",
    "apply": "make the changes, verify them, undo what fails",
    "run": "keep the node as the manifests say: watch, plan, apply, for years",
    "status": "show whether the agent is alive and the node in sync, and what changed last",
    "events": "show what the agent has done, and follow it",
    "pause": "have the agent leave the node as it is for a while",
    "resume": "have the agent go on after a pause",
    "history": "list what was applied to this node, when and by whom",
    "rollback": "bring the node to a revision that was in force before",
    "confirm": "keep a change that `apply --confirm-within` would take back",
    "get": "show services, endpoints, health, drains, flows, transitions or verdicts, live",
    "top": "show what services and endpoints get a second, and what is dropped and why",
    "metrics": "print counters and levels as Prometheus reads them",
    "drain": "take endpoints out of service for a while, without touching git",
    "undrain": "put them back",
    "doctor": "say what is wrong with this node and the network around it, and the way out",
    "explain": "say what this node would do with a packet, and why",
    "watch": "show packets of a client as they come through, and what becomes of each",
    "completion": "print the completion of the command line for a shell",
    "import": "turn other tools' configuration, or what this node holds, into manifests",
    "export": "write a snapshot of live state, for `plan --live`",
    "delete": "take everything of ours off this node",
}

DESCRIPTION = "GitOps for a layer-4 load balancer in the Linux kernel."
INTERNAL_ERROR = 3
FAULT = {"validate": 3, "diff": 3, "fmt": 3}
"""Exit codes after a fault of the system, for verbs whose exit code 1 is an answer."""

EPILOG = """\
examples:
  lbctl validate examples/configs/nat-tcp
  lbctl plan examples/configs/nat-tcp --live empty
  lbctl apply examples/configs/nat-tcp
  lbctl run /etc/lbctl
  lbctl get services -o wide

`lbctl VERB --help` explains a verb and its exit codes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    streams.prepare()
    atexit.register(gc.freeze)  # the interpreter would look for cycles among all that is left, a million objects
    arguments = list(sys.argv[1:] if argv is None else argv)
    # If exit code 2 means that there are changes, it can't mean that the command line is wrong.
    wrong_usage = LbctlError.exit_code if "--detailed-exitcode" in arguments else UsageError.exit_code
    style, verb = Style(), ""
    try:
        style = Style.for_stream(sys.stderr, "--no-color" in arguments)
        args, verb = _parsed(arguments)
        style = Style.for_stream(sys.stderr, args.no_color)
        # The agent writes a log, and is at work for years; `top` has the screen to itself.
        take_on(instance_dir(args))
        with progress.shown() if verb not in ("run", "top") else contextlib.nullcontext():
            code = int(_module(verb).run(args))
        sys.stdout.flush()
        return code
    except LbctlError as error:
        _complain(style, error.message, error.hint)
        return wrong_usage if isinstance(error, UsageError) else error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        if error.filename != streams.STDOUT:
            return _fault(style, verb, error)
        streams.give_up_stdout()
        if isinstance(error, BrokenPipeError):  # the reader, say `head`, has ended
            return 128 + signal.SIGPIPE
        return _fault(style, verb, error)
    except MemoryError:
        _complain(style, "there is not enough memory", "")
        return FAULT.get(verb, 1)
    except SystemExit as end:  # from the parser: the usage was wrong, or help was asked for
        _flush_help()
        return wrong_usage if end.code else 0
    except Exception as error:  # noqa: BLE001 - anything else is a bug of lbctl, and exits as one
        traceback.print_exc()
        _complain(
            style, f"this is a bug in lbctl: {type(error).__name__}: {error}", "please report it, with the lines above"
        )
        return INTERNAL_ERROR


def _complain(style: Style, message: str, hint: str) -> None:
    print(style.labelled(style.bad, "error", block(message)), file=sys.stderr)
    if hint:
        print(style.labelled(style.dim, "hint", block(hint)), file=sys.stderr)


def _fault(style: Style, verb: str, error: OSError) -> int:
    """Report an error of the system that no other code has put into words. Returns the exit code."""
    where = f": {error.filename}" if error.filename else ""
    hint = "run as root" if isinstance(error, PermissionError) and os.geteuid() else ""
    _complain(style, f"{error.strerror or error}{where}", hint)
    return FAULT.get(verb, 1)


def _flush_help() -> None:
    """Write the help out; it doesn't matter if nobody can read it."""
    try:
        sys.stdout.flush()
    except OSError:
        streams.give_up_stdout()


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, str]:
    """The parsed arguments and the verb; only this verb's arguments are known. Raises UsageError."""
    called = called_verb(arguments, VERBS)
    parser = parser_of([called])
    args, extra = parser.parse_known_args(arguments)
    if extra:
        verbs_of(parser).get(called, parser).refuse(extra)
    return args, called


def parser_of(known: Collection[str]) -> Parser:
    """The parser of the command line; of the verbs, only the `known` ones have their arguments."""
    parser = Parser("lbctl", description=DESCRIPTION, epilog=EPILOG)
    add_everywhere(parser, is_verb=False)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for verb, text in VERBS.items():
        if verb not in known:
            verbs.add_parser(verb, help=text)
            continue
        module = _module(verb)
        asked = verbs.add_parser(verb, help=text, description=module.DESCRIPTION, epilog=module.EPILOG)
        module.arguments(asked)
        add_everywhere(asked, is_verb=True)
    return parser


def _module(verb: str) -> ModuleType:
    """The verb's module: it has the verb's name, with `_` at the end if that is a word of Python, as `import`."""
    return importlib.import_module(f"reconciler.cli.{verb}{'_' if keyword.iskeyword(verb) else ''}")


if __name__ == "__main__":
    sys.exit(main())
