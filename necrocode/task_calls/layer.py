"""MCPIntegrationLayer: task calls of one workflow, its status and figures; and the document's functions around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from necrocode.task_calls.executors import Configured, checked_executor
from necrocode.task_calls.manager import ParallelTaskManager
from necrocode.task_calls.models import AgentResult, AgentTask, InvalidTaskCall

TaskCall = Mapping[str, Any] | AgentTask


class MCPIntegrationLayer:
    """Carries out task calls. The limit belongs to the layer, however many calls share it. `executor` and the other
    options are ParallelTaskManager's; its `parallel_task_manager` may be replaced by one of a class of your own.

    As a context manager it cancels at its end whatever still runs."""

    def __init__(
        self,
        workflow_id: str | None = None,
        max_concurrent_tasks: int = 10,
        *,
        executor: Configured = None,
        **options: Any,
    ) -> None:
        self.workflow_id = workflow_id
        self.current_phase: Any = None
        self.agents: dict[str, dict[str, Any]] = {}
        self._manager = ParallelTaskManager(max_concurrent_tasks, executor=executor, workflow_id=workflow_id, **options)

    async def __aenter__(self) -> MCPIntegrationLayer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._manager.cancel(reason="the layer is closed")

    @property
    def parallel_task_manager(self) -> ParallelTaskManager:
        return self._manager

    @parallel_task_manager.setter
    def parallel_task_manager(self, manager: ParallelTaskManager) -> None:
        if not isinstance(manager, ParallelTaskManager):
            raise InvalidTaskCall(f"{manager!r} is no ParallelTaskManager", hint="make one, or one of a class of yours")
        if manager.executor is None:
            manager.executor = self._manager.executor
        manager.workflow_id = manager.workflow_id or self.workflow_id
        manager.agent_types.update(self._manager.agent_types)
        self._manager = manager

    @property
    def executor(self) -> Configured:
        """Who carries out the agents' tasks; may be set at any time."""
        return self._manager.executor

    @executor.setter
    def executor(self, executor: Configured) -> None:
        self._manager.executor = checked_executor(executor)

    def register_agent(
        self,
        agent_id: str,
        agent_type: str = "",
        capabilities: Iterable[str] = (),
        specializations: Iterable[str] = (),
    ) -> None:
        """What an agent is; an executor mapping may name its type instead of its id."""
        known = {"agent_type": agent_type, "capabilities": [*capabilities], "specializations": [*specializations]}
        self.agents[agent_id] = known
        self._manager.agent_types[agent_id] = agent_type

    def start_workflow(self, workflow_id: str | None = None, phase: Any = None) -> str | None:
        """Name the workflow, and the phase that the status shows; both are only names here."""
        self.workflow_id = self._manager.workflow_id = workflow_id or self.workflow_id
        self.current_phase = phase
        return self.workflow_id

    async def execute_multiple_task_calls(self, task_calls: Iterable[TaskCall]) -> list[AgentResult]:
        """Carry out all calls at once; the results in the order of the calls. See ParallelTaskManager."""
        if isinstance(task_calls, Mapping) or not isinstance(task_calls, Iterable):
            raise InvalidTaskCall(f"{task_calls!r} are no task calls", hint="give a list of them")
        return await self._manager.execute_parallel_tasks([AgentTask.of(call) for call in task_calls])

    async def execute_task_call(self, task_call: TaskCall) -> AgentResult:
        """Carry out one."""
        return (await self.execute_multiple_task_calls([task_call]))[0]

    execute_single_task = execute_task_call

    def get_parallel_execution_status(self) -> dict[str, Any]:
        """What runs and what it holds now, as plain values."""
        instances, locks = self._manager.get_running_instances(), self._manager.get_resource_locks()
        figures = self._manager.figures
        return {
            "workflow_id": self.workflow_id,
            "current_phase": self.current_phase,
            "running_instances": {
                name: {
                    "agent_id": one.agent_id, "task_id": one.task_id, "status": one.status,
                    "start_time": one.start_time, "heartbeat": one.heartbeat, "progress": one.progress,
                    "resources_locked": sorted(one.resources_locked),
                }
                for name, one in instances.items()
            },
            "waiting_instances": {name: one.agent_id for name, one in self._manager.get_waiting_instances().items()},
            "resource_locks": {
                name: {
                    "locked_by": lock.locked_by, "lock_type": lock.lock_type, "locked_at": lock.locked_at,
                    "expires_at": lock.expires_at,
                }
                for name, lock in locks.items()
            },
            "total_tasks_completed": figures.total,
            "successful_tasks": figures.successes,
        }  # fmt: skip

    async def wait_for_all_tasks_completion(self, timeout: float | None = 300) -> bool:
        """True once everything that was handed over is done, False when `timeout` seconds are over first."""
        return await self._manager.wait_for_all(timeout)

    async def cancel_running_tasks(self, agent_ids: Iterable[str] | None = None) -> int:
        """Stop the tasks of these agents (None: all), whether they work or wait, and return how many, once they have
        ended. Instance ids and task ids are understood too."""
        return await self._manager.cancel(agent_ids)

    def get_task_execution_metrics(self) -> dict[str, Any]:
        """Totals, times in milliseconds, and the same for each agent; all keys are there from the beginning."""
        contention = self._manager.get_resource_contention()
        return {**self._manager.figures.to_dict(self.workflow_id), "resource_contention": contention}


def batch_task_calls(task_calls: Iterable[TaskCall], batch_size: int = 5) -> list[list[TaskCall]]:
    """The calls in their order, so many at a time; the last batch may be shorter."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidTaskCall(f"batch_size {batch_size!r} is not possible", hint="give a whole number from 1")
    calls = list(task_calls)
    return [calls[at : at + batch_size] for at in range(0, len(calls), batch_size)]


async def execute_task_batches(
    integration_layer: MCPIntegrationLayer, batches: Iterable[Iterable[TaskCall]]
) -> list[AgentResult]:
    """One batch after the other; all results in order."""
    results: list[AgentResult] = []
    for batch in batches:
        results += await integration_layer.execute_multiple_task_calls(batch)
    return results


_layers: dict[str | None, MCPIntegrationLayer] = {}


def get_mcp_integration_layer(workflow_id: str | None = None, **options: Any) -> MCPIntegrationLayer:
    """The process's layer for this workflow, made when it is asked for first; `options` are for its making."""
    if workflow_id not in _layers:
        _layers[workflow_id] = MCPIntegrationLayer(workflow_id, **options)
    return _layers[workflow_id]


def reset_mcp_integration_layer() -> None:
    """Forget all layers; those that are in use go on."""
    _layers.clear()
