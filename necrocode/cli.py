"""The front door: a group that imports a verb only when it is used, and the one place where errors become exit codes.

0 ok · 1 a task failed, or doctor found something · 2 usage · 3 conflict found · 75 held or full · 124 timeout
125 necrocode itself failed · 126/127 not executable / not found · 130/143 interrupted
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any

import click

import necrocode
from necrocode.door import Door
from necrocode.errors import (
    ConfigError,
    LandingConflict,
    NecrocodeError,
    Refused,
    TaskFailed,
    TaskTimeoutError,
    advice,
    described,
    hint_of,
)

VERBS = {
    "init": "Write a first task file and a commented configuration.",
    "run": "Run the tasks of a file, many at once.",
    "exec": "Run any command under the same limit and claims.",
    "claim": "Hold something for a shell script, until it ends.",
    "release": "End what `claim` holds.",
    "status": "Who runs, who waits, and for what.",
    "why": "What a task or runner waits for, holds, or came to.",
    "logs": "The output of a task.",
    "events": "What happened, and what happens now.",
    "metrics": "Waits, conflicts, concurrency, phases: in figures.",
    "report": "What a run came to: timeline, waits, failures.",
    "wait": "Until runs, tasks or runners have ended.",
    "retry": "Failed tasks of a run, once more.",
    "stop": "End tasks, runners or runs.",
    "gc": "Remove what is left over; shows it first.",
    "doctor": "Check the machine and the state directory.",
    "config": "Show or change settings, and the host's limit and quotas.",
    "schema": "The JSON Schema of task files, for editors.",
    "completion": "What teaches a shell to complete necrocode.",
    "version": "The versions of necrocode and what it stands on.",
}
"""Every verb and what `necrocode --help` says of it. Each is the `command` of necrocode.commands.<verb>."""

_MODULES = {"exec": "exec_"}
_EXITS: tuple[tuple[type[BaseException], int], ...] = (
    (ConfigError, 2), (TaskTimeoutError, 124), (TaskFailed, 1), (LandingConflict, 3), (Refused, 75),
    (NecrocodeError, 125), (OSError, 125), (KeyboardInterrupt, 130), (click.Abort, 130),
)  # fmt: skip


class Verbs(click.Group):
    """The group; `necrocode status` imports neither `run` nor anything that only `run` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = import_module(f"necrocode.commands.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, 1)
            raise ConfigError(
                f"there is no command {args[0]!r}",
                hint=f"did you mean `necrocode {near[0]}`?" if near else f"the commands: {', '.join(VERBS)}",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state-dir", metavar="DIR", help="Where the state lies (default: NECROCODE_STATE_DIR, or one per user)."
)
@click.option("--no-color", is_flag=True, help="No colours (also: NO_COLOR=1).")
@click.version_option(necrocode.__version__, "--version", message="necrocode %(version)s")
@click.pass_obj
def group(door: Door, state_dir: str | None, no_color: bool) -> None:
    """Run many coding agents and task processes at once on one machine and one repository, coordinated by nothing
    but files."""
    door.state_dir = state_dir
    if no_color:
        door.color = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code. Never raises what a user can cause."""
    _open_missing_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    door = Door()
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminated)
    try:
        code = group.main(args, prog_name="necrocode", standalone_mode=False, obj=door)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _told_usage(error, door, args)
    except (NecrocodeError, OSError, KeyboardInterrupt, click.Abort) as error:
        return _told(error, door, args)
    except Exception as error:  # noqa: BLE001 - the edge: a person gets one sentence, a developer the traceback
        if os.environ.get("NECROCODE_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        return _told(error, door, args)


def _open_missing_streams() -> None:
    """Where our caller closed a standard stream: no file of ours may get its number, and what goes there is lost."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115 - it is for the whole process
            setattr(sys, name, stream)


def _terminated(number: int, frame: FrameType | None) -> None:
    # As an exception, so that what is half-done is undone on the way out.
    raise SystemExit(128 + number)


def exit_code(error: BaseException) -> int:
    """The exit code that tells what kind of error this was."""
    if isinstance(own := getattr(error, "exit_code", None), int):
        return own
    if isinstance(error, Refused) and error.waited:
        return 124
    return next((code for kind, code in _EXITS if isinstance(error, kind)), 125)


def _told(error: BaseException, door: Door, args: Sequence[str]) -> int:
    code = exit_code(error)
    _say_error(_sentence(error), _hint(error), code)
    if _wants_json(door, args):
        facts = {key: value for key, value in vars(error).items() if key != "hint" and not key.startswith("_")}
        _emit_error(door, type(error).__name__, _sentence(error), _hint(error), code, facts)
    return code


def _told_usage(error: click.ClickException, door: Door, args: Sequence[str]) -> int:
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context else "necrocode --help"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    message = error.format_message().replace("\n\t", " ")  # click puts each choice on a line of its own
    _say_error(message, hint, 2)
    if _wants_json(door, args):
        _emit_error(door, "UsageError", message, hint, 2, {})
    return 2


def _sentence(error: BaseException) -> str:
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted"
    if isinstance(error, NecrocodeError):
        return str(error)
    if _lost_its_place(error):
        return "the current directory is gone"
    if isinstance(error, OSError):
        return described(error)
    return f"this should not have happened: {type(error).__name__}: {error}"


def _lost_its_place(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) and not error.filename  # only getcwd(2) names nothing


def _hint(error: BaseException) -> str:
    if isinstance(error, NecrocodeError):
        return hint_of(error)
    if _lost_its_place(error):
        return "cd to a directory that exists"
    if isinstance(error, OSError):
        return advice(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return ""
    return "please report it, with what NECROCODE_DEBUG=1 shows"


def _say_error(message: str, hint: str, code: int) -> None:
    from necrocode.screen import clean

    # A task file's mistakes are told at once, one a line.
    lines = "\n".join(clean(line) for line in message.splitlines())
    with suppress(OSError):
        sys.stderr.write(f"necrocode: {lines}\n" + (f"hint: {clean(hint)}\n" if hint else ""))
        sys.stderr.flush()


def _emit_error(door: Door, kind: str, message: str, hint: str, code: int, facts: dict[str, Any]) -> None:
    with suppress(OSError):
        door.emit({"error": {**facts, "kind": kind, "message": message, "hint": hint, "exit_code": code}})


def _wants_json(door: Door, args: Sequence[str]) -> bool:
    ours = args[: args.index("--")] if "--" in args else args
    return door.as_json or "--json" in ours
