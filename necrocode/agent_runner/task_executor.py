"""Who does the work: the configured agent, be it a command line, a callable or a playbook."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.models import ImplementationResult, TaskContext, Workspace
from necrocode.agent_runner.playbook import PlaybookEngine
from necrocode.errors import ConfigError
from necrocode.work import Place, Work, filled, run_command


class TaskExecutor:
    """The orchestrator's `task_executor`. Replace it, or its `execute`, to do the work yourself.

    An own `execute` runs in this process: it sees `workspace.place.stop` and `.deadline` and should heed them, since
    nobody can end it from outside."""

    def __init__(self, config: RunnerConfig) -> None:
        self.config = config
        self.playbook_engine = PlaybookEngine()

    def execute(self, task_context: TaskContext, workspace: Workspace) -> ImplementationResult:
        """Do the task in the work space. Raises ConfigError without an agent: work that nobody does never succeeds."""
        agent, started = self.agent_for(task_context), time.monotonic()
        if agent is None:
            raise ConfigError("no agent is configured", hint="RunnerConfig(agent=['my-agent', '{prompt}'])")
        if callable(agent):
            return answered(agent(task_context, workspace), time.monotonic() - started)
        if workspace.place is None:
            raise ConfigError("a command needs the terms of an attempt", hint="let RunnerOrchestrator.run call this")
        work = self._run(agent, task_context, workspace.place)
        return ImplementationResult(
            work.ok,
            duration_seconds=time.monotonic() - started,
            error=work.error or None,
            usage=dict(work.usage),
            work=work,
        )

    def agent_for(self, task_context: TaskContext) -> Any:
        """The task's playbook, else the configured agent, else the default playbook, else None."""
        return task_context.playbook_path or self.config.agent or self.config.default_playbook_path

    def has_agent(self, task_context: TaskContext) -> bool:
        """Whether `execute` would find somebody to do it."""
        return self._is_replaced or self.agent_for(task_context) is not None

    @property
    def _is_replaced(self) -> bool:
        return type(self).execute is not TaskExecutor.execute or "execute" in vars(self)

    def is_in_process(self, task_context: TaskContext) -> bool:
        """Whether the work is Python of this process, which cannot be ended from outside."""
        return self._is_replaced or callable(self.agent_for(task_context))

    def _run(self, agent: tuple[str, ...] | Path, task_context: TaskContext, place: Place) -> Work:
        if isinstance(agent, Path):
            facts = {**task_context.metadata, **task_context.to_dict(), "prompt": task_context.prompt}
            return self.playbook_engine.run(self.playbook_engine.load_playbook(agent), place, facts)
        return run_command(place, filled(agent, place))


def answered(answer: Any, seconds: float) -> ImplementationResult:
    """What a callable's answer means: a result is itself, None and True are success, False is failure."""
    if isinstance(answer, ImplementationResult):
        return answer
    if answer is None or isinstance(answer, bool):
        return ImplementationResult(
            answer is not False, duration_seconds=seconds, error=None if answer is not False else "the agent said no"
        )
    raise ConfigError(f"the agent answered {answer!r}", hint="return an ImplementationResult, a bool or None")
