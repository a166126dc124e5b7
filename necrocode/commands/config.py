"""necrocode config: the host's terms, which hold for whoever comes next, and the settings of the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from necrocode.door import Door, verb
from necrocode.errors import ConfigError
from necrocode.screen import clean

_HINT = "necrocode config set limit 4 (or none); necrocode config set quota spec:NAME 2 (or none)"
_EMPTY = "necrocode configuration; `necrocode config --show-origin` says what holds, and why"


def _offered(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The words that may come next: `set`, keys, and where there are only some, values."""
    from necrocode.declared import SETTINGS

    known: tuple[str, ...] = ()
    match ctx.params.get("words") or ():
        case ():
            known = ("set", "limit", *SETTINGS)
        case ("set",):
            known = ("limit", "quota", *SETTINGS)
        case ("set", key) if key in SETTINGS:
            known = SETTINGS[key].choices or (("true", "false") if SETTINGS[key].kind is bool else ())
    return [word for word in known if word.startswith(incomplete)]


@verb("config")
@click.argument(
    "words",
    nargs=-1,
    shell_complete=_offered,
    metavar="[KEY] [set KEY VALUE|none] [set limit N|none] [set quota NAME N|none]",
)
@click.option("--show-origin", is_flag=True, help="Say who said each: a file, the environment, or the default.")
@click.option("--user", is_flag=True, help="Change your own file, instead of necrocode.toml in this repository.")
def command(door: Door, words: tuple[str, ...], show_origin: bool, user: bool) -> None:
    """Show the host's limit and quotas and what is configured (--show-origin: all settings), or change one.

    \b
    necrocode config --show-origin
    necrocode config jobs
    necrocode config set limit 4
    necrocode config set quota spec:api 2
    necrocode config set agent codex
    necrocode config set retries none

    The limit and quotas belong to the machine and hold at once: lowering ends nobody, raising lets those who wait
    in. Settings are written to necrocode.toml at the top of the repository (--user: to your own file)."""
    if words[:1] == ("set",):
        _change(door, words, user)
        return _show(door, False, only_host=words[1] in ("limit", "quota"))
    if len(words) == 1:
        return _show_one(door, words[0])
    if words:
        raise ConfigError(f"{' '.join(words)!r} cannot be understood", hint=_HINT)
    return _show(door, show_origin)


def _show(door: Door, show_origin: bool, *, only_host: bool = False) -> None:
    """The host's terms; and the settings: all of them with their origins, or only those that somebody has said."""
    from necrocode import settings

    snapshot = door.ledger().snapshot() if door.existing() else None
    limit, quotas = (snapshot.limit, snapshot.quotas) if snapshot else (None, {})
    found = settings.resolve(Path.cwd(), {"state_dir": door.state_dir})
    values = {**found.values, "state_dir": str(door.root)}
    if door.as_json:
        facts = {"state_dir": str(door.root), "limit": limit, "quotas": quotas}
        return door.emit({**facts, "settings": values, "origins": found.origins})
    lines = [f"limit {'none' if limit is None else limit}", *(f"quota {name} {n}" for name, n in quotas.items())]
    lines = [line + ("  (config.json of the state directory)" if show_origin else "") for line in lines]
    said = [name for name in values if found.origins[name] != settings.DEFAULT and name != "state_dir"]
    shown = list(values) if show_origin else [] if only_host else said
    width = max(map(len, shown), default=0)
    for name in shown:
        origin = f"  ({found.origins[name]})" if show_origin else ""
        lines.append(f"{name:<{width}}  {_text(values[name])}{origin}")
    return door.show("\n".join(map(clean, lines)))


def _show_one(door: Door, key: str) -> None:
    from necrocode import settings
    from necrocode.declared import known

    found = settings.resolve(Path.cwd(), {"state_dir": door.state_dir})
    if key == "limit":
        value: Any = door.ledger().snapshot().limit if door.existing() else None
    elif key == "state_dir":
        value = str(door.root)
    else:
        value = found.values[known(key).key]
    if door.as_json:
        return door.emit({key: value})
    return door.show(_text(value))


def _text(value: Any) -> str:
    if value in (None, ""):
        return "-"
    from necrocode.settings import literal

    return value if isinstance(value, str) else literal(value)


def _change(door: Door, words: tuple[str, ...], user: bool) -> None:
    match words:
        case ("set", "limit", number):
            door.ledger().configure(limit=_count(number))
        case ("set", "quota", name, number):
            _set_quota(door, name, _count(number))
        case ("set", key, value) if key != "quota":
            _set(door, key, value, user)
        case _:
            raise ConfigError(f"{' '.join(words)!r} cannot be set", hint=_HINT)


def _set(door: Door, key: str, value: str, user: bool) -> None:
    """In the file, whose other lines stay as they are."""
    from necrocode import configured, settings
    from necrocode.declared import known
    from necrocode.statedir import move, put

    try:
        known(key)
    except ConfigError as error:
        raise ConfigError(f"{key!r} cannot be set: {error}", hint=error.hint) from None
    line = None if value == "none" and key != "workspace_mode" else settings.line(key, value)
    file = (configured.user_file() if user else configured.root(Path.cwd()) / configured.NAME).resolve()
    text = file.read_text(encoding="utf-8") if file.exists() else f"# {_EMPTY}\n"
    changed = configured.changed(text, key, line, file)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.urandom(3).hex()}")
    put(draft, changed.encode(), mode=file.stat().st_mode & 0o7777 if file.exists() else 0o644, durable=True)
    move(draft, file)
    door.say(f"necrocode: {clean(str(file))}: {line or f'{key} is not said any more'}")


def _set_quota(door: Door, name: str, count: int | None) -> None:
    if name.partition(":")[0] not in ("spec", "user") or not name.partition(":")[2]:
        raise ConfigError(f"a quota belongs to spec:NAME or user:NAME, not to {name!r}", hint=_HINT)
    door.ledger().configure(quota={name: count})


def _count(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is no number from 1, and not 'none'", hint=_HINT)
    return int(text)
