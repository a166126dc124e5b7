"""Playbooks: the steps of a task as a file, and the engine that carries them out by itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from necrocode import aside
from necrocode.agent_runner.argv import split
from necrocode.agent_runner.mistakes import mistakes
from necrocode.errors import ConfigError, PlaybookExecutionError
from necrocode.git import StrPath
from necrocode.playbook import checked_step
from necrocode.task import Step, Task
from necrocode.taskfile import FORMATS
from necrocode.tasktext import decoded
from necrocode.work import Place, Work, run_playbook
from necrocode.workspace import Workspace


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(mistakes(error, type(self)), where=type(self).__name__) from None


class PlaybookStep(_Part):
    """One command: a list of arguments, or text that is split into them and never given to a shell.

    `condition` decides whether it runs at all; with `fail_fast` its failure ends the playbook."""

    name: str
    command: str | list[str]
    condition: str | None = None
    fail_fast: bool = True
    timeout_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    retry_count: int = Field(default=0, ge=0)

    @field_validator("command")
    @classmethod
    def _is_argv(cls, command: str | list[str], info: ValidationInfo) -> str | list[str]:
        checked_step(split(command), f"step {info.data.get('name')!r}")
        return command

    def step(self) -> Step:
        """The same as the engine has it."""
        argv = tuple(split(self.command))
        return Step(self.name, argv, self.condition, self.fail_fast, self.timeout_seconds, self.retry_count)


class Playbook(_Part):
    """Named steps, carried out in order."""

    name: str
    steps: list[PlaybookStep] = Field(min_length=1)
    metadata: dict[str, Any] = Field(default_factory=dict)


class PlaybookEngine:
    """Loads playbooks and carries them out."""

    def load_playbook(self, playbook_path: StrPath) -> Playbook:
        """From YAML (with the extra `yaml`), TOML or JSON. Raises ConfigError for a file that cannot be used."""
        path = Path(playbook_path).expanduser()
        format = FORMATS.get(path.suffix.lower())
        if format not in ("yaml", "toml", "json"):
            raise ConfigError(f"{path.suffix or 'no ending'!r} is no playbook's", where=str(path), hint="use .yaml")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"it cannot be read: {error}", where=str(path)) from error
        try:
            return Playbook.model_validate(dict(decoded(text, format, str(path)).data))
        except ValidationError as error:
            raise ConfigError(mistakes(error, Playbook), where=str(path)) from None
        except ConfigError as error:
            raise ConfigError(str(error), where=str(path), hint=error.hint) from None

    def load_playbook_or_default(
        self, playbook_path: StrPath | None, default: StrPath | None = None
    ) -> Playbook | None:
        """The one asked for, else the default one, else None."""
        chosen = playbook_path or default
        return self.load_playbook(chosen) if chosen else None

    def execute_playbook(
        self, playbook: Playbook, context: Mapping[str, Any] | None = None, cwd: StrPath | None = None
    ) -> Work:
        """Every step really runs, with its own time, tries and whole process tree; logs go to a temporary folder.

        Raises PlaybookExecutionError for the step that failed, ConfigError when `cwd` is no directory."""
        where = Path(cwd or os.getcwd())
        if not where.is_dir():
            raise ConfigError(f"{where} is not a directory")
        with aside.folder() as folder:
            marker = f"playbook-{os.getpid()}-{os.urandom(4).hex()}"
            workspace = Workspace(where, "", "", None, "none", folder)
            env = {**os.environ, "NECROCODE_WORKSPACE": str(where)}
            place = Place(workspace, folder, Task("playbook"), env, threading.Event(), marker)
            work = self.run(playbook, place, context or {})
        if not work.ok:
            raise PlaybookExecutionError(
                f"{playbook.name}: {work.error}", step=_step_of(work.error), returncode=work.exit_code
            )
        return work

    def run(self, playbook: Playbook, place: Place, context: Mapping[str, Any]) -> Work:
        """The same within an attempt: its terms hold, its folder gets the logs, failure is an answer."""
        variables = {**context, "workspace": str(place.workspace.path)}
        return run_playbook(place, [step.step() for step in playbook.steps], variables, names=variables)


def _step_of(error: str) -> str:
    return error.removeprefix("step '").partition("'")[0] if error.startswith("step '") else ""
