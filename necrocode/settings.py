"""Which settings hold here, and who said each.

What counts, the first that says anything: a flag, the environment, (the task file, for what it may say,)
necrocode.toml at the top of the repository, [tool.necrocode] in pyproject.toml, the user's config.toml, the default."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import configured
from necrocode.declared import SETTINGS, checked
from necrocode.task import Defaults

FLAG, ENVIRONMENT, DEFAULT = "flag", "environment", "default"
_OF_TASKS = {name: name for name in ("jobs", "agent", "timeout", "retries")} | {"workspace_mode": "workspace"}
"""What a task file may say too, and what it calls it."""


class Resolved(NamedTuple):
    """What holds: the values by their keys, and who said each (flag, environment, default, or the file it is in)."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def now(self, key: str) -> Any:
        """The value that was said for this very call, by a flag or the environment; None when it was not."""
        said = self.origins[key] == FLAG or self.origins[key].startswith(ENVIRONMENT)
        return self.values[key] if said else None

    @property
    def base(self) -> Defaults:
        """What the files say for tasks whose own file does not."""
        said = {name: self.values[key] for key, name in _OF_TASKS.items() if self.now(key) is None}
        return Defaults(**{name: value for name, value in said.items() if value is not None})


def resolve(where: Path, flags: Mapping[str, Any] | None = None) -> Resolved:
    """The settings that hold in `where`. `flags` are those of the command line, None for what was not given.

    Raises ConfigError for a file that cannot be read, an unknown key, and a value that cannot be meant."""
    values = {key: setting.default for key, setting in SETTINGS.items()}
    origins = dict.fromkeys(SETTINGS, DEFAULT)
    for layer in reversed(list(configured.layers(where))):
        found = checked(layer.values, layer.where)
        values |= found
        origins |= dict.fromkeys(found, layer.where)
    for key, setting in SETTINGS.items():
        if (text := os.environ.get(setting.variable, "")) != "":
            values |= checked({key: text}, f"${setting.variable}", text=True)
            origins[key] = f"{ENVIRONMENT} {setting.variable}"
    said = {key: value for key, value in (flags or {}).items() if key in SETTINGS and value not in (None, "")}
    values |= checked(said, "the command line", text=True)
    return Resolved(values, {**origins, **dict.fromkeys(said, FLAG)})


def line(key: str, text: str) -> str:
    """The line of a configuration file that says so. Raises ConfigError for an unknown key or an impossible value."""
    return f"{key} = {literal(checked({key: text}, 'config set', text=True)[key])}"


def literal(value: Any) -> str:
    """A value as TOML writes it; a duration of whole seconds without its point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)
