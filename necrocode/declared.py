"""Every setting, declared once. The options of the command line, the NECROCODE_* variables, the keys of configuration
files, `necrocode config` and its page, and the fields of RunnerConfig that mean the same are made of these lines."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any, NamedTuple

from necrocode.errors import ConfigError

PREFIX = "NECROCODE_"
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_HOST = ("limit", "quota")
"""What belongs to the machine and not to a file."""


class Setting(NamedTuple):
    """One setting; durations are in seconds.

    `of` says which commands have its flag: run, gc, or every one. `least` is the smallest value that can be meant;
    with `above` it must be larger. `field` is what RunnerConfig calls it ("": it has none), `program` its default
    there."""

    key: str
    kind: type
    default: Any
    described: str
    least: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    of: str = "run"
    field: str = ""
    program: Any = None

    @property
    def variable(self) -> str:
        """The environment variable that says it."""
        return PREFIX + self.key.upper()

    @property
    def options(self) -> tuple[str, ...]:
        """The options that say it on the command line."""
        return self.flags or (f"--{self.key.replace('_', '-')}",)

    def read(self, value: Any, *, text: bool = False) -> Any:
        """The value as it is meant; `text`: it comes from a flag or a variable. Raises ValueError with the rule."""
        meant: Any = self._converted(value) if text and isinstance(value, str) else value
        if self.kind is float and type(meant) is int:
            meant = float(meant)
        kind: object = type(meant)  # exactly: true is no number
        if kind is not self.kind or (kind is float and not isfinite(meant)):
            raise ValueError(f"it must be {_NAMES[self.kind]}")
        if self.choices and meant not in self.choices:
            raise ValueError(f"it must be {', '.join(self.choices[:-1])} or {self.choices[-1]}")
        if self.least is not None and (meant < self.least or (self.above and meant == self.least)):
            raise ValueError(f"it must be {'more than' if self.above else 'at least'} {self.least:g}")
        return meant

    def _converted(self, text: str) -> Any:
        if self.kind is bool:
            return _WORDS.get(text.strip().lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text


SETTINGS: Mapping[str, Setting] = {
    one.key: one
    for one in (
        Setting(
            "jobs", int, None, "Tasks at once (default: the task file's, then the number of cores).", 1,
            flags=("-n", "--jobs"),
        ),
        Setting(
            "agent", str, "", "The agent for prompts: a known name, or a command line with {prompt} in it.",
            field="agent",
        ),
        Setting(
            "workspace_mode", str, None,
            "Where tasks work: an own git worktree (default), a shared clone, or none: in place.",
            choices=("worktree", "clone", "none"), flags=("--workspace",),
        ),
        Setting("workspaces", str, "", "The directory of workspaces (default: REPO.worktrees)."),
        Setting(
            "keep_workspaces", bool, False, "Keep the workspaces of tasks that are done, too.",
            flags=("--keep/--no-keep",), field="keep_workspace", program=False,
        ),
        Setting(
            "timeout", float, None, "Seconds for each attempt (default: no limit).", 0, True,
            field="default_timeout_seconds", program=1800.0,
        ),
        Setting("retries", int, None, "Further attempts after the first fails (default: 0).", 0),
        Setting(
            "patience", float, None, "Seconds to wait for what strangers hold (default: for ever).", 0,
            field="capacity_timeout_seconds", program=3600.0,
        ),
        Setting(
            "fail_fast", bool, False, "After a failure, start nothing more.", flags=("--fail-fast/--keep-going",)
        ),
        Setting(
            "grace", float, 10.0, "Seconds between asking a program to end and SIGKILL.", 0, field="grace_seconds",
            program=10.0,
        ),
        Setting(
            "heartbeat_timeout", float, 300.0, "Seconds of silence after which a runner's lease is revoked.", 0,
            True, field="heartbeat_timeout_seconds", program=300.0,
        ),
        Setting(
            "state_dir", str, "", "Where the state lies (default: $XDG_STATE_HOME/necrocode, one per user and host).",
            of="every", field="coordination_dir",
        ),
        Setting(
            "retention_days", float, 30.0, "How long `gc` keeps runs, events and quarantined files.", 0,
            flags=("--older",), of="gc",
        ),
    )
}  # fmt: skip
FIELDS: Mapping[str, Setting] = {one.field: one for one in SETTINGS.values() if one.field}
"""The same by what RunnerConfig calls them."""


def known(key: str, where: str = "") -> Setting:
    """The setting of that key. Raises ConfigError with a near miss for one that no setting has."""
    if key not in SETTINGS:
        raise ConfigError(f"unknown key {key!r}", where=where, hint=_hint(key))
    return SETTINGS[key]


def _hint(key: str) -> str:
    if key in _HOST:
        return f"that belongs to the machine: necrocode config set {key} ..."
    close = get_close_matches(key, SETTINGS, 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(SETTINGS)}"


def checked(values: Mapping[str, Any], where: str, *, text: bool = False) -> dict[str, Any]:
    """The values by their keys. Raises ConfigError for an unknown key and for what cannot be meant."""
    read = {}
    for key, value in values.items():
        try:
            read[key] = known(key, where).read(value, text=text)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}, not {value!r}", where=where) from None
    return read
