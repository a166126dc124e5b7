"""necrocode logs: what a task said, made safe for a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from necrocode import names as known
from necrocode.door import Door, plain, verb
from necrocode.errors import ConfigError

if TYPE_CHECKING:
    from necrocode.lookup import Found
    from necrocode.outputs import Piece
    from necrocode.statedir import StateDir


@verb("logs")
@click.argument("name", metavar="TASK", type=known.TASK)
@click.option("-f", "--follow", is_flag=True, help="Go on until the attempt ends.")
@click.option("--stderr", "stderr_only", is_flag=True, help="Only what was written to stderr.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="That attempt (default: the last one).")
@click.option("--raw", is_flag=True, help="The bytes as they are, with whatever they do to a terminal.")
def command(door: Door, name: str, follow: bool, stderr_only: bool, attempt: int | None, raw: bool) -> None:
    """The output of TASK: RUN/TASK, RUN.TASK, or TASK alone (that of the newest run which has it).

    Its set-up, its work and its checks one after another; where there are several logs, stderr says which one
    follows. Escape sequences and control characters are taken out. With --json one document, with -f one line
    for each piece."""
    from necrocode import lookup, outputs

    state = door.knowing(name)
    found = lookup.find(state, name)
    if not found.task_id:
        raise ConfigError(f"{name} is no task of a run, and only those have logs", hint=_hint(state, found))
    if found.also:
        door.say(f"necrocode: that of run {found.run_id}; also in {', '.join(found.also[:5])}")
    number, folder, is_over = _attempt(door, state, found, attempt or found.attempt, follow)
    if door.as_json and not follow:
        return door.emit(_document(found, number, folder, is_over(), outputs.whole(folder, stderr_only=stderr_only)))
    growing = outputs.growing(folder, is_over if follow else lambda: True, stderr_only=stderr_only)
    if not _print(door, growing, raw):
        door.say(f"necrocode: {found} has printed nothing (necrocode why {found})")


def _hint(state: StateDir, found: Found) -> str:
    from necrocode import lookup

    return f"its tasks: {', '.join(lookup.task_ids(state, found.run_id)[:20])}" if found.run_id else ""


def _attempt(
    door: Door, state: StateDir, found: Found, wanted: int, follow: bool
) -> tuple[int, Path, Callable[[], bool]]:
    """The number and folder of the attempt, and whether it is over; waits for its beginning when asked to follow."""
    import time

    from necrocode import lookup, runs
    from necrocode.ledger import lifeline

    known = dict(runs.attempts(state, found.run_id, found.task_id))
    if follow and not known and lookup.launcher_lives(state, found.run_id):
        door.say(f"necrocode: {found} has not begun; waiting for it (necrocode why {found})")
        while not known and lookup.launcher_lives(state, found.run_id):
            time.sleep(0.1)
            known = dict(runs.attempts(state, found.run_id, found.task_id))
    number = wanted or max(known, default=0)
    if number not in known:
        told = f"its attempts: {', '.join(map(str, known))}" if known else f"necrocode why {found}"
        raise ConfigError(f"there is no attempt {number or ''} of {found} yet".replace("  ", " "), hint=told)
    folder, life = known[number], state.live / f"{found.run_id}.{found.task_id}.{number}"

    def is_over() -> bool:
        if (folder / "result.json").exists():
            return True
        # Without a result only its launcher can still bring it one, or start it at all.
        return not lifeline.is_held(life) and not lookup.launcher_lives(state, found.run_id)

    return number, folder, is_over


def _document(found: Found, number: int, folder: Path, over: bool, pieces: Iterator[Piece]) -> dict[str, Any]:
    texts: dict[str, str] = {}
    for piece in pieces:
        texts[piece.log] = texts.get(piece.log, "") + piece.text()
    facts = {"run_id": found.run_id, "task_id": found.task_id, "attempt": number}
    return {**facts, "folder": str(folder), "ended": over, "logs": texts}


def _print(door: Door, pieces: Iterator[Piece], raw: bool) -> bool:
    """Whether there was anything."""
    last = ""
    for piece in pieces:
        if last != piece.log and (last or piece.log != "stdout.log") and not door.as_json:
            door.say(f"==> {piece.log} <==")
        last = piece.log
        if door.as_json:
            door.show(json.dumps(plain({"log": piece.log, "text": piece.text()})))
            continue
        sys.stdout.buffer.write(piece.data if raw else piece.text().encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
    return bool(last)
