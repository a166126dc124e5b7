"""necrocode init: a first task file and a commented configuration, to be looked at and changed."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path

import click

from necrocode.door import Door, verb
from necrocode.errors import ConfigError
from necrocode.screen import clean
from necrocode.statedir import move, put

_FOLDER = ".necrocode"
_TASKS = """\
#:schema ./.necrocode/tasks.schema.json
# Tasks for `necrocode run tasks.toml`. An editor that knows schemas completes the keys; all of them: necrocode schema.
# Each task works in a workspace of its own; what it did is on the branch necrocode/RUN/ID when it is done.

[defaults]
retries = 1                # further attempts after the first fails
# agent = "codex"          # for prompts: claude, codex, gemini, ... or a command line with {prompt}
# timeout = 1800           # seconds for one attempt

[[task]]
id = "hello"
command = ["sh", "-c", "echo hello > HELLO.txt"]
files = ["HELLO.txt"]      # who else wants this file waits, and builds on what was done here
verify = [["test", "-s", "HELLO.txt"]]

[[task]]
id = "shout"
after = ["hello"]
command = ["sh", "-c", "tr a-z A-Z < HELLO.txt > SHOUT.txt"]
files = ["SHOUT.txt"]

# [[task]]
# id = "fix-parser"
# prompt = "Fix the failing tests of the parser; change nothing else."
# files = ["src/parser/"]
# claims = ["port:8080"]
# verify = ["make test"]
"""
_HEAD = """\
# necrocode's configuration for this repository. Everything is as it would be without this file: take a `#` away to
# change something. A flag counts more than a variable of the environment, that more than the task file, and all of
# them more than this file; `necrocode config --show-origin` says what holds, and who said it.
"""
_EXAMPLES = {"agent": "codex", "workspace_mode": "worktree", "workspaces": "../trees", "state_dir": "~/state",
             "jobs": 4, "timeout": 1800, "retries": 1, "patience": 600}  # fmt: skip


@verb("init")
@click.argument("directory", required=False, type=click.Path(file_okay=False))
def command(door: Door, directory: str | None) -> None:
    """Write a first task file (tasks.toml) and a commented necrocode.toml at the top of the repository, or into
    DIRECTORY. What is there already stays as it is.

    \b
    necrocode init
    git add -A && git commit -m "necrocode"
    necrocode run tasks.toml"""
    from necrocode import configured
    from necrocode.taskmodels import schema

    place = Path(directory) if directory else configured.root(Path.cwd())
    if not place.is_dir():
        raise ConfigError("there is no such directory", where=str(place))
    shipped = resources.files("necrocode").joinpath("tasks.schema.json")
    files = {
        configured.NAME: configuration(), "tasks.toml": _TASKS,
        f"{_FOLDER}/tasks.schema.json": shipped.read_text() if shipped.is_file() else json.dumps(schema(), indent=2),
    }  # fmt: skip
    wrote = [name for name, text in files.items() if _write(place / name, text)]
    kept = [name for name in files if name not in wrote]
    if door.as_json:
        return door.emit({"directory": str(place), "wrote": wrote, "kept": kept})
    for name in files:
        door.say(f"necrocode: {'wrote' if name in wrote else 'kept'} {clean(str(place / name))}")
    return door.say("next: look at tasks.toml, then: necrocode run tasks.toml --dry-run")


def configuration() -> str:
    """A necrocode.toml in which every setting is explained and none is said."""
    from necrocode.declared import SETTINGS
    from necrocode.settings import literal

    parts = [_HEAD]
    for key, one in SETTINGS.items():
        value = _EXAMPLES.get(key) if one.default in (None, "") else one.default
        flags = ", ".join(one.options)
        parts.append(f"# {one.described}\n# ({flags}; {one.variable})\n# {key} = {literal(value)}\n")
    return "\n".join(parts)


def _write(path: Path, text: str) -> bool:
    """Whether it was written, whole: what is there, even as a dangling link, is not touched."""
    if os.path.lexists(path):
        return False
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.urandom(3).hex()}")
    put(draft, text.encode(), mode=0o644)
    move(draft, path)
    return True
