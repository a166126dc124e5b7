"""From the data of a task file to tasks: every check that needs more than one key, and one error for all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from necrocode.claim import Claim
from necrocode.errors import ConfigError
from necrocode.task import Argv, Defaults, Step, Task
from necrocode.taskmodels import DefaultsModel, Mistake, TaskModel, validated
from necrocode.tasktext import DEEPEST, Document, Path, near

MOST_TOLD = 20

# What git refuses in a branch name, and a leading `-`, which would be read as an option.
_BAD_BRANCH = re.compile(r"^[-/.]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|/\.|@\{|^@$|\.lock(/|$)|[/.]$")


def built(document: Document, name: str, base: Defaults) -> tuple[tuple[Task, ...], Defaults]:
    """The tasks and defaults of a task file; `base` holds where it says nothing.

    Raises ConfigError with all that is wrong."""
    mistakes: list[Mistake] = [(path, "is there twice") for path in document.twice]
    mistakes += [(path, _broken(text)) for path, text in _texts(document.data, (), name) if _broken(text)]
    mistakes += _unknown(document.data)
    defaults = _defaults(document.data.get("defaults", {}), base, mistakes)
    items = document.data.get("task")
    if items == []:
        mistakes.append(((), "has no tasks; write at least one"))
    elif not isinstance(items, list):
        mistakes.append((("task",), "must be a list of tasks; in TOML, each begins with [[task]]"))
        items = []
    tasks = [_task(item, ("task", at), defaults, mistakes) for at, item in enumerate(items)]
    _check_ids(items, document, mistakes)
    _check_after(items, mistakes)
    if mistakes:
        raise _error(document, mistakes, name)
    return tuple(task for task in tasks if task is not None), defaults


def agent_lines(document: Document) -> dict[str, int]:
    """For each task the line that names its agent: its own, else that of the defaults, else that of the task."""
    shared = document.lines.get(("defaults", "agent"))
    lines = {task_id: document.line(("task", at)) or 1 for at, task_id in _ids(document.data["task"])}
    own = {task_id: document.lines.get(("task", at, "agent")) for at, task_id in _ids(document.data["task"])}
    return {task_id: own[task_id] or shared or line for task_id, line in lines.items()}


def _unknown(data: Mapping[str, Any]) -> Iterator[Mistake]:
    known = ("task", "defaults", "$schema")
    return (((key,), "unknown key" + near(key, known)) for key in data if key not in known)


def _texts(value: Any, path: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Every text in the file, keys included, and where it is. Raises ConfigError where it goes too deep."""
    if len(path) > DEEPEST:
        raise ConfigError("it is nested too deeply", where=name)
    if isinstance(value, str):
        yield path, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in pairs:
        if isinstance(key, str):
            yield (*path, key), key
        yield from _texts(below, (*path, key), name)


def _broken(text: str) -> str:
    if "\0" in text:
        return "has a NUL character"
    if text.isascii():
        return ""
    return "has half a character (a lone surrogate)" if any("\ud800" <= char <= "\udfff" for char in text) else ""


def _defaults(data: Any, base: Defaults, mistakes: list[Mistake]) -> Defaults:
    path: Path = ("defaults",)
    values = validated(DefaultsModel, data, path, mistakes)
    _check_env(data.get("env") if isinstance(data, dict) else None, path, mistakes)
    if values is None:
        return base
    for key in ("verify", "setup"):
        values[key] = _commands(values[key], (*path, key), mistakes)
    return base._replace(**{key: value for key, value in values.items() if value not in (None, "", (), {})})


def _task(data: Any, path: Path, defaults: Defaults, mistakes: list[Mistake]) -> Task | None:
    values = validated(TaskModel, data, path, mistakes)
    if isinstance(data, dict):
        _check_item(data, path, mistakes)
    if values is None:
        return None
    values["command"] = _argv(values["command"], (*path, "command"), mistakes)
    values["verify"] = _commands(values["verify"], (*path, "verify"), mistakes)
    values["playbook"] = _steps(values["playbook"], (*path, "playbook"), mistakes)
    values["prompt"] = values["prompt"] or ""
    for key in ("files", "claims", "after", "tags"):
        values[key] = tuple(values[key])
    return Task(**_with_defaults(values, defaults))


def _with_defaults(values: dict[str, Any], defaults: Defaults) -> dict[str, Any]:
    for key in ("timeout", "silent_timeout", "retries", "workspace"):
        if values[key] is None:
            values[key] = getattr(defaults, key)
    if values["verify"] is None:
        values["verify"] = defaults.verify
    if values["prompt"] and not values["agent"]:
        values["agent"] = defaults.agent
    values["env"] = {**defaults.env, **values["env"]}
    return values


def _check_item(item: Mapping[str, Any], path: Path, mistakes: list[Mistake]) -> None:
    """What one task's keys must be beyond their types. Those of the wrong type were told of already."""
    given = [key for key in ("prompt", "command", "playbook") if item.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        mistakes.append((path, f"give exactly one of prompt, command and playbook, not {found}"))
    task_id, branch = _text(item.get("id")), _text(item.get("branch"))
    if ".." in task_id or task_id.endswith((".", ".lock")):
        mistakes.append(((*path, "id"), f"{task_id!r} cannot be part of a branch's name"))
    if _BAD_BRANCH.search(branch):
        mistakes.append(((*path, "branch"), f"{branch!r} cannot be a branch's name"))
    for key, make in _CLAIMS.items():
        for at, text in _items(item.get(key)):
            try:
                make(text)
            except ConfigError as error:
                mistakes.append(((*path, key, at), f"{error}" + (f" ({error.hint})" if error.hint else "")))
    _check_env(item.get("env"), path, mistakes)


def _claim(text: str) -> Claim:
    # Where a workspace lies only the disk knows: unlike files, it may be beside the directory it is named from.
    return Claim.workspace("/") if re.match(r"(shared:)?workspace:.", text) else Claim.parse(text)


_CLAIMS: dict[str, Callable[[str], Claim]] = {"files": Claim.file, "claims": _claim}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _items(value: Any) -> Iterator[tuple[int, str]]:
    """The texts in a list that are neither empty nor broken, each with its place."""
    for at, text in enumerate(value if isinstance(value, list) else ()):
        if _text(text) and not _broken(text):
            yield at, text


def _check_env(env: Any, path: Path, mistakes: list[Mistake]) -> None:
    for key in env if isinstance(env, dict) else ():
        if not key or "=" in key:
            mistakes.append(((*path, "env", key), f"{key!r} cannot be the name of an environment variable"))


def _argv(command: str | list[str] | None, path: Path, mistakes: list[Mistake]) -> Argv:
    if command is None:
        return ()
    try:
        argv = tuple(shlex.split(command) if isinstance(command, str) else command)
    except ValueError as error:
        mistakes.append((path, f"cannot be split into arguments: {error}"))
        return ()
    if not argv or not argv[0]:
        mistakes.append((path, "does not name a program"))
    return argv


def _commands(commands: str | list[Any] | None, path: Path, mistakes: list[Mistake]) -> Any:
    if commands is None:
        return None if path[0] == "task" else ()
    if isinstance(commands, str):
        return (_argv(commands, path, mistakes),)
    return tuple(_argv(command, (*path, at), mistakes) for at, command in enumerate(commands))


def _steps(steps: list[dict[str, Any]] | None, path: Path, mistakes: list[Mistake]) -> tuple[Step, ...]:
    return tuple(
        Step(**{**step, "command": _argv(step["command"], (*path, at, "command"), mistakes)})
        for at, step in enumerate(steps or ())
    )


def _ids(items: list[Any]) -> Iterator[tuple[int, str]]:
    for at, item in enumerate(items):
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            yield at, item["id"]


def _check_ids(items: list[Any], document: Document, mistakes: list[Mistake]) -> None:
    first: dict[str, int] = {}
    for at, task_id in _ids(items):
        if first.setdefault(task_id, at) != at:
            line = document.line(("task", first[task_id], "id"))
            mistakes.append((("task", at, "id"), f"{task_id!r} is already the id of the task on line {line}"))


def _check_after(items: list[Any], mistakes: list[Mistake]) -> None:
    known = {task_id: at for at, task_id in _ids(items)}
    graph: dict[str, list[str]] = {task_id: [] for task_id in known}
    for at, task_id in _ids(items):
        for position, other in _items(items[at].get("after")):
            if other in known:
                graph[task_id].append(other)
            else:
                text = f"there is no task {other!r}" + near(other, known)
                mistakes.append((("task", at, "after", position), text))
    while circle := _circle(graph):
        mistakes.append((("task", known[circle[0]], "after"), " after ".join(circle) + " would never end"))
        for task_id in circle:
            graph.pop(task_id, None)


def _circle(graph: Mapping[str, list[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


def _error(document: Document, mistakes: list[Mistake], name: str) -> ConfigError:
    ordered = sorted(dict.fromkeys(mistakes), key=lambda mistake: document.line(mistake[0]) or 0)
    told = [_told(document, path, text, name) for path, text in ordered[:MOST_TOLD]]
    if len(ordered) > MOST_TOLD:
        told.append(f"{name}: and {len(ordered) - MOST_TOLD} more")
    error = ConfigError("\n".join(told), hint="nothing was started; mend the file and try again")
    error.where = name
    return error


def _told(document: Document, path: Path, text: str, name: str) -> str:
    line = document.line(path)
    where = f"{name}:{line}: " if line else f"{name}: "
    if len(path) > 1 and path[0] == "task":
        item = document.data["task"][path[1]]
        task_id = item.get("id") if isinstance(item, dict) else None
        where += f"task {task_id!r}: " if isinstance(task_id, str) else f"task number {int(path[1]) + 1}: "
        path = path[2:]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return f"{where}{key}: {text}" if key else where + text
