"""The configuration files as they lie on the disk, nearest first: which there are, and what each says.

Nothing here knows what the keys mean; that, and whether a value can be meant, is for `settings`. Only where the state
lies must be known to every command."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from necrocode.errors import ConfigError

NAME = "necrocode.toml"
_PLACES = ("state_dir", "workspaces")
"""Keys whose values are paths: relative ones begin at the file that says them."""


class Layer(NamedTuple):
    """What one file says. `file` is where it lies; `where` names it in messages."""

    file: Path
    where: str
    values: Mapping[str, Any]


def root(where: Path) -> Path:
    """The top of the repository (or work tree) around `where`, or `where` itself outside of one."""
    return next((above for above in (where, *where.parents) if os.path.lexists(above / ".git")), where)


def user_file() -> Path:
    """The user's own file, for all repositories."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "necrocode" / "config.toml"


def layers(where: Path) -> Iterator[Layer]:
    """What the files say that hold in `where`, the one that counts most first. Raises ConfigError."""
    top = root(where)
    for file, tables in ((top / NAME, ()), (top / "pyproject.toml", ("tool", "necrocode")), (user_file(), ())):
        data = _table(file, tables)
        if data is not None:
            yield Layer(file, f"{file}{' [tool.necrocode]' if tables else ''}", _placed(file, data))


def state_dir(where: Path) -> str:
    """The state directory that the files name, "" when none does. Raises ConfigError."""
    for layer in layers(where):
        if found := layer.values.get("state_dir"):
            if not isinstance(found, str):
                raise ConfigError("state_dir must be text", where=layer.where)
            return found
    return ""


def _placed(file: Path, data: Mapping[str, Any]) -> Mapping[str, Any]:
    placed = {
        key: os.path.abspath(file.parent / Path(data[key]).expanduser())
        for key in _PLACES if isinstance(data.get(key), str) and data[key]
    }  # fmt: skip
    return {**data, **placed}


def _table(file: Path, tables: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The table in the file, None where there is no such file or table."""
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"it cannot be read: {getattr(error, 'strerror', None) or error}", where=str(file)) from None
    if tables and tables[-1] not in text:
        return None  # most are not about us, and reading TOML takes its time
    data: Any = parsed(text, file)
    for name in tables:
        data = data.get(name) if isinstance(data, dict) else None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{'.'.join(tables)} must be a table", where=str(file))
    return data


def parsed(text: str, file: Path) -> dict[str, Any]:
    """The data in TOML text. Raises ConfigError that names file and line."""
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        where, said = (f"{file}:{found[1]}", str(error)[: found.start()]) if found else (str(file), str(error))
        raise ConfigError(f"this is not TOML: {said}", where=where) from None


# -- changing a file, comments and all


def changed(text: str, key: str, line: str | None, file: Path) -> str:
    """The text with `line` saying that key (None: saying nothing of it), all else as it was.

    Raises ConfigError with what to do by hand when that cannot be done safely."""
    before = parsed(text, file)
    lines = text.splitlines()
    top = next((at for at, one in enumerate(lines) if one.lstrip().startswith("[")), len(lines))
    said = _place(lines[:top], rf"{re.escape(key)}[ \t]*=")
    hinted = _place(lines[:top], rf"#[ \t]*{re.escape(key)}[ \t]*=")
    at = said if said is not None else hinted
    if line is None:
        lines = [one for number, one in enumerate(lines) if number != said]
    elif at is not None:
        lines[at] = line
    else:
        lines.insert(top, line)
    after = "\n".join(lines) + "\n"
    wanted = {name: value for name, value in before.items() if name != key} | (parsed(line, file) if line else {})
    if _loaded(after) != wanted:
        todo = f"write into it: {line}" if line else f"take {key} out of it"
        raise ConfigError("it is too unusual to be changed by a program", where=str(file), hint=todo)
    return after


def _place(lines: list[str], pattern: str) -> int | None:
    return next((at for at, one in enumerate(lines) if re.match(rf"[ \t]*{pattern}", one)), None)


def _loaded(text: str) -> dict[str, Any] | None:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError:
        return None
