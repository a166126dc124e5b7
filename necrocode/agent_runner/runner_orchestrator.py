"""RunnerOrchestrator: one task after the other, each carried through its phases by the engine under one lease."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from necrocode import git, journal
from necrocode.agent_runner.artifacts import ArtifactUploader, contents_of
from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.desk import Desk, Ordered, alone, opened, order_for
from necrocode.agent_runner.exceptions import ArtifactUploadError
from necrocode.agent_runner.implementation import Implementation
from necrocode.agent_runner.log_file import logged_to
from necrocode.agent_runner.metrics import ExecutionMetrics, MetricsReporter, document_phases
from necrocode.agent_runner.models import (
    PushResult,
    RunnerResult,
    RunnerState,
    RunnerStateSnapshot,
    TaskContext,
)
from necrocode.agent_runner.parallel_coordinator import ParallelCoordinator
from necrocode.agent_runner.state_file import StateFile
from necrocode.agent_runner.task_executor import TaskExecutor
from necrocode.agent_runner.test_runner import TestRunner
from necrocode.attempt import carry
from necrocode.errors import GitFailed, NecrocodeError, StateUnusable
from necrocode.outcome import Outcome
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
        except StateUnusable as trouble:
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
            run = _Run(self, context, self._runs, _Stop(stop))
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


class _Run:
    """One call of `run`."""

    def __init__(self, orchestrator: RunnerOrchestrator, context: TaskContext, number: int, stop: _Stop) -> None:
        self.orchestrator, self.context, self.number, self.stop = orchestrator, context, number, stop
        self.config, self.runner_id = orchestrator.config, orchestrator.runner_id
        self.began, self.since = time.monotonic(), datetime.now(UTC)
        self.desk: Desk | None = None
        self.order: Ordered | None = None
        self.degraded = False
        self.implementation: Implementation | None = None

    def carried(self) -> RunnerResult:
        with ExitStack() as stack:
            try:
                if not self.orchestrator.has_agent(self.context):
                    return self._failed("no agent is configured: set RunnerConfig(agent=...)", "agent")
                self.desk = stack.enter_context(opened(self.config))
                self.degraded = self.desk.trouble is not None and self.config.max_parallel_runners is not None
                outcome = self._attempted()
                if self._may_degrade(outcome):
                    outcome = self._without_slot(stack, outcome)
                return self._result(outcome)
            except NecrocodeError as error:
                return self._failed(str(error), "state" if isinstance(error, StateUnusable) else "error")
            finally:
                self._report()

    # ---- one attempt

    def _attempted(self) -> Outcome:
        assert self.desk is not None
        self.order = order_for(self.config, self.context, self.runner_id, self.number, self.desk.state.root)
        self.keep_state(RunnerState.RUNNING, phase="register")
        self.implementation = Implementation(self.orchestrator, self.context, self.desk, self.order)
        if not self.implementation.is_in_process:
            return self._carry(self.implementation)
        return self._carried_aside(self.implementation)

    def _carry(self, work: Implementation) -> Outcome:
        assert self.desk is not None and self.order is not None
        return carry(self.order, self.desk, work=work, stop=self.stop, told=self._on_phase)

    def _carried_aside(self, work: Implementation) -> Outcome:
        """In a thread of its own, so that Python which does not end does not keep us: whatever comes first, the
        outcome or the word that the deadline is over, is the answer. The lease stays with the thread."""
        answers: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        work.on_deaf = answers.put

        def carrying() -> None:
            try:
                answers.put(self._carry(work))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                answers.put(error)

        threading.Thread(target=carrying, name=f"carry-{self.runner_id}", daemon=True).start()
        try:
            answer = answers.get()
        except BaseException:
            self.stop.set()
            raise
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _may_degrade(self, outcome: Outcome) -> bool:
        assert self.desk is not None
        refused = outcome.token is None and outcome.error_kind in ("limit", "quota")
        return self.config.degrade and (refused or (outcome.token is None and self.desk.trouble is not None))

    def _without_slot(self, stack: ExitStack, outcome: Outcome) -> Outcome:
        assert self.desk is not None
        logger.warning("%s runs without a slot (degrade=True): %s", self.runner_id, outcome.error)
        self.degraded = True
        if self.desk.trouble is not None:
            self.desk = stack.enter_context(alone(self.config, self.desk.trouble))
        self.desk.slot = False
        return self._attempted()._replace(waited=outcome.ended - outcome.started)

    def _on_phase(self, phase: str, detail: str = "") -> None:
        logger.info("%s %s: %s%s", self.runner_id, self.context.task_id, phase, f" ({detail})" if detail else "")
        self.keep_state(RunnerState.RUNNING, phase=phase)

    # ---- after it

    def _result(self, outcome: Outcome) -> RunnerResult:
        assert self.order is not None and self.implementation is not None
        phases = dict(outcome.phases)
        if self.implementation.tests is not None:
            phases["test"] = self.implementation.tests.total_duration_seconds
        result = RunnerResult(
            outcome.ok, self.runner_id, self.context.task_id, error=outcome.error or None,
            impl_result=self.implementation.told(outcome), test_result=self.implementation.tests,
            workspace_path=Path(self.order.path), concurrent_runners=outcome.concurrent,
            waited_seconds=outcome.waited, degraded=self.degraded, error_kind=outcome.error_kind,
            commits=list(outcome.commits), branch_name=outcome.branch,
        )  # fmt: skip
        if outcome.ok and self.config.push:
            self._timed(phases, "push", lambda: self._push(result))
        if outcome.token is not None:
            self._timed(phases, "artifacts", lambda: self._store(result))
        result.phases = document_phases(phases)
        result.duration_seconds = time.monotonic() - self.began
        if not result.success:
            self._tell("error.recorded", error=result.error)
        return result

    def _timed(self, phases: dict[str, float], name: str, work: Callable[[], None]) -> None:
        began = time.monotonic()
        self._tell("phase.started", phase=name)
        work()
        seconds = time.monotonic() - began
        phases[name] = phases.get(name, 0.0) + seconds
        self._tell("phase.finished", phase=name, seconds=seconds, ok=True)

    def _store(self, result: RunnerResult) -> None:
        assert self.order is not None
        tests = asdict(result.test_result) if result.test_result else None
        facts = {
            "runner_id": self.runner_id,
            "success": result.success,
            "branch": result.branch_name,
            "commits": result.commits,
        }
        store = ArtifactUploader(self.config.artifact_store)
        try:
            result.artifacts = store.upload_artifacts(
                self.context.spec_name, self.context.task_id, dict(contents_of(Path(self.order.folder), tests)), facts
            )
        except (ArtifactUploadError, OSError) as error:
            # The work is committed: what could not be stored is told, and takes nothing back.
            logger.warning("artifacts were not stored: %s", error)
            return self._tell("error.recorded", error=str(error))
        size = sum(one.size_bytes for one in result.artifacts)
        self._tell("artifacts.recorded", count=len(result.artifacts), bytes=size)

    def _push(self, result: RunnerResult) -> None:
        """The commit to the branch of that name: forward only, so nothing of others is ever overwritten."""
        assert self.order is not None
        cwd, policy = self.order.repository, self.config.git_retry_config.policy
        commit = result.commits[-1] if result.commits else git.branch_tip(result.branch_name, cwd=cwd) or ""
        for tried in range(policy.retries + 1):
            try:
                git.run("push", self.config.remote, f"{commit}:refs/heads/{result.branch_name}", cwd=cwd)
                result.push_result = PushResult(True, result.branch_name, commit, tried)
                result.success, result.error, result.error_kind = True, None, ""
                return
            except GitFailed as error:
                result.push_result = PushResult(False, result.branch_name, commit, tried, str(error))
                result.success, result.error, result.error_kind = False, str(error), "push"
                if tried == policy.retries or self.stop.wait(policy.delay(tried)):
                    return
                logger.warning("push failed, trying again: %s", error)
                self._tell("attempt.retried", attempt=f"{self.number}.push.{tried + 1}", error=str(error))

    def _failed(self, error: str, kind: str) -> RunnerResult:
        self._tell("error.recorded", error=error)
        path = Path(self.order.path) if self.order else self.context.slot_path
        return RunnerResult(
            False, self.runner_id, self.context.task_id, time.monotonic() - self.began, error=error,
            workspace_path=path, error_kind=kind, degraded=self.degraded,
        )  # fmt: skip

    def _report(self) -> None:
        """The run's metrics, also when it failed."""
        whom = (self.runner_id, self.context.task_id, self.context.spec_name)
        events = []
        if self.desk is not None:
            since = self.since.timestamp() - 1.0
            told = journal.read(self.desk.state.events, since, runner_id=self.runner_id)
            events = [event for event in told if event.mono >= self.began]
        metrics = ExecutionMetrics.of(events, *whom)
        metrics.degraded = self.degraded
        self.orchestrator.last_metrics = metrics
        if not self.config.metrics_enabled:
            return
        try:
            MetricsReporter(self.config.metrics_dir).report(metrics)
        except OSError as error:
            logger.warning("metrics were not written: %s", error)

    # ---- telling

    def keep_state(self, state: RunnerState, **facts: Any) -> None:
        if not self.config.persist_state:
            return
        path = Path(self.order.path) if self.order and self.order.path else self.context.slot_path
        snapshot = RunnerStateSnapshot(
            self.runner_id, state, self.context.task_id, self.context.spec_name, self.since,
            metadata=facts, workspace_path=path,
        )  # fmt: skip
        try:
            self.orchestrator.state_file.save(snapshot)
        except OSError as error:
            logger.warning("the state was not kept: %s", error)

    def _tell(self, kind: str, **facts: Any) -> None:
        if self.desk is None:
            return
        event = journal.make(
            kind, runner_id=self.runner_id, task_id=self.context.task_id, spec_name=self.context.spec_name,
            run_id=self.runner_id, **facts,
        )  # fmt: skip
        journal.append(self.desk.state.events, [event])


class _Stop:
    """The caller's stop and our own: we may set ours without stopping whatever else listens to theirs."""

    def __init__(self, theirs: StopSign | None) -> None:
        self._theirs, self._ours = theirs, threading.Event()

    def set(self) -> None:
        self._ours.set()

    def is_set(self) -> bool:
        return self._ours.is_set() or (self._theirs is not None and self._theirs.is_set())

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set within so many seconds; theirs is looked at every tenth of a second."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = 0.1 if deadline is None else min(0.1, deadline - time.monotonic())
            if left <= 0:
                return False
            self._ours.wait(left)
        return True
