"""What every verb of the command line stands on: where the state lies, where data and words go, in which form."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from necrocode.ledger.files import FileLedger
    from necrocode.statedir import StateDir


NOTHING_YET = "no state directory at {} yet: nothing has ever run there"
_SIGPIPE = 13


class Door:
    """One call of the command line: its options, its two outputs. Data goes to stdout, everything else to stderr."""

    def __init__(self) -> None:
        self.state_dir: str | None = None
        self.as_json = False
        self.color: bool | None = None
        """False: never; None: where the output is a terminal and NO_COLOR is not set."""

    def colored(self, stream: Any = None) -> bool:
        """Whether escape sequences may be written to that stream (default: stdout)."""
        if self.color is not None:
            return self.color
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and (stream or sys.stdout).isatty()

    def emit(self, value: Any) -> None:
        """One JSON document on stdout."""
        import json

        sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def show(self, text: str) -> None:
        """Lines of data on stdout; of a name that is no UTF-8, what can be written of it."""
        text = text.encode("utf-8", "replace").decode()
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A sentence for the person who waits, on stderr; when nobody can read it any more, that changes nothing."""
        try:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def note(self, text: str) -> None:
        """What one should know beside the answer."""
        from necrocode.screen import clean

        self.say(f"note: {clean(text)}")

    @property
    def root(self) -> Path:
        """Where the state directory is or would be. Raises ConfigError for a configuration file that is none."""
        chosen = self.state_dir or os.environ.get("NECROCODE_STATE_DIR") or _configured()
        if chosen:
            return Path(os.path.abspath(Path(chosen).expanduser()))
        from necrocode.statedir import default_root

        return Path(os.path.abspath(default_root()))

    def state(self) -> StateDir:
        """The state directory, made when it is missing. Raises StateUnusable."""
        from necrocode.statedir import StateDir

        return StateDir(self.root)

    def existing(self) -> StateDir | None:
        """The state directory, or None where there is none yet: looking must not make one. Raises StateUnusable."""
        from necrocode.statedir import is_there

        return self.state() if is_there(self.root) else None

    def knowing(self, name: str) -> StateDir:
        """The state directory in which that name is to be found. Raises ConfigError where there is none yet: then the
        name cannot be known, and asking for it must not make one."""
        from necrocode.errors import ConfigError

        if state := self.existing():
            return state
        raise ConfigError(f"there is no task, runner or run {name!r}", hint=NOTHING_YET.format(self.root))

    def ledger(self) -> FileLedger:
        """The ledger in the state directory. Raises StateUnusable."""
        from necrocode.ledger.files import FileLedger

        return FileLedger(self.state())


def _configured() -> str:
    from necrocode import configured

    try:
        where = Path.cwd()
    except FileNotFoundError:
        return ""  # the current directory is gone: nothing is configured in it
    return configured.state_dir(where)


def plain(value: Any) -> Any:
    """The same facts in what JSON has: named tuples and mappings as objects, claims, paths and times as text."""
    if isinstance(value, (datetime, Path)):
        return value.isoformat() if isinstance(value, datetime) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return str(value) if type(value).__name__ == "Claim" else plain(value._asdict())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        # A name that is no UTF-8 must not end the document half-way.
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
    return str(value)


def verb(
    name: str, *, as_json: str = "One JSON document on stdout.", **settings: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of the group: its function gets the Door first, then its own options; what it returns is the exit
    code (None: 0). Every verb has --json, `as_json` says what that does, and --state-dir."""
    told = as_json

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def call(as_json: bool, state_dir: str | None, **options: Any) -> Any:
            door = click.get_current_context().ensure_object(Door)
            door.as_json |= as_json
            door.state_dir = state_dir or door.state_dir
            try:
                return function(door, **options)
            except BrokenPipeError:
                # Whoever read our output has gone: nothing is left to say, and nobody to say it to.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + _SIGPIPE

        command: click.Command = click.command(name, cls=click.Command, **settings)(call)
        command.params += [
            click.Option(["--json", "as_json"], is_flag=True, help=told),
            click.Option(["--state-dir"], metavar="DIR", help="Another state directory."),
        ]
        return command

    return decorate
