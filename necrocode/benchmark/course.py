"""The course of one run: hands out what the queue gives, to the engine, and takes the reports in."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from necrocode import clock
from necrocode.benchmark.report import (
    RepetitionFailed,
    RepetitionTimedOut,
    TaskExecutionStatus,
    report_of,
)
from necrocode.benchmark.store import ReportStore
from necrocode.benchmark.tasks import Task, TimeoutAction, task_of
from necrocode.context import TaskContext, current
from necrocode.errors import ConfigError, TaskTimeoutError
from necrocode.futures import Call, Caught, Engine, Foreign, Processes, Threads, Workers
from necrocode.futures.processes import pack
from necrocode.lease import Lease
from necrocode.outcome import Status
from necrocode.retry import Policy
from necrocode.schedule import Entry

if TYPE_CHECKING:
    from necrocode.benchmark.suite import Benchmark

logger = logging.getLogger("necrocode.benchmark")

BEAT = 30.0
"""Seconds between the signs of life for what is claimed in a store."""

Report = dict[str, Any]
_END: Any = object()


class _Item(NamedTuple):
    """One pair that was handed out: the how-manieth, and its claim in the store."""

    number: int
    task: Task
    repeat_idx: int
    lease: Lease | None = None


class Course:
    """One run from its first task to its last report."""

    def __init__(
        self, benchmark: Benchmark, queue: Any, max_workers: int, store: ReportStore | None, executor: Any, grace: float
    ) -> None:
        if isinstance(grace, bool) or not isinstance(grace, int | float) or not grace >= 0:
            raise ConfigError(f"grace {grace!r} is not possible", hint="give seconds from 0")
        self._benchmark, self._queue, self._max_workers = benchmark, queue, max_workers
        self._store, self._grace = store, grace
        self._workers = _workers(executor)
        self._engine = Engine(self._workers, max_workers, name="benchmark")
        self._flying: dict[Future[tuple[Status, Caught]], _Item] = {}
        self._elsewhere: deque[_Item] = deque()
        self._handed: set[tuple[str, int]] = set()
        self._begun: dict[str, Task] = {}
        self._ended: Counter[str] = Counter()
        self._last: dict[str, Report] = {}
        self._reports: dict[int, Report] = {}
        self._beaten = clock.monotonic()

    def run(self) -> list[Report]:
        """All reports, in the order of handing out."""
        done = False
        try:
            self._go(iter(self._queue))
            done = True
        finally:
            self._end(done)
        for task_id in list(self._begun):
            self._task_ended(task_id)
        return [self._reports[number] for number in sorted(self._reports)]

    def _go(self, queue: Iterator[tuple[Task, int]]) -> None:
        more = True
        while True:
            while more and len(self._flying) < self._max_workers:
                more = self._hand_out(queue)
            if not more:
                self._look_elsewhere()
            if self._flying:
                self._wait()
            elif not more and not self._elsewhere:
                return

    def _hand_out(self, queue: Iterator[tuple[Task, int]]) -> bool:
        """Start the next one; False when there is none."""
        go_on = getattr(self._queue, "should_continue", None)
        pair = next(queue, _END) if go_on is None or go_on() else _END
        if pair is _END:
            return False
        item = self._item(pair)
        stored = self._store.read(item.task.id, item.repeat_idx) if self._store else None
        if stored is not None:
            self._take(item, stored, ran=False)
        elif not self._claim_and_start(item, 0.0):
            self._elsewhere.append(item)
        return True

    def _item(self, pair: Any) -> _Item:
        try:
            task, repeat_idx = pair
        except (TypeError, ValueError):
            raise ConfigError(f"the queue gave {pair!r}", hint="it has to give pairs (task, repeat_idx)") from None
        task = task_of(task)
        if (task.id, repeat_idx) in self._handed:
            raise ConfigError(
                f"the queue gave task {task.id} repetition {repeat_idx} twice", hint="give each pair once"
            )
        if self._store and not task.has_own_id:
            raise ConfigError("a task without an id of its own cannot be found again", hint="give each Task an id")
        self._handed.add((task.id, repeat_idx))
        return _Item(len(self._handed), task, repeat_idx)

    def _claim_and_start(self, item: _Item, patience: float) -> bool:
        """False when another process is at it."""
        if self._store:
            lease = self._store.claim(item.task.id, item.repeat_idx, patience=patience)
            if lease is None:
                return False
            item = item._replace(lease=lease)
            # Whoever had it may have ended it just now.
            if (stored := self._store.read(item.task.id, item.repeat_idx)) is not None:
                self._store.give_back(lease)
                self._take(item, stored, ran=False)
                return True
        self._start(item)
        return True

    def _start(self, item: _Item) -> None:
        task, protocol = item.task, item.task.protocol
        if task.id not in self._begun and not self._ended[task.id]:
            self._benchmark._invoke_callbacks("on_task_start", self._benchmark, task)
        self._begun[task.id] = task
        self._benchmark._invoke_callbacks("on_task_repeat_start", self._benchmark, task, item.repeat_idx)
        limit, again = protocol.timeout_seconds, protocol.timeout_action is TimeoutAction.RETRY
        future: Future[tuple[Status, Caught]] = Future()
        self._flying[future] = item
        args = (self._benchmark, task, item.repeat_idx)
        entry = Entry(
            f"{item.number}", timeout=None if limit is None else limit + self._grace,
            policy=Policy(protocol.attempts - 1, base=0.0), retry_timeouts=again,
        )  # fmt: skip
        packed = pack(carry, args, {}) if isinstance(self._workers, Processes) else b""
        self._engine.submit(
            Call(
                entry, carry, args, {}, lambda call, status, caught: future.set_result((status, caught)), limit,
                lambda error: protocol.max_retries > 0, packed, task.id,
            )
        )  # fmt: skip

    def _wait(self) -> None:
        wait(self._flying, timeout=BEAT if self._store else None, return_when=FIRST_COMPLETED)
        for future in [future for future in self._flying if future.done()]:
            item = self._flying[future]
            status, caught = future.result()
            report = self._report(item, caught)
            if self._store:
                self._store.write(report)
            del self._flying[future]
            self._give_back(item)
            self._take(item, report, ran=True)
            if status is Status.TIMED_OUT and item.task.protocol.timeout_action is TimeoutAction.RAISE:
                self._raise(caught.value)
        self._beat()

    def _report(self, item: _Item, caught: Caught) -> Report:
        if caught.ok:
            report: Report = caught.value
            return report
        error = caught.value
        if isinstance(error, RepetitionFailed | RepetitionTimedOut):
            return error.report
        # It never came to make a report: given up, killed, or its process died.
        timed_out = isinstance(error, TaskTimeoutError)
        status = TaskExecutionStatus.TASK_TIMEOUT if timed_out else TaskExecutionStatus.INFRASTRUCTURE_ERROR
        if timed_out and item.task.id:
            logger.warning("%s did not stop at its limit and was given up", item.task.id)
        return report_of(item.task.id, item.repeat_idx, status, error=error)

    def _take(self, item: _Item, report: Report, *, ran: bool) -> None:
        self._reports[item.number] = report
        self._benchmark._append_report_safe(report)
        task_id = item.task.id
        self._ended[task_id] += 1
        if hear := getattr(self._queue, "on_task_complete", None):
            hear(item.task, report)
        if not ran:
            return
        self._last[task_id] = report
        self._benchmark._invoke_callbacks("on_task_repeat_end", self._benchmark, report)
        if self._ended[task_id] >= getattr(self._queue, "n_task_repeats", self._benchmark.n_task_repeats):
            self._task_ended(task_id)

    def _task_ended(self, task_id: str) -> None:
        task = self._begun.pop(task_id, None)
        if task is not None:
            self._benchmark._invoke_callbacks("on_task_end", self._benchmark, task, self._last.get(task_id, {}))

    def _look_elsewhere(self) -> None:
        """Take over what another process had and did not bring to an end; wait for it when there is nothing else."""
        for _ in range(len(self._elsewhere)):
            if len(self._flying) >= self._max_workers:
                return
            item = self._elsewhere.popleft()
            if not self._claim_and_start(item, 0.0 if self._flying or self._elsewhere else 1.0):
                self._elsewhere.append(item)
        if self._elsewhere and not self._flying:
            time.sleep(0.05)

    def _beat(self) -> None:
        if self._store and clock.monotonic() - self._beaten > BEAT / 2:
            self._beaten = clock.monotonic()
            for item in self._flying.values():
                if item.lease:
                    self._store.renew(item.lease)

    def _raise(self, error: BaseException) -> None:
        if isinstance(error, RepetitionTimedOut):
            error = TaskTimeoutError(error.elapsed, error.timeout, error.partial_traces)
        raise error

    def _end(self, done: bool) -> None:
        """Whatever happened: nothing runs on that can be stopped, and no claim is kept."""
        if not done:
            self._engine.stop_all("the run was ended")
        self._engine.close(wait=True)
        if not done:
            until = clock.monotonic() + self._grace
            while self._engine.deaf() and clock.monotonic() < until:
                time.sleep(0.005)
        for item in self._flying.values():
            self._give_back(item)

    def _give_back(self, item: _Item) -> None:
        if self._store and item.lease:
            self._store.give_back(item.lease)


def _workers(executor: Any) -> Workers:
    if isinstance(executor, Executor):
        return Foreign(executor)
    if executor == "process":
        return Processes("benchmark")
    if executor == "thread":
        return Threads("benchmark")
    raise ConfigError(
        f"executor {executor!r} is not known", hint='"thread", "process" or a concurrent.futures.Executor'
    )


def carry(benchmark: Benchmark, task: Task, repeat_idx: int) -> Report:
    """One attempt, where the workers are. Raises what did not succeed, so that the engine can try again."""
    context = current() or TaskContext(task.protocol.timeout_seconds)
    report = benchmark._execute_task_repetition(task, repeat_idx, context)
    if report["status"] == TaskExecutionStatus.SUCCESS:
        return report
    if report["status"] == TaskExecutionStatus.TASK_TIMEOUT:
        elapsed, limit = context.elapsed, context.deadline or 0.0
        raise RepetitionTimedOut(elapsed, limit, context.collected_traces, report)
    raise RepetitionFailed(report)
