"""What a shell would read as a program: the one thing that no text of a task may become.

A template may start a shell, and give it texts as arguments, which it does not read: `sh -c 'agent "$1"' sh {prompt}`.
Within its script they would be part of the program.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from necrocode.errors import ConfigError

_SHELLS = frozenset({"sh", "ash", "bash", "csh", "dash", "fish", "ksh", "mksh", "tcsh", "zsh"})
_WITH_VALUE = re.compile(r"[-+]\w*[oO]|--rcfile|--init-file")
"""Options that take the next argument: `-eo pipefail`."""


_FIRST = "'... \"$1\"' sh"
"""How a script gets its first argument, and what stands before that; otherwise in these shells:"""
_AS_ARGUMENT = dict.fromkeys(("csh", "fish", "tcsh"), "'... $argv[1]'")


def checked(argv: Sequence[str], placeholders: re.Pattern[str], where: str = "") -> tuple[str, ...]:
    """The same template, or ConfigError when what stands for one of its placeholders would be read as a program."""
    for shell, script in _scripts(argv):
        if found := placeholders.search(script):
            raise ConfigError(
                f"{found[0]} stands in the script of {shell}, which would read its text as a program", where=where,
                hint=f"give it to the script as an argument: {shell} -c {_AS_ARGUMENT.get(shell, _FIRST)} {found[0]}",
            )  # fmt: skip
    return tuple(argv)


def _scripts(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The scripts in an argv, each with the name of its shell; whatever starts that: env, nice, docker run, ..."""
    rest = list(argv)
    while rest:
        name = os.path.basename(rest.pop(0))
        if name in _SHELLS and (script := _script(iter(rest))) is not None:
            yield name, script
            # Most shells take what comes behind a script for what it is called, be it the name of a shell.
            behind = 1 if name in _AS_ARGUMENT else 2
            rest = rest[rest.index(script) + behind :] if script in rest else rest


def _script(rest: Iterator[str]) -> str | None:
    """What comes after the options when `-c` is among them, alone or with others (`-lc`)."""
    is_given = False
    for argument in rest:
        if argument.partition("=")[0] == "--command":  # as fish also has it
            return argument.partition("=")[2] or next(rest, None)
        if argument[:1] not in ("-", "+") or argument in ("-", "--"):
            script = next(rest, None) if argument in ("-", "--") else argument
            return script if is_given else None
        is_given |= argument[0] == "-" and not argument.startswith("--") and "c" in argument
        if _WITH_VALUE.fullmatch(argument):
            next(rest, None)
    return None
