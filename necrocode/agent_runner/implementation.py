"""The work phase of one run: the executor does the task, what it changed is claimed, and the tests judge it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from necrocode import git, journal
from necrocode.agent_runner import strategy
from necrocode.agent_runner.desk import TROUBLE, Desk, Ordered
from necrocode.agent_runner.models import ImplementationResult, TaskContext, TestResult, Workspace
from necrocode.agent_runner.monitor import ResourceMonitor
from necrocode.agent_runner.task_executor import answered
from necrocode.claim import Claim
from necrocode.errors import LeaseLost
from necrocode.git import Repository
from necrocode.outcome import Outcome, Status
from necrocode.work import Place, Work

if TYPE_CHECKING:
    from necrocode.agent_runner.runner_orchestrator import RunnerOrchestrator

logger = logging.getLogger(__name__)


class Implementation:
    """What the engine calls for its work phase. Afterwards `result` and `tests` are what the run's result shows."""

    def __init__(self, orchestrator: RunnerOrchestrator, context: TaskContext, desk: Desk, order: Ordered) -> None:
        self._executor, self._test_runner, self._config = (
            orchestrator.task_executor, orchestrator.test_runner, orchestrator.config,
        )  # fmt: skip
        self._context, self._desk, self._order = context, desk, order
        self.result: ImplementationResult | None = None
        self.tests: TestResult | None = None
        self.on_deaf: Callable[[Any], object] | None = None
        self._seconds = 0.0

    @property
    def is_in_process(self) -> bool:
        """Whether Python of this process does the work."""
        known = getattr(self._executor, "is_in_process", None)
        return bool(known(self._context)) if known else True

    def __call__(self, place: Place) -> Work:
        started = time.monotonic()
        marker, config = place.marker, self._config
        with ResourceMonitor(marker, place.stop, config.max_memory_mb, config.max_cpu_percent) as monitor:
            work = self._implement(place)
        self._seconds = time.monotonic() - started
        self._tell_use(work)
        if monitor.exceeded:
            return work._replace(status=Status.FAILED, error=monitor.exceeded, kind="memory")
        if not work.ok:
            return work
        self._claim_changes(place)
        return self._test(place, work)

    def _implement(self, place: Place) -> Work:
        workspace = Workspace(place.workspace.path, place.workspace.branch, place.workspace.base, place)
        aside = self.is_in_process  # a command has its own clock, and its tree is ended by the engine
        result: ImplementationResult | None = None
        with _Deadline(place, self._late, watching=aside) as deadline:
            result = answered(self._executor.execute(self._context, workspace), deadline.seconds)
        self.result = result
        if result is None or deadline.is_over:
            return self._late_work(deadline.seconds)
        if result.work is not None:
            return result.work
        usage = _counted(result.usage or {})
        if result.success:
            return Work(usage=usage)
        if place.stop.is_set():
            return Work(Status.CANCELLED, result.error or "it was stopped", "stopped", usage=usage)
        return Work(Status.FAILED, result.error or "the agent failed", "work", usage=usage)

    def _late(self, seconds: float) -> None:
        """The deadline is over, the time to notice it too, and the work goes on: whoever waits is told now."""
        if self.on_deaf is None:
            return
        work = self._late_work(seconds)
        text = f"{work.error}; it does not end, its slot and work space stay held until it does"
        logger.warning("%s: %s", self._order.runner_id, text)
        lease = self._desk.find(self._order.runner_id)
        self.on_deaf(
            Outcome(
                self._context.task_id, work.status, self._order.attempt, text, work.kind,
                runner_id=self._order.runner_id, token=lease.token if lease else None, workspace=self._order.path,
                branch=self._order.branch, concurrent=max(1, self._desk.view.live + (not self._desk.slot)),
                waited=lease.record.waited_seconds if lease else 0.0, phases={"work": seconds},
            )
        )  # fmt: skip

    def _late_work(self, seconds: float) -> Work:
        return Work(Status.TIMED_OUT, f"the agent ran out of time after {seconds:.1f} s", "timeout")

    def _test(self, place: Place, work: Work) -> Work:
        commands = self._test_runner.commands(self._context, place.workspace.path)
        if not commands:
            return work
        self._tell("phase.started", phase="test")
        self.tests, verdict = self._test_runner.run_tests(self._context, place)
        self._tell("phase.finished", phase="test", seconds=self.tests.total_duration_seconds, ok=self.tests.success)
        tests = self.tests
        self._tell("tests.recorded", run=len(tests.test_results), passed=tests.passed, failed=tests.failed)
        return work if verdict.ok else verdict

    def _claim_changes(self, place: Place) -> None:
        """What was changed is claimed too, so that others see it; what somebody else holds is a conflict, told."""
        if place.workspace.repository is None:
            return
        repository, path = place.workspace.repository, place.workspace.path
        changed = {*git.status(path), *(c.path for c in git.changes(place.workspace.base, "HEAD", cwd=path))}
        top = repository.root if place.workspace.mode == "given" else path
        claims = tuple(_changed(repository, top, name) for name in sorted(changed))
        lease = self._desk.find(self._order.runner_id)
        if lease is None:
            raise LeaseLost(self._order.runner_id, ours=None)
        try:
            strategy.extend(self._desk, lease, claims, "warn")
        except TROUBLE as trouble:
            # Only others' knowledge of it is missing: that must not cost the work.
            logger.warning("%s: its changed files could not be claimed: %s", self._order.runner_id, trouble)

    def told(self, outcome: Outcome) -> ImplementationResult | None:
        """The executor's result with what git knows better: the diff and the files."""
        result = self.result
        if result is None:
            return None
        result.duration_seconds = result.duration_seconds or self._seconds
        if outcome.files_changed:
            patch = Path(self._order.folder) / "diff.patch"
            result.files_changed = list(outcome.files_changed)
            result.diff = patch.read_text(errors="replace") if patch.exists() else ""
        return result

    def _tell_use(self, work: Work) -> None:
        if work.usage.get("seconds"):
            percent = 100.0 * work.usage.get("cpu_seconds", 0.0) / work.usage["seconds"]
            memory = work.usage.get("max_rss_mb", 0.0)
            self._tell("resources.sampled", cpu_percent=round(percent, 1), memory_mb=round(memory, 1))

    def _tell(self, kind: str, **facts: Any) -> None:
        event = journal.make(
            kind, runner_id=self._order.runner_id, task_id=self._context.task_id, spec_name=self._context.spec_name,
            run_id=self._order.run_id, **facts,
        )  # fmt: skip
        journal.append(self._desk.state.events, [event])


def _counted(usage: Mapping[str, Any]) -> dict[str, float]:
    """What of it are numbers: an agent may tell more, the name of its model for one."""
    return {key: float(value) for key, value in usage.items() if isinstance(value, int | float)}


def _changed(repository: Repository, top: Path, name: str) -> Claim:
    """The claim on what git tells as changed. A repository in there, of whose files git tells nothing, is meant as a
    whole."""
    inside = os.path.isdir(top / name) and not os.path.islink(top / name)
    return git.entry_claim(repository, name, whole=inside)


class _Deadline:
    """Watches one piece of work in this process: at the deadline `stop` is set, and after the grace `late` called."""

    def __init__(self, place: Place, late: Callable[[float], None], *, watching: bool) -> None:
        self._place, self._late, self._began = place, late, time.monotonic()
        self._watching = watching and place.deadline is not None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"deadline-{place.marker}", daemon=True)
        self.is_over = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __enter__(self) -> _Deadline:
        if self._watching:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Swallows what is raised after the deadline: that it is late is what counts then."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.is_over and isinstance(error, Exception)

    def _watch(self) -> None:
        assert self._place.deadline is not None
        if self._over.wait(max(0.0, self._place.deadline - time.monotonic())):
            return
        self.is_over = True
        self._place.stop.set()
        if not self._over.wait(self._place.grace):
            self._late(self.seconds)
