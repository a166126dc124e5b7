"""RunnerOrchestrator: one task after the other, each carried through its phases by the engine under one lease."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.desk import TROUBLE
from necrocode.agent_runner.log_file import logged_to
from necrocode.agent_runner.metrics import ExecutionMetrics
from necrocode.agent_runner.models import RunnerResult, RunnerState, RunnerStateSnapshot, TaskContext
from necrocode.agent_runner.one_run import Run, Stop
from necrocode.agent_runner.parallel_coordinator import ParallelCoordinator
from necrocode.agent_runner.state_file import StateFile
from necrocode.agent_runner.task_executor import TaskExecutor
from necrocode.agent_runner.test_runner import TestRunner
from necrocode.work import StopSign

logger = logging.getLogger(__name__)


class RunnerOrchestrator:
    """Carries out tasks for one runner: `run(task_context)` prepares the work space, has the agent do the work, runs
    the tests, commits on the task's branch, stores the artifacts, and reports; as often as it is called.

    With `max_parallel_runners` it has a `parallel_coordinator` and waits for its turn among all runners of the
    machine; without, there is no limit, and only the work space, the branch and the files are claimed.
    `task_executor` does the work and may be replaced."""

    def __init__(self, config: RunnerConfig | None = None) -> None:
        self.config = config or RunnerConfig()
        self.runner_id = f"runner-{uuid.uuid4().hex[:12]}"
        self.state = RunnerState.IDLE
        self.task_executor: Any = TaskExecutor(self.config)
        self.test_runner = TestRunner()
        self.last_metrics: ExecutionMetrics | None = None
        self.parallel_coordinator = self._coordinator()
        self._runs = 0
        self._one_at_a_time = threading.Lock()

    def _coordinator(self) -> ParallelCoordinator | None:
        config = self.config
        if config.max_parallel_runners is None:
            return None
        try:
            return ParallelCoordinator(
                config.coordination_dir, config.max_parallel_runners, config.heartbeat_timeout_seconds,
                on_conflict=config.on_conflict,
            )  # fmt: skip
        except TROUBLE as trouble:
            # Told again, as the result, by every run that meets it.
            logger.warning("no coordination: %s", trouble)
            return None

    def run(self, task_context: TaskContext | Mapping[str, Any], *, stop: StopSign | None = None) -> RunnerResult:
        """Carry out one task; every failure is a result with `error` and `error_kind`, never an exception.

        `stop` (a threading.Event) ends the work. A callable that does not end in time is left behind: the result
        comes at the deadline, its slot and work space stay held for as long as it goes on. Raises
        TaskContextValidationError for a description that cannot be meant."""
        context = task_context if isinstance(task_context, TaskContext) else TaskContext.from_dict(task_context)
        with self._one_at_a_time:
            self._runs += 1
            run = Run(self, context, self._runs, Stop(stop))
            self.state = RunnerState.RUNNING
            ended = RunnerState.FAILED
            try:
                with logged_to(self.config.log_file, self.config.log_level, structured=self.config.structured_logging):
                    result = run.carried()
                ended = RunnerState.COMPLETED if result.success else RunnerState.FAILED
            finally:
                self.state = ended
                run.keep_state(ended)
        return result

    def has_agent(self, context: TaskContext) -> bool:
        """Whether anybody would do this task: an agent, a playbook, or an executor that was put in place."""
        known = getattr(self.task_executor, "has_agent", None)
        return bool(known(context)) if known else True

    @property
    def state_file(self) -> StateFile:
        """Where the state is kept with `persist_state`."""
        return StateFile(self.config.state_file_path, self.config.coordination_dir, self.runner_id)

    def load_state(self) -> RunnerStateSnapshot | None:
        """What was last kept, None when nothing was. Raises StateUnreadable."""
        return self.state_file.load()

    def clear_state(self) -> None:
        self.state_file.clear()
