"""Who carries out an agent's task: a function, sync or async, a command line, or a known agent."""

from __future__ import annotations

import contextvars
import json
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from necrocode import aio
from necrocode.errors import ConfigError, TaskFailed
from necrocode.launch import presets
from necrocode.task import Task
from necrocode.task_calls.models import AgentResult, AgentTask, InvalidTaskCall
from necrocode.work import checked_agent

Progress = Callable[[float], Awaitable[None]]
Executor = Callable[[AgentTask, Progress], Any]
Configured = Executor | Mapping[str, Executor | Sequence[str] | str] | None
"""A function for all, or for each agent id or agent type (or "*") a function, an argv or an agent's name."""


class NoExecutor(TaskFailed):
    """Nobody is configured to carry out this agent's tasks."""

    def __init__(self, agent_id: str, task_id: str = "") -> None:
        super().__init__(
            f"no executor for agent {agent_id}", task_id=task_id,
            hint="give executor=: a function(task, progress), or a mapping of agent ids or types to those or commands",
        )  # fmt: skip
        self.agent_id = agent_id


class AgentFailed(TaskFailed):
    """The agent itself said that it did not succeed; `result` is what it gave."""

    def __init__(self, message: str, *, result: AgentResult | None = None, task_id: str = "") -> None:
        super().__init__(message, task_id=task_id)
        self.result = result


def checked_executor(configured: Configured) -> Configured:
    """The same, or InvalidTaskCall for what nobody could be."""
    if configured is None or callable(configured):
        return configured
    if not isinstance(configured, Mapping):
        raise InvalidTaskCall(
            f"executor {configured!r} is not possible",
            hint='give a function(task, progress), or a mapping of agents to functions or commands: {"*": ...}',
        )
    for agent, one in configured.items():
        argv = not isinstance(one, str) and isinstance(one, Sequence) and all(isinstance(part, str) for part in one)
        if not (callable(one) or isinstance(one, str) or argv) or not one:
            raise InvalidTaskCall(
                f"executor {one!r} of {agent!r} is not possible", hint="give a function, an argv, or an agent's name"
            )
        if isinstance(one, Sequence) and argv:
            checked_agent(one, f"executor of {agent!r}")
    return configured


def executor_for(configured: Configured, task: AgentTask, types: Mapping[str, str]) -> Any:
    """Who does it. Raises NoExecutor."""
    if configured is None or callable(configured):
        found: Any = configured
    else:
        kinds = (task.agent_id, types.get(task.agent_id, ""), str(task.context_data.get("agent_type", "")), "*")
        found = next((configured[kind] for kind in kinds if kind in configured), None)
    if found is None:
        raise NoExecutor(task.agent_id, task.task_id)
    return found


async def carried(executor: Any, task: AgentTask, progress: Progress, threads: aio.Threads, name: str) -> AgentResult:
    """One attempt. Raises whatever the executor raises, AgentFailed, CommandFailed, ConfigError."""
    if not callable(executor):
        return await _by_command(executor, task, progress)
    call = partial(executor, task, progress)
    value = await call() if aio.is_async(executor) else await threads.call(call, f"task-{name}")
    result = value if isinstance(value, AgentResult) else AgentResult(data=value)
    if not result.success:
        raise AgentFailed(result.error_message or "the agent did not succeed", result=result, task_id=task.task_id)
    return result


async def _by_command(agent: Sequence[str] | str, task: AgentTask, progress: Progress) -> AgentResult:
    context = contextvars.copy_context()

    def heard(stream: str, line: bytes) -> None:
        word, _, number = line.partition(b":")
        if stream == "stdout" and word.strip().lower() == b"progress":
            try:
                share = float(number)
            except ValueError:
                return
            context.run(progress, share)

    command = aio.Command(
        argv_of(agent), task=Task(task.task_id, prompt=prompt_of(task), title=task.description.partition("\n")[0]),
        env={"AGENT_ID": task.agent_id, "TASK_ID": task.task_id, "TASK_TYPE": task.task_type,
             "TASK_CONTEXT": json.dumps(task.context_data, default=str)},
        on_line=heard,
    )  # fmt: skip
    output = await command()
    return AgentResult(data={"stdout": output.stdout, "stderr": output.stderr, "exit_code": output.exit_code})


def argv_of(agent: Sequence[str] | str) -> tuple[str, ...]:
    """The command line of an agent: as it is, of a known agent, or of a text with {prompt}. Raises ConfigError, also
    where a shell would read what it is told as a program."""
    if not isinstance(agent, str):
        return checked_agent(agent)
    known = presets()
    if agent not in known and "{prompt}" not in agent:
        raise ConfigError(
            f"agent {agent!r} is neither known nor a command line with {{prompt}}",
            hint=f"known agents: {', '.join(known)}",
        )
    return known.get(agent) or checked_agent(shlex.split(agent))


def prompt_of(task: AgentTask) -> str:
    """What a program is told: the description, and the context as JSON where there is one."""
    if not task.context_data:
        return task.description
    return f"{task.description}\n\nContext:\n{json.dumps(dict(task.context_data), indent=2, default=str)}"
