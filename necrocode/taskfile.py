"""Reading a task file from the disk: which format it has, and what can be wrong before its text is looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.errors import ConfigError
from necrocode.task import Defaults, TaskFile, parse_tasks
from necrocode.tasktext import near

if TYPE_CHECKING:
    from necrocode.tasktext import Format

FORMATS: dict[str, Format] = {
    ".toml": "toml", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".yaml": "yaml", ".yml": "yaml",
}  # fmt: skip
MOST_BYTES = 64 * 1024 * 1024


def read_tasks(path: str | os.PathLike[str], base: Defaults = Defaults()) -> TaskFile:  # noqa: B008 - immutable
    """The tasks in a file, whose name says its format; `base` holds where it says nothing.

    Raises ConfigError that names the file, the line and what is wrong: it is missing, unreadable, a directory, empty,
    too large, not UTF-8, or not a task file."""
    file = Path(path)
    if file.is_dir():
        raise ConfigError("it is a directory", where=str(path), hint="give a file")
    if file.exists() and not file.is_file():  # to open a named pipe would wait for a writer
        raise ConfigError("it is no regular file", where=str(path), hint="give a file")
    format = FORMATS.get(file.suffix.lower())
    if format is None:
        known = ", ".join(FORMATS)
        raise ConfigError(
            f"{file.suffix or 'no ending'!r} does not say what format it has{near(file.suffix, FORMATS)}",
            where=str(path),
            hint=f"give it a name that ends in one of {known}",
        )
    return parse_tasks(_text(file), format=format, name=str(path), base=base)


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror}", where=str(file), hint=_hint(file)) from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"it has more than {MOST_BYTES >> 20} MiB", where=str(file))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"byte 0x{data[error.start]:02x} is not UTF-8", where=f"{file}:{line}", hint="save the file as UTF-8"
        ) from None


def _hint(file: Path) -> str:
    if file.exists():
        return ""
    beside = [other.name for other in sorted(file.parent.glob("*")) if other.suffix in FORMATS][:50]
    return near(file.name, beside).removeprefix(", ")
