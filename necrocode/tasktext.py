"""The text of a task file, in any of its formats, as plain data that remembers its lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from necrocode.errors import ConfigError

Format = Literal["toml", "json", "jsonl", "yaml"]
Path = tuple[str | int, ...]
"""Where a value is: keys and positions from the top, as in `("task", 2, "env", "HOME")`."""

DEEPEST, MOST_VALUES = 40, 1_000_000
"""More than any task file needs; beyond it there is a mistake, or a YAML file that unfolds without end."""


class Document(NamedTuple):
    """`data` is the top table; `lines` says on which line (the first is 1) a key or list item begins."""

    data: Mapping[str, Any]
    lines: Mapping[Path, int]
    twice: tuple[Path, ...] = ()
    """Keys that are there more than once in one table."""

    def line(self, path: Path) -> int | None:
        """The line of that key or item, or of the nearest one around it that is known."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def decoded(text: str, format: Format, name: str) -> Document:
    """The data in `text`; a list at the top is taken as the list of tasks.

    Raises ConfigError for text that is empty or not of this format."""
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ConfigError("the file is empty", where=name, hint="write at least one task")
    reader = {"toml": _toml, "json": _json, "jsonl": _jsonl, "yaml": _yaml}[format]
    try:
        return reader(text, name)
    except RecursionError:
        raise ConfigError("it is nested too deeply", where=name) from None


def _toml(text: str, name: str) -> Document:
    import tomllib

    try:
        data = tomllib.loads(text + "\n")
    except ValueError as error:  # TOMLDecodeError, or a number too long for Python
        said = str(error)
        found = re.search(r" \(at line (\d+), column \d+\)$", said)
        where, said = (f"{name}:{found[1]}", said[: found.start()]) if found else (name, said)
        raise ConfigError(f"this is not TOML: {said}", where=where) from None
    return Document(data, _toml_lines(text))


_LONG_STRING = re.compile(r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'', re.DOTALL)
_NAME = r"""(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_NAMES = rf"{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_NAMES})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*({_NAMES})[ \t]*=")


def _toml_lines(text: str) -> dict[Path, int]:
    """A scan that knows headers and keys at the start of a line: enough to point at, never what is read."""
    lines: dict[Path, int] = {}
    sizes: dict[Path, int] = {}
    table: Path = ()
    text = _LONG_STRING.sub(lambda string: '""' + "\n" * string[0].count("\n"), text)
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = _opened(header[2], sizes, more=header[1] == "[[")
            for depth in range(1, len(table) + 1):
                lines.setdefault(table[:depth], number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_parts(key[1])), number)
    return lines


def _opened(names: str, sizes: dict[Path, int], *, more: bool) -> Path:
    """The path of a table header; `sizes` counts the tables of each array so far."""
    path: Path = ()
    parts = _parts(names)
    for at, part in enumerate(parts, 1):
        path = (*path, part)
        if more and at == len(parts):
            sizes[path] = sizes.get(path, 0) + 1
        if path in sizes:
            path = (*path, sizes[path] - 1)
    return path


def _parts(names: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(_NAME, names)]


def _json(text: str, name: str) -> Document:
    data = _json_value(text, name, 1)
    lines, twice = _json_lines(text, 1)
    if isinstance(data, list):
        return Document({"task": data}, {("task", *path): line for path, line in lines.items()}, _in_tasks(twice))
    return Document(_table(data, name), lines, twice)


def _in_tasks(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(("task", *path) for path in paths)


def _json_value(text: str, name: str, first: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"this is not JSON: {error.msg}", where=f"{name}:{first + error.lineno - 1}") from None
    except ValueError as error:  # a number too long for Python
        raise ConfigError(f"this is not usable: {error}", where=f"{name}:{first}") from None


_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[\[\]{}:,]|[^\s\[\]{}:,"]+', re.DOTALL)


def _json_lines(text: str, first: int) -> tuple[dict[Path, int], tuple[Path, ...]]:
    """The line of every key and item of valid JSON, and the keys that come twice."""
    lines: dict[Path, int] = {}
    twice: list[Path] = []
    around: list[tuple[Path, bool]] = []  # the lists and tables we are in, and whether it is a table
    here: Path = ()
    line, seen = first, 0
    for token in _TOKEN.finditer(text):
        line, seen = line + text.count("\n", seen, token.start()), token.start()
        if token[0] in "[{":
            lines.setdefault(here, line)
            around.append((here, token[0] == "{"))
            here = here if around[-1][1] else (*here, 0)
        elif token[0] in "]}":
            here = around.pop()[0]
        elif token[0] == ",":
            path, is_table = around[-1]
            here = path if is_table else (*path, int(here[-1]) + 1)
        elif around and around[-1] == (here, True) and token[0] != ":":
            here = (*here, json.loads(token[0]))
            if here in lines:
                twice.append(here)
            lines[here] = line
        elif token[0] != ":":
            lines.setdefault(here, line)
    return lines, tuple(twice)


def _jsonl(text: str, name: str) -> Document:
    tasks: list[Any] = []
    lines: dict[Path, int] = {}
    twice: list[Path] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            tasks.append(_json_value(line, name, number))
            found, again = _json_lines(line, number)
            at = ("task", len(tasks) - 1)
            lines.update({at: number} | {(*at, *path): place for path, place in found.items()})
            twice += [(*at, *path) for path in again]
    return Document({"task": tasks}, lines, tuple(twice))


def _yaml(text: str, name: str) -> Document:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ConfigError(
            "YAML needs PyYAML, which is not installed", where=name, hint="pip install 'necrocode[yaml]'"
        ) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        places = [] if node is None else list(_yaml_places(node, name))
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"this is not YAML: {said}", where=f"{name}:{mark.line + 1}" if mark else name) from None
    if data is None:
        raise ConfigError("the file is empty", where=name, hint="write at least one task")
    lines = {path: line for path, line, _ in places}
    twice = tuple(path for path, _, again in places if again)
    if isinstance(data, list):
        return Document({"task": data}, {("task", *path): line for path, line in lines.items()}, _in_tasks(twice))
    return Document(_table(data, name), lines, twice)


def _yaml_places(top: Any, name: str) -> Iterator[tuple[Path, int, bool]]:
    """Path and line of every key and item, and whether its table had that key before."""
    todo: list[tuple[Any, Path]] = [(top, ())]
    seen = 0
    while todo:
        node, path = todo.pop()
        seen += 1
        if seen > MOST_VALUES or len(path) > DEEPEST:
            raise ConfigError("it unfolds to too much", where=name, hint="are its anchors and aliases meant so?")
        had: set[str | int] = set()
        for key, mark, value in _yaml_items(node, name):
            yield (*path, key), mark.start_mark.line + 1, key in had
            had.add(key)
            todo.append((value, (*path, key)))


def _yaml_items(node: Any, name: str) -> Iterator[tuple[str | int, Any, Any]]:
    if node.id == "sequence":
        yield from ((at, item, item) for at, item in enumerate(node.value))
    for key, value in node.value if node.id == "mapping" else ():
        if not key.tag.endswith((":str", ":merge")):
            raise ConfigError(
                f"{key.value!r} is not text, and cannot be a key",
                where=f"{name}:{key.start_mark.line + 1}",
                hint="put it into quotes",
            )
        yield key.value, key, value


def _table(data: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError("the file must hold a list of tasks, or a table with the key task", where=name)
    return data


def near(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known word that is nearly this one, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), 1, 0.6)
    return f", did you mean {close[0]!r}?" if close else ""
