"""Task: what is asked, as an immutable value; and how the text of a task file becomes tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from necrocode.claim import Claim

if TYPE_CHECKING:
    from necrocode.tasktext import Format

Argv = tuple[str, ...]


class Step(NamedTuple):
    """One command of a playbook. `condition` decides whether it runs at all (None: always); `fail_fast` whether its
    failure ends the playbook; `timeout_seconds` and `retry_count` hold for this step alone."""

    name: str
    command: Argv
    condition: str | None = None
    fail_fast: bool = True
    timeout_seconds: float = 300.0
    retry_count: int = 0


class Task(NamedTuple):
    """What is asked. Exactly one of `prompt` (for an agent), `command` (an argv, never given to a shell) and
    `playbook` says what to do; the rest says under which terms.

    `files` are path patterns within the repository and `claims` are `KIND:NAME` texts, all wanted for as long as an
    attempt lasts; `after` names tasks whose success comes first; `timeout` and `silent_timeout` (without any output)
    are seconds for one attempt, None for no clock; `retries` are further attempts after the first; `verify` are
    commands that judge the work; `workspace` is worktree, clone, none, or None for the default."""

    id: str
    prompt: str = ""
    command: Argv = ()
    playbook: tuple[Step, ...] = ()
    agent: str = ""
    files: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    branch: str = ""
    after: tuple[str, ...] = ()
    priority: int = 0
    timeout: float | None = None
    silent_timeout: float | None = None
    retries: int = 0
    verify: tuple[Argv, ...] = ()
    tags: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    workspace: str | None = None
    title: str = ""
    spec: str = ""

    def wanted(self, repository: str = "") -> tuple[Claim, ...]:
        """Everything this task claims: its files, its claims, and its branch when it names one; each once.

        Raises ConfigError for text that is no claim."""
        files = [Claim.file(path, repository) for path in self.files]
        others = [Claim.parse(text, repository) for text in self.claims]
        branch = [Claim.branch(self.branch, repository)] if self.branch else []
        return tuple(dict.fromkeys([*files, *others, *branch]))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {
            **self._asdict(),
            "playbook": [step._asdict() for step in self.playbook],
            "env": dict(self.env),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Task:
        """The reverse; unknown keys are ignored. Raises KeyError or TypeError for what is no task."""
        steps = tuple(Step(**_tupled(step, Step._fields)) for step in data.get("playbook", ()))
        known = _tupled(data, cls._fields)
        known["verify"] = tuple(map(tuple, known.get("verify", ())))
        return cls(**{**known, "id": data["id"], "playbook": steps})


def _tupled(data: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    return {key: tuple(data[key]) if isinstance(data[key], list) else data[key] for key in fields if key in data}


class Defaults(NamedTuple):
    """What a task file says once for all its tasks; each task may say otherwise. `env` and a task's own env are
    joined. `setup` are commands run in each fresh workspace, `jobs` the number of tasks at once (None: unsaid)."""

    agent: str = ""
    timeout: float | None = None
    silent_timeout: float | None = None
    retries: int = 0
    verify: tuple[Argv, ...] = ()
    workspace: str | None = None
    env: Mapping[str, str] = {}
    setup: tuple[Argv, ...] = ()
    jobs: int | None = None


class TaskFile(NamedTuple):
    """A parsed task file: its tasks in the order of the file, with the defaults already applied to them; `agents`
    says on which line the agent of each task is named."""

    tasks: tuple[Task, ...]
    defaults: Defaults = Defaults()
    name: str = ""
    agents: Mapping[str, int] = {}


def parse_tasks(
    text: str,
    *,
    format: Format = "toml",
    name: str = "tasks",
    base: Defaults = Defaults(),  # noqa: B008 - immutable
) -> TaskFile:
    """The tasks in the text of a task file: TOML or YAML (PyYAML needed) or JSON with `task` and `defaults`, or JSON
    Lines with one task on each. `name` is what the file is called in messages, `base` what holds where
    neither a task nor its file says anything.

    Raises ConfigError that names everything wrong with it, one line each: file, line, task, key, what, and the word
    that may have been meant."""
    # The models are slow to import, and most of those who import Task never read a file.
    from necrocode.taskbuild import agent_lines, built
    from necrocode.tasktext import decoded

    document = decoded(text, format, name)
    tasks, defaults = built(document, name, base)
    return TaskFile(tasks, defaults, name, agent_lines(document))
