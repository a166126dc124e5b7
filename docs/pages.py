"""python docs/pages.py: writes the tables that pages derive from the code, each between its two marks.

What is derived: the settings, what they are called in a program, and the options of every command."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from necrocode.cli import VERBS, group
from necrocode.declared import FIELDS, SETTINGS
from necrocode.door import Door

BAR = r"\|"
DOCS = Path(__file__).resolve().parent
_MARKED = re.compile(r"(<!-- made by docs/pages\.py: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def written(page: Path) -> str:
    """The text of a page with what is derived in it. Raises KeyError for a mark that names nothing."""

    def derived(match: re.Match[str]) -> str:
        lines = {"settings": _settings, "fields": _fields, "options": lambda: _options(page.stem)}[match[2]]()
        return match[1] + "".join(f"{line}\n" for line in lines) + match[3]

    return _MARKED.sub(derived, page.read_text())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(tuple(head)) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |"


def _settings() -> Iterator[str]:
    rows = (
        (f"`{key}`", f"`{', '.join(one.options)}`", f"`{one.variable}`", _text(one.default), one.described)
        for key, one in SETTINGS.items()
    )
    return _table(("key", "flag", "variable", "default", "what"), rows)


def _fields() -> Iterator[str]:
    rows = (
        (f"`{field}`", f"`{one.key}`", _text(one.program), re.sub(r" \(default: [^)]*\)", "", one.described))
        for field, one in FIELDS.items()
    )
    return _table(("field of RunnerConfig", "key", "default there", "what"), rows)


def _text(value: Any) -> str:
    if value in (None, ""):
        return "-"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _options(verb: str) -> Iterator[str]:
    """The line of use, and a row for each option. Worded here, since click's own words change with its versions."""
    command = group.get_command(click.Context(group, obj=Door()), verb)
    assert command is not None
    arguments = [_argument(one) for one in command.params if isinstance(one, click.Argument)]
    yield from (f"`{' '.join(['necrocode', verb, '[OPTIONS]', *arguments])}`", "")
    options = [one for one in command.params if isinstance(one, click.Option)]
    yield from _table(("option", "what"), ((f"`{_names(one)}`", (one.help or "") + _bounds(one)) for one in options))


def _argument(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    name = str(argument.name).upper()
    return name if argument.required else f"[{name}]"


def _names(option: click.Option) -> str:
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    if option.is_flag:
        return names
    choices = "|".join(option.type.choices) if isinstance(option.type, click.Choice) else ""
    given = option.metavar or choices or ("N" if isinstance(option.type, click.IntRange) else "TEXT")
    # A bar within code ends the cell of a table for some readers of Markdown, and is shown with its escape by others.
    return f"{names} {given.replace('|', ' or ')}"


def _bounds(option: click.Option) -> str:
    low, high = getattr(option.type, "min", None), getattr(option.type, "max", None)
    return f" ({low} to {high})" if low is not None and high is not None else ""


def pages() -> list[Path]:
    """All pages that have something derived in them."""
    missing = [verb for verb in VERBS if not (DOCS / "commands" / f"{verb}.md").exists()]
    if missing:
        raise SystemExit(f"no page for {', '.join(missing)}")
    return [page for page in sorted(DOCS.rglob("*.md")) if _MARKED.search(page.read_text())]


if __name__ == "__main__":
    for page in pages():
        if (text := written(page)) != page.read_text():
            page.write_text(text)
            sys.stdout.write(f"{page.relative_to(DOCS.parent)}\n")
