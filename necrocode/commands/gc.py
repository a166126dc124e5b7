"""necrocode gc: what is left over and could go; shown first, removed with --yes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from necrocode.door import Door, verb
from necrocode.errors import GitFailed, NecrocodeError
from necrocode.screen import Column, Row, columns, counted, table

if TYPE_CHECKING:
    from necrocode.cleaning import Thing

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_COLUMNS = (Column("DO", 99), Column("WHAT", 90), Column("NAME", 95, 24, tail=True), Column("BECAUSE", 80, 20))


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """30d, 12h, 45m, 90s or 2w, in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value)
    if not found:
        raise click.BadParameter(f"{value!r} is no age; write for example 30d, 12h or 90m", ctx, param)
    return float(found[1]) * _UNITS[found[2]]


@verb("gc")
@click.option("-y", "--yes", is_flag=True, help="Do it. Without, it only shows what it would do.")
@click.option("--force", is_flag=True, help="Also workspaces with work that is nowhere else; it is saved first.")
@click.option(
    "--older", callback=_seconds, metavar="AGE", help="For runs, events, quarantine (default: retention_days, 30d)."
)
def command(door: Door, yes: bool, force: bool, older: float | None) -> int:
    """Remove what is left over: leases of the dead, their workspaces, and runs, events and quarantined files older
    than --older.

    Uncommitted or unlanded work is never removed unasked; with --force it is first saved to a ref below
    refs/necrocode/snap. Exit code 1 when something could not be removed."""
    things = _survey(door, _retention() if older is None else older, force)
    done = [_done(thing) if yes and not thing.keep else (thing, "", "") for thing in things]
    failed = sum(bool(error) for _, _, error in done)
    if door.as_json:
        door.emit({"dry_run": not yes, "things": [_facts(*one, yes=yes) for one in done]})
        return int(failed > 0)
    rows = [_row(*one, yes=yes) for one in done]
    if rows:
        door.show("\n".join(table(_COLUMNS, rows, columns(sys.stdout.isatty()), colored=door.colored())))
    door.say(_summary(things, failed, yes))
    return int(failed > 0)


def _retention() -> float:
    from necrocode import settings

    days: float = settings.resolve(Path.cwd()).values["retention_days"]
    return days * 86400


def _survey(door: Door, older: float, force: bool) -> list[Thing]:
    from necrocode import cleaning

    return cleaning.survey(door.ledger(), Path.cwd(), older=older, force=force) if door.existing() else []


def _done(thing: Thing) -> tuple[Thing, str, str]:
    """The thing, what is worth telling of its removal, and why it failed."""
    try:
        return thing, thing.remove(), ""
    except (NecrocodeError, GitFailed, OSError) as error:
        return thing, "", str(error)


def _row(thing: Thing, told: str, error: str, *, yes: bool) -> Row:
    if error:
        return Row(("failed", thing.kind, thing.name, error), "red")
    if thing.keep:
        return Row(("keep", thing.kind, thing.name, thing.keep), "yellow")
    return Row(("removed" if yes else "remove", thing.kind, thing.name, told or thing.why))


def _facts(thing: Thing, told: str, error: str, *, yes: bool) -> dict[str, Any]:
    do = "failed" if error else "keep" if thing.keep else "removed" if yes else "remove"
    facts = {"do": do, "kind": thing.kind, "name": thing.name, "why": thing.why, "keep": thing.keep}
    return facts | ({"told": told} if told else {}) | ({"error": error} if error else {})


def _summary(things: list[Thing], failed: int, yes: bool) -> str:
    goes = sum(not thing.keep for thing in things)
    if not goes:
        return "nothing to remove"
    if yes:
        return f"removed {counted(goes - failed, 'thing')}" + (f", {failed} could not be removed" if failed else "")
    return f"this was a dry run: `necrocode gc --yes` removes {counted(goes, 'thing')}"
