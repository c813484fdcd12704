# SPDX-License-Identifier: Apache-2.0
"""`lbctl completion`: what a shell needs to complete verbs, options and their values, made from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reconciler.cli.parser import options_of, positionals_of, verbs_of

DESCRIPTION = "Print the completion of the command line for a shell."
EPILOG = """\
examples:
  lbctl completion bash > /usr/share/bash-completion/completions/lbctl
  lbctl completion zsh > /usr/share/zsh/vendor-completions/_lbctl
  lbctl completion fish > /usr/share/fish/vendor_completions.d/lbctl.fish

exit codes: 0 done, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(_SHELLS))


def run(args: argparse.Namespace) -> int:
    from reconciler.cli.main import VERBS, parser_of

    print("\n".join(_SHELLS[args.shell](words_of(parser_of(VERBS)))))
    return 0


@dataclass(frozen=True, slots=True)
class Option:
    """`values`: those that there are; empty if any will do, None if it takes none."""

    names: Sequence[str]
    values: Sequence[str] | None
    help: str


@dataclass(frozen=True, slots=True)
class Verb:
    """`values` are those of its first argument; empty if that is a path, or there is none."""

    help: str
    options: Sequence[Option]
    values: Sequence[str]


def words_of(parser: argparse.ArgumentParser) -> Mapping[str, Verb]:
    """What the command line knows; "" has the options that stand before a verb."""
    found = {"": Verb("", _options(parser), ())}
    helps = {action.dest: action.help or "" for action in _choices_actions(parser)}
    for name, verb in verbs_of(parser).items():
        values = next((tuple(map(str, action.choices)) for action in positionals_of(verb) if action.choices), ())
        found[name] = Verb(helps.get(name, ""), _options(verb), values)
    return found


def _choices_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._choices_actions


def _options(parser: argparse.ArgumentParser) -> Sequence[Option]:
    return tuple(
        Option(
            tuple(action.option_strings),
            None if action.nargs == 0 else tuple(map(str, action.choices or ())),
            ((action.help or "") % {"default": action.default, "prog": parser.prog}).split(";")[0],
        )
        for action in options_of(parser)
    )


def _bash(verbs: Mapping[str, Verb]) -> Iterator[str]:
    names = [name for name in verbs if name]
    yield "# bash completion for lbctl; made by `lbctl completion bash`"
    yield "_lbctl() {"
    yield "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb= values= options= i"
    yield "  COMPREPLY=()"
    yield "  for ((i = 1; i < COMP_CWORD; i++)); do"
    valued = [name for option in verbs[""].options if option.values is not None for name in option.names]
    yield "    case ${COMP_WORDS[i]} in"
    yield f"      {'|'.join(valued)}) ((i++)) ;;"
    yield "      -*) ;;"
    yield "      *) verb=${COMP_WORDS[i]}; break ;;"
    yield "    esac"
    yield "  done"
    yield "  case $verb in"
    for name, verb in verbs.items():
        pattern = name or "''"
        options = " ".join(word for option in verb.options for word in option.names)
        yield f"    {pattern}) options='{options}' values='{' '.join(verb.values if name else names)}'"
        yield "      case $before in"
        for option in verb.options:
            if option.values:
                yield f"        {'|'.join(option.names)}) values='{' '.join(option.values)}' options= ;;"
            elif option.values is not None:
                yield f"        {'|'.join(option.names)}) values= options= ;;"
        yield "      esac ;;"
    yield "  esac"
    yield "  if [[ $word == -* ]]; then values=$options; fi"
    yield '  if [[ -n $values ]]; then COMPREPLY=($(compgen -W "$values" -- "$word")); fi'
    yield "  # Without any words of ours, `-o default` completes paths."
    yield "}"
    yield "complete -o default -F _lbctl lbctl"


def _zsh(verbs: Mapping[str, Verb]) -> Iterator[str]:
    yield "#compdef lbctl"
    yield "# made by `lbctl completion zsh`"
    yield "_lbctl() {"
    yield "  local context state line"
    yield "  local -a verbs"
    yield "  verbs=("
    yield from (f"    {_quoted(f'{name}:{verb.help}')}" for name, verb in verbs.items() if name)
    yield "  )"
    yield "  _arguments -C \\"
    yield from (f"    {spec} \\" for spec in _zsh_options(verbs[""].options))
    yield "    '1: :->verb' '*:: :->rest'"
    yield "  case $state in"
    yield "    verb) _describe verb verbs ;;"
    yield "    rest)"
    yield "      case $line[1] in"
    for name, verb in verbs.items():
        if name:
            rest = f"1: :({' '.join(verb.values)})" if verb.values else "*: :_files"
            yield f"        {name}) _arguments \\"
            yield from (f"          {spec} \\" for spec in _zsh_options(verb.options))
            yield f"          {_quoted(rest)} ;;"
    yield "      esac ;;"
    yield "  esac"
    yield "}"
    yield '_lbctl "$@"'


def _zsh_options(options: Sequence[Option]) -> Iterator[str]:
    for option in options:
        text = option.help.replace("[", "(").replace("]", ")").replace(":", " ")
        for name in option.names:
            if option.values is None:
                yield _quoted(f"{name}[{text}]")
            else:
                yield _quoted(f"{name}[{text}]: :{_zsh_values(option.values)}")


def _zsh_values(values: Sequence[str]) -> str:
    return f"({' '.join(values)})" if values else "_files"


def _fish(verbs: Mapping[str, Verb]) -> Iterator[str]:
    yield "# made by `lbctl completion fish`"
    for name, verb in verbs.items():
        if name:
            yield f"complete -c lbctl -n __fish_use_subcommand -f -a {name} -d {_quoted(verb.help)}"
        when = _quoted(f"__fish_seen_subcommand_from {name}") if name else "__fish_use_subcommand"
        for option in verb.options:
            words = [f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}" for word in option.names]
            takes = "" if option.values is None else " -r"
            takes += f" -f -a {_quoted(' '.join(option.values))}" if option.values else ""
            yield f"complete -c lbctl -n {when} {' '.join(words)}{takes} -d {_quoted(option.help)}"
        if verb.values:
            yield f"complete -c lbctl -n {when} -f -a {_quoted(' '.join(verb.values))}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "'\\''") + "'"


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
