"""RunnerConfig: how runners of this process work. What the command line calls a setting too comes from `declared`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StrictInt, ValidationError, field_validator

from necrocode.agent_runner.argv import split
from necrocode.agent_runner.mistakes import mistakes
from necrocode.agent_runner.strategy import OnConflict
from necrocode.declared import FIELDS
from necrocode.errors import ConfigError
from necrocode.retry import Policy
from necrocode.work import checked_agent

GIVEN_UP = frozenset({
    "docker_image", "docker_registry", "docker_volumes", "docker_network", "k8s_namespace", "k8s_job_template",
    "k8s_image", "k8s_config", "kiro_api_url", "kiro_api_key", "enable_health_check", "health_check_port",
    "git_token_env_var", "artifact_store_api_key_env_var", "mask_secrets", "metrics_port", "task_registry_path",
})  # fmt: skip
"""Settings of the document's original that have no meaning here."""

_PATHS = (
    "default_playbook_path", "coordination_dir", "repository_path", "log_file", "metrics_dir", "state_file_path",
)  # fmt: skip

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ExecutionMode(StrEnum):
    """Where an agent runs. There is one way: as processes of this machine."""

    LOCAL_PROCESS = "local-process"
    LOCAL = "local"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, arbitrary_types_allowed=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(mistakes(error, type(self), GIVEN_UP), where=type(self).__name__) from None

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise ConfigError(mistakes(error, type(self), GIVEN_UP), where=type(self).__name__) from None


class RetryConfig(_Settings):
    """How often something is tried again, and after how long."""

    max_retries: StrictInt = Field(default=3, ge=0)
    initial_delay_seconds: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_delay_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    exponential_base: float = Field(default=2.0, ge=1, allow_inf_nan=False)

    def get_delay(self, attempt: int) -> float:
        """Seconds before the retry number `attempt`, the first being 0."""
        return self.policy.delay(attempt)

    @property
    def policy(self) -> Policy:
        return Policy(self.max_retries, self.initial_delay_seconds, self.exponential_base, self.max_delay_seconds)


def _agent(value: Any) -> Any:
    if value is None or isinstance(value, Path) or callable(value):
        return value
    if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json", ".toml")):
        return Path(value)
    if not isinstance(value, str) and not _is_argv(value):
        raise ValueError("give a command line, a list of arguments, a callable or the path of a playbook")
    return checked_agent(split(value), "RunnerConfig: agent")


def _declared(field: str) -> Any:
    """A field as the one declaration of all settings has it."""
    one = FIELDS[field]
    bounds: dict[str, Any] = {} if one.least is None else {"gt" if one.above else "ge": one.least}
    finite: dict[str, Any] = {"allow_inf_nan": False} if one.kind is float else {}
    return Field(default=one.program, description=one.described, **bounds, **finite)


def _is_argv(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)


class RunnerConfig(_Settings):
    """Settings of a RunnerOrchestrator. Raises ConfigError for unknown names and values that cannot be meant.

    `agent` does the work: a command line (text is split, never given to a shell; in its arguments `{prompt}`,
    `{workspace}`, `{branch}`, `{task_id}`, `{title}` are replaced), a callable (task_context, workspace) ->
    ImplementationResult, or the path of a playbook. Durations are in seconds; a leading `~` in a path is expanded, and
    a relative one means where the process was when it was set."""

    execution_mode: ExecutionMode = ExecutionMode.LOCAL_PROCESS
    agent: Annotated[Any, PlainValidator(_agent)] = _declared("agent")
    default_playbook_path: Path | None = None

    default_timeout_seconds: float = _declared("default_timeout_seconds")
    """For tasks that set none."""
    silent_timeout_seconds: Seconds | None = None
    """An agent without any output for so long is ended."""
    grace_seconds: float = _declared("grace_seconds")
    """Between asking a process to end and ending it."""

    max_parallel_runners: StrictInt | None = Field(default=None, ge=1)
    """A hard limit over all processes of the machine; setting it makes the orchestrator use a coordinator."""
    coordination_dir: Path | None = _declared("coordination_dir")
    heartbeat_timeout_seconds: float = _declared("heartbeat_timeout_seconds")
    heartbeat_interval_seconds: Seconds = 5.0
    capacity_timeout_seconds: float | None = _declared("capacity_timeout_seconds")
    """How long to wait for a slot (None: for ever)."""
    on_conflict: OnConflict = "refuse"
    degrade: bool = False
    """Run without a slot when none came free in time, or when the coordination directory cannot be used."""

    repository_path: Path | None = None
    """Where to make work trees for tasks without a slot_path (None: the current directory)."""
    base_branch: str | None = None
    """What new branches start from (None: what is checked out)."""
    keep_workspace: bool = _declared("keep_workspace")
    push: bool = False
    remote: str = "origin"
    git_retry_config: RetryConfig = Field(default_factory=RetryConfig)
    network_retry_config: RetryConfig = Field(default_factory=RetryConfig)

    max_memory_mb: StrictInt | None = Field(default=None, ge=1)
    max_cpu_percent: StrictInt | None = Field(default=None, ge=1)

    artifact_store_url: str = "file://~/.necrocode/artifacts"
    log_level: str = "INFO"
    structured_logging: bool = True
    log_file: Path | None = None
    metrics_enabled: bool = False
    """Whether each run's metrics are shown on the console and written to metrics_dir."""
    metrics_dir: Path | None = None
    persist_state: bool = False
    state_file_path: Path | None = None

    @field_validator("execution_mode")
    @classmethod
    def _local(cls, mode: ExecutionMode) -> ExecutionMode:
        if mode not in (ExecutionMode.LOCAL, ExecutionMode.LOCAL_PROCESS):
            raise ValueError("runners are processes of this machine: leave it out, or use local-process")
        return mode

    @field_validator(*_PATHS)
    @classmethod
    def _place(cls, path: Path | None) -> Path | None:
        """Where it was when it was said: a process may go elsewhere later."""
        return path and Path(os.path.abspath(os.path.expanduser(path)))

    @field_validator("artifact_store_url")
    @classmethod
    def _file_url(cls, url: str) -> str:
        if "://" in url and not url.startswith("file://"):
            raise ValueError("artifacts are stored as files: use file:///some/directory")
        return url

    @field_validator("log_level")
    @classmethod
    def _level(cls, level: str) -> str:
        if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            raise ValueError("use DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return level.upper()

    @property
    def artifact_store(self) -> Path:
        """The directory that artifact_store_url names."""
        return Path(self.artifact_store_url.removeprefix("file://")).expanduser()

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; a callable agent becomes None."""
        agent = list(self.agent) if isinstance(self.agent, tuple) else str(self.agent) if self.agent else None
        return {**self.model_dump(mode="json", exclude={"agent"}), "agent": None if callable(self.agent) else agent}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunnerConfig:
        return cls(**data)

    @classmethod
    def load(cls, where: Path | str | None = None, /, **said: Any) -> RunnerConfig:
        """What the NECROCODE_* variables and the configuration files that hold in `where` (None: here) say of a
        runner, as for the command line, under what is given here by name, which counts most. Raises ConfigError."""
        from necrocode import settings
        from necrocode.launch import presets

        found = settings.resolve(Path(where) if where is not None else Path.cwd())
        told = {
            field: found.values[one.key] for field, one in FIELDS.items() if found.origins[one.key] != settings.DEFAULT
        }
        if "agent" in told:
            told["agent"] = presets().get(told["agent"], told["agent"])
        return cls(**{**told, **said})

    def validate(self) -> None:  # type: ignore[override]
        """Raises ConfigError. What is here was checked when it was set; this looks at what the disk knows."""
        for name in ("default_playbook_path", "repository_path"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise ConfigError(f"{name}: {path} does not exist", where="RunnerConfig")
