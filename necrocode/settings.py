"""Every setting, declared once: the options of `necrocode run`, the NECROCODE_* variables, the configuration files,
`necrocode config` and its page are made of these fields.

What counts, the first that says anything: a flag, the environment, (the task file, for what it may say,)
necrocode.toml at the top of the repository, [tool.necrocode] in pyproject.toml, the user's config.toml, the default."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from necrocode import configured
from necrocode.errors import ConfigError
from necrocode.task import Defaults

PREFIX = "NECROCODE_"
FLAG, ENVIRONMENT, DEFAULT = "flag", "environment", "default"

_HOST = ("limit", "quota")
"""What belongs to the machine and not to a file."""


class Settings(BaseModel):
    """Settings of the command line; `None` and "" leave it to the task file, then to what the description says."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="necrocode settings")

    jobs: Annotated[
        int | None,
        Field(ge=1, description="Tasks at once (default: the task file's, then the number of cores)."),
    ] = None
    agent: Annotated[
        str, Field(description="The agent for prompts: a known name, or a command line with {prompt} in it.")
    ] = ""
    workspace_mode: Annotated[
        Literal["worktree", "clone", "none"] | None,
        Field(description="Where tasks work: an own git worktree (default), a shared clone, or none: here."),
    ] = None
    workspaces: Annotated[str, Field(description="The directory of workspaces (default: REPO.worktrees).")] = ""
    keep_workspaces: Annotated[bool, Field(description="Keep the workspaces of tasks that are done, too.")] = False
    timeout: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Seconds for each attempt (default: no limit).")
    ] = None
    retries: Annotated[int | None, Field(ge=0, description="Further attempts after the first fails (default: 0).")] = (
        None
    )
    patience: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Seconds to wait for what strangers hold (default: for ever)."),
    ] = None
    fail_fast: Annotated[bool, Field(description="After a failure, start nothing more.")] = False
    grace: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="Seconds between asking a program to end and SIGKILL.")
    ] = 10.0
    heartbeat_timeout: Annotated[
        float,
        Field(ge=1, allow_inf_nan=False, description="Seconds of silence after which a runner's lease is revoked."),
    ] = 300.0
    state_dir: Annotated[
        str, Field(description="Where the state lies (default: $XDG_STATE_HOME/necrocode, one per user and host).")
    ] = ""
    retention_days: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="How long `gc` keeps runs, events and quarantined files.")
    ] = 30.0


_FLAGS = {
    "jobs": ("-n", "--jobs"), "workspace_mode": ("--workspace",), "keep_workspaces": ("--keep/--no-keep",),
    "fail_fast": ("--fail-fast/--keep-going",), "state_dir": ("--state-dir",), "retention_days": ("--older",),
}  # fmt: skip
_OF_RUN = tuple(name for name in Settings.model_fields if name not in ("state_dir", "retention_days"))
_METAVARS = {float: "SECONDS", str: "TEXT"}


def flags(name: str) -> tuple[str, ...]:
    """The options that say this setting on the command line."""
    return _FLAGS.get(name, (f"--{name.replace('_', '-')}",))


def variable(name: str) -> str:
    """The environment variable that says this setting."""
    return PREFIX + name.upper()


class Resolved(NamedTuple):
    """What holds: the settings, and who said each (flag, environment, default, or the file it stands in)."""

    settings: Settings
    origins: Mapping[str, str]

    def now(self, name: str) -> Any:
        """The value that was said for this very call, by a flag or the environment; None when it was not."""
        said = self.origins[name] == FLAG or self.origins[name].startswith(ENVIRONMENT)
        return getattr(self.settings, name) if said else None

    @property
    def base(self) -> Defaults:
        """What the files say for tasks whose own file does not."""
        names = ("jobs", "agent", "workspace_mode", "timeout", "retries")
        said = {name: getattr(self.settings, name) for name in names if self.now(name) is None}
        found = {name.removesuffix("_mode"): value for name, value in said.items() if value is not None}
        return Defaults(**found)


def resolve(where: Path, flags: Mapping[str, Any] | None = None) -> Resolved:
    """The settings that hold in `where`. `flags` are those of the command line, None for what was not given.

    Raises ConfigError for a file that cannot be read, an unknown key, and a value that cannot be meant."""
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, DEFAULT)
    for layer in reversed(list(configured.layers(where))):
        found = _checked(layer.values, layer.where)
        values |= found
        origins |= dict.fromkeys(found, layer.where)
    for name in Settings.model_fields:
        if (text := os.environ.get(variable(name), "")) != "":
            values |= _checked({name: text}, f"${variable(name)}", strict=False)
            origins[name] = f"{ENVIRONMENT} {variable(name)}"
    said = {name: value for name, value in (flags or {}).items() if name in origins and value not in (None, "")}
    values |= _checked(said, "the command line", strict=False)
    return Resolved(Settings(**values), {**origins, **dict.fromkeys(said, FLAG)})


def _checked(values: Mapping[str, Any], where: str, *, strict: bool = True) -> dict[str, Any]:
    for key in values:
        known(key, where)
    try:
        model = Settings.model_validate(values, strict=strict)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = str(wrong["loc"][0])
        raise ConfigError(f"{name}: {wrong['msg'].lower()}, not {wrong['input']!r}", where=where) from None
    return {name: getattr(model, name) for name in values}


def known(key: str, where: str = "") -> str:
    """The key itself. Raises ConfigError with a near miss for one that no setting has."""
    if key not in Settings.model_fields:
        raise ConfigError(f"unknown key {key!r}", where=where, hint=_hint(key))
    return key


def value(found: Resolved, key: str) -> Any:
    """What holds for that key. Raises ConfigError for one that no setting has."""
    return getattr(found.settings, known(key))


def _hint(key: str) -> str:
    if key in _HOST:
        return f"that belongs to the machine: necrocode config set {key} ..."
    near = get_close_matches(key, Settings.model_fields, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(Settings.model_fields)}"


def line(key: str, text: str) -> str:
    """The line of a configuration file that says so. Raises ConfigError for an unknown key or an impossible value."""
    import json

    value = _checked({key: text}, "config set", strict=False)[key]
    literal = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else f"{value:g}"
    return f"{key} = {literal}"


# -- options


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command of click an option for each setting that a run has; what is not said is None."""
    import click

    for name in reversed(_OF_RUN):
        field = Settings.model_fields[name]
        function = click.option(*flags(name), name, default=None, help=field.description, **_typed(field))(function)
    return function


def _typed(field: FieldInfo) -> dict[str, Any]:
    """What click has to know of a field's type."""
    import click

    kind = next(one for one in (get_args(field.annotation) or (field.annotation,)) if one is not NoneType)
    if kind is bool:
        return {"is_flag": True}
    if choices := get_args(kind):
        return {"type": click.Choice(choices)}
    bounds = {key: getattr(one, key) for one in field.metadata for key in ("ge", "gt") if hasattr(one, key)}
    least = bounds.get("ge", bounds.get("gt"))
    if kind is int:
        return {"type": click.IntRange(least), "metavar": "N"}
    return {
        "type": click.FloatRange(least, min_open="gt" in bounds) if kind is float else str, "metavar": _METAVARS[kind],
    }  # fmt: skip
