"""necrocode config: the host's limit and quotas, shown and changed; both hold for whoever comes next, at once."""

from __future__ import annotations

import click

from necrocode.door import Door, verb
from necrocode.errors import ConfigError

_HINT = "necrocode config set limit 4 (or none); necrocode config set quota spec:NAME 2 (or none)"


@verb("config")
@click.argument("words", nargs=-1, metavar="[set limit N|none] [set quota spec:NAME|user:NAME N|none]")
def command(door: Door, words: tuple[str, ...]) -> None:
    """Show the host's limit and quotas, or change one.

    \b
    necrocode config
    necrocode config set limit 4
    necrocode config set quota spec:api 2
    necrocode config set limit none

    Lowering ends nobody; raising lets those who wait in at once."""
    if words:
        _change(door, words)
    snapshot = door.ledger().snapshot() if door.existing() else None
    limit, quotas = (snapshot.limit, snapshot.quotas) if snapshot else (None, {})
    if door.as_json:
        return door.emit({"state_dir": str(door.root), "limit": limit, "quotas": quotas})
    lines = [f"limit {'none' if limit is None else limit}", *(f"quota {name} {n}" for name, n in quotas.items())]
    return door.show("\n".join(lines))


def _change(door: Door, words: tuple[str, ...]) -> None:
    match words:
        case ("set", "limit", number):
            door.ledger().configure(limit=_count(number))
        case ("set", "quota", name, number):
            _set_quota(door, name, _count(number))
        case _:
            raise ConfigError(f"{' '.join(words)!r} cannot be set", hint=_HINT)


def _set_quota(door: Door, name: str, count: int | None) -> None:
    if name.partition(":")[0] not in ("spec", "user") or not name.partition(":")[2]:
        raise ConfigError(f"a quota belongs to spec:NAME or user:NAME, not to {name!r}", hint=_HINT)
    ledger = door.ledger()
    quotas = {known: n for known, n in ledger.snapshot().quotas.items() if known != name}
    ledger.configure(quotas=quotas if count is None else {**quotas, name: count})


def _count(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is no number from 1, and not 'none'", hint=_HINT)
    return int(text)
