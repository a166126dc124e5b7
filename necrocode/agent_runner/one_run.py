"""One run of an orchestrator: the task as an order to the engine, and what came of it as the document's result."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necrocode import clock, journal
from necrocode.agent_runner.delivery import push, store
from necrocode.agent_runner.desk import TROUBLE, Desk, Ordered, alone, may_go_alone, opened, order_for
from necrocode.agent_runner.implementation import Implementation
from necrocode.agent_runner.metrics import ExecutionMetrics, MetricsReporter, document_phases
from necrocode.agent_runner.models import RunnerResult, RunnerState, RunnerStateSnapshot, TaskContext
from necrocode.attempt import carry
from necrocode.errors import NecrocodeError
from necrocode.event import Event
from necrocode.outcome import Outcome
from necrocode.work import StopSign

if TYPE_CHECKING:
    from necrocode.agent_runner.runner_orchestrator import RunnerOrchestrator

logger = logging.getLogger(__name__)


class Stop:
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


class Run:
    """One call of `run`."""

    def __init__(self, orchestrator: RunnerOrchestrator, context: TaskContext, number: int, stop: Stop) -> None:
        self.orchestrator, self.context, self.number, self.stop = orchestrator, context, number, stop
        self.config, self.runner_id = orchestrator.config, orchestrator.runner_id
        self.began, self.since = time.monotonic(), datetime.now(UTC)
        self.desk: Desk | None = None
        self.order: Ordered | None = None
        self.degraded, self.waited = False, 0.0
        self.implementation: Implementation | None = None
        self._untold: list[Event] = []

    def carried(self) -> RunnerResult:
        """Carry it out; every failure is a result."""
        with ExitStack() as stack:
            try:
                if not self.orchestrator.has_agent(self.context):
                    return self._failed("no agent is configured: set RunnerConfig(agent=...)", "agent")
                self.desk = stack.enter_context(opened(self.config))
                self.degraded = self.desk.alone and self.config.max_parallel_runners is not None
                return self._result(self._coordinated(stack))
            except NecrocodeError as error:
                return self._failed(str(error), "state" if isinstance(error, TROUBLE) else "error")
            finally:
                self._report()

    def _coordinated(self, stack: ExitStack) -> Outcome:
        """The attempt under the limit; without it only when it cannot be had and the configuration allows that."""
        assert self.desk is not None
        try:
            outcome = self._attempted()
        except TROUBLE:
            if self.desk.trouble is None:
                raise
        if self.desk.trouble is not None:
            if not may_go_alone(self.config):
                raise self.desk.trouble
            self.desk = stack.enter_context(alone(self.config, self.desk.trouble))
            self.degraded = self.config.max_parallel_runners is not None
            return self._attempted()
        refused = outcome.token is None and outcome.error_kind in ("limit", "quota")
        return self._without_slot(outcome) if refused and self.config.degrade else outcome

    def _without_slot(self, outcome: Outcome) -> Outcome:
        assert self.desk is not None
        logger.warning("%s runs without a slot (degrade=True): %s", self.runner_id, outcome.error)
        self.degraded, self.desk.slot = True, False
        self.waited = outcome.ended - outcome.started
        return self._attempted()._replace(waited=self.waited)

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
        answers, answered = list[Outcome | BaseException](), threading.Event()

        def answer(what: Outcome | BaseException) -> None:
            answers.append(what)
            answered.set()

        def carrying() -> None:
            try:
                answer(self._carry(work))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                answer(error)

        work.on_deaf = answer
        threading.Thread(target=carrying, name=f"carry-{self.runner_id}", daemon=True).start()
        try:
            clock.until(answered.wait)
        except BaseException:
            self.stop.set()
            raise
        if isinstance(answers[0], BaseException):
            raise answers[0]
        return answers[0]

    def _on_phase(self, phase: str, detail: str = "") -> None:
        logger.info("%s %s: %s%s", self.runner_id, self.context.task_id, phase, f" ({detail})" if detail else "")
        self.keep_state(RunnerState.RUNNING, phase=phase)

    # ---- after it

    def _result(self, outcome: Outcome) -> RunnerResult:
        assert self.order is not None and self.implementation is not None
        order = self.order
        phases = dict(outcome.phases)
        if self.implementation.tests is not None:
            phases["test"] = self.implementation.tests.total_duration_seconds
        result = RunnerResult(
            outcome.ok, self.runner_id, self.context.task_id, error=outcome.error or None,
            impl_result=self.implementation.told(outcome), test_result=self.implementation.tests,
            workspace_path=Path(order.path), concurrent_runners=outcome.concurrent,
            waited_seconds=outcome.waited, degraded=self.degraded, error_kind=outcome.error_kind,
            commits=list(outcome.commits), branch_name=outcome.branch,
        )  # fmt: skip
        if outcome.ok and self.config.push:
            self._timed(phases, "push", lambda: push(self.config, order, result, self.stop, self._tell))
        if outcome.token is not None:
            self._timed(phases, "artifacts", lambda: store(self.config, order, result, self._tell))
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
        metrics = ExecutionMetrics.of([*self._journalled(), *self._untold], *whom)
        metrics.degraded = self.degraded
        metrics.wait_time_seconds += self.waited  # for a slot that never came
        self.orchestrator.last_metrics = metrics
        if not self.config.metrics_enabled:
            return
        try:
            MetricsReporter(self.config.metrics_dir).report(metrics)
        except OSError as error:
            logger.warning("metrics were not written: %s", error)

    def _journalled(self) -> list[Event]:
        if self.desk is None:
            return []
        since = self.since.timestamp() - 1.0
        try:
            told = journal.read(self.desk.state.events, since, runner_id=self.runner_id)
            return [event for event in told if event.mono >= self.began]
        except OSError as error:
            logger.warning("the journal could not be read, the metrics lack what it has: %s", error)
            return []

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
        event = journal.make(
            kind, runner_id=self.runner_id, task_id=self.context.task_id, spec_name=self.context.spec_name,
            run_id=self.runner_id, **facts,
        )  # fmt: skip
        if self.desk is None or not journal.append(self.desk.state.events, [event]):
            self._untold.append(event)  # its own report has it all the same
