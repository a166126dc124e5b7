"""WorkerPool: the document's names over the engine."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pickle import PicklingError
from random import Random
from types import TracebackType
from typing import Any

from necrocode import clock
from necrocode.concurrency.config import WorkerPoolConfig
from necrocode.concurrency.results import (
    TaskExecutionError,
    TaskMetrics,
    TaskResult,
    TaskStatus,
    TaskTimedOutError,
    WaitTimeoutError,
)
from necrocode.errors import ConfigError, TaskTimeoutError
from necrocode.event import Event
from necrocode.futures import Call, Caught, Engine, Processes, Unfit, checked_work
from necrocode.futures.processes import pack
from necrocode.outcome import Status
from necrocode.schedule import Entry

logger = logging.getLogger("necrocode.concurrency")

_FINAL = {
    Status.DONE: TaskStatus.COMPLETED,
    Status.FAILED: TaskStatus.FAILED,
    Status.TIMED_OUT: TaskStatus.FAILED,
    Status.CANCELLED: TaskStatus.CANCELLED,
}
_NONE: Mapping[str, Any] = {}  # one for all tasks without
_RETURN_WHEN = ("ALL_COMPLETED", "FIRST_EXCEPTION", "FIRST_COMPLETED")


class WorkerPool:
    """Carries calls with at most `max_workers` at once; a context manager. Every method may be called from any thread.

    Task functions must be idempotent (an attempt may be repeated) and thread-safe. Leaving the `with` block waits for
    all tasks; leaving it by an exception cancels those that wait, and by Ctrl-C ends the running ones too."""

    def __init__(self, config: WorkerPoolConfig | None = None) -> None:
        if config is not None and not isinstance(config, WorkerPoolConfig):
            raise ConfigError(f"{config!r} is no configuration", hint="give a WorkerPoolConfig")
        self.config = config or WorkerPoolConfig()
        self.config.check()
        name = f"pool-{os.urandom(3).hex()}"
        workers = self.config.workers(name)
        self._packs = isinstance(workers, Processes)
        self._grace, self._policy = workers.grace, self.config.policy()
        slots = self.config.slots(name)
        self._engine = Engine(workers, self.config.max_workers, tell=self._note, slots=slots, name=name)
        self._random = Random()
        self._on_end, self._on_failure = self._settled, self._retry  # bound once, not for each task
        self._metrics: dict[str, TaskMetrics] = {}
        self._results: dict[str, TaskResult] = {}
        self._waits: dict[str, list[_Wait]] = {}

    # tasks

    def submit_task(
        self,
        task_name: str,
        task_fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
    ) -> str:
        """Take a call on and return the task's id. Higher `priority` starts first; equal ones in order of submission.

        Raises PoolClosed (a RuntimeError) after shutdown, Unfit (a TypeError) for what cannot be called, or not be
        sent to a process."""
        kwargs = _NONE if kwargs is None else kwargs
        if not isinstance(task_name, str):
            raise Unfit(f"the name {task_name!r} is no text", hint="submit_task(name, function, args, kwargs)")
        checked_work(task_fn, args, kwargs)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ConfigError(f"priority {priority!r} is not possible", hint="give a whole number, higher goes first")
        limit, task_id = self.config.task_timeout_seconds, _new_id(self._random)
        end = None if limit is None else limit + self._grace
        entry = Entry(task_id, priority, (), (), end, self._policy, self.config.retry_timeouts)
        packed = pack(task_fn, args, kwargs) if self._packs else b""
        call = Call(entry, task_fn, tuple(args), kwargs, self._on_end, limit, self._on_failure, packed, task_name)
        self._metrics[task_id] = TaskMetrics(task_id, task_name)
        try:
            self._engine.submit(call)
        except RuntimeError:
            del self._metrics[task_id]
            raise
        return task_id

    def get_task_result(self, task_id: str, timeout: float | None = None) -> TaskResult:
        """Wait for one task, for ever or for `timeout` seconds, and return how it ended.

        Raises TimeoutError, which leaves the task alone, and KeyError for an id that is not of this pool."""
        self._metrics[task_id]
        found = self._results.get(task_id)
        if found is None:
            if not self._wait([task_id], timeout, "ALL_COMPLETED"):
                raise WaitTimeoutError(f"task {self._metrics[task_id].task_name} did not end within {timeout:g} s")
            found = self._results[task_id]
        return found

    def wait_for_all(
        self,
        timeout: float | None = None,
        return_when: str = "ALL_COMPLETED",
        *,
        task_ids: Iterable[str] | None = None,
    ) -> list[TaskResult]:
        """Wait for all tasks submitted so far (or for those of `task_ids`) and return their results, in the order of
        submission (or of `task_ids`).

        With "FIRST_EXCEPTION" it returns at the first failure, with "FIRST_COMPLETED" at the first end, with the
        results that are there; the other tasks go on. Raises TimeoutError after `timeout` seconds, with the results
        so far in its `.results`."""
        if return_when not in _RETURN_WHEN:
            raise ConfigError(f"return_when {return_when!r} is not known", hint="use " + ", ".join(_RETURN_WHEN))
        wanted = self._wanted(task_ids)
        in_time = self._wait(wanted, timeout, return_when)
        results = [self._results[task_id] for task_id in wanted if task_id in self._results]
        if not in_time:
            raise WaitTimeoutError(f"{len(wanted) - len(results)} of {len(wanted)} tasks did not end in time", results)
        return results

    def as_completed(self, task_ids: Iterable[str] | None = None, timeout: float | None = None) -> Iterator[TaskResult]:
        """The results as they come. Raises TimeoutError after `timeout` seconds in all."""
        left = self._wanted(task_ids)
        until = None if timeout is None else clock.monotonic() + timeout
        while left:
            if not self._wait(left, None if until is None else until - clock.monotonic(), "FIRST_COMPLETED"):
                raise WaitTimeoutError(f"{len(left)} tasks did not end in time")
            yield from [self._results[task_id] for task_id in left if task_id in self._results]
            left = [task_id for task_id in left if task_id not in self._results]

    def abort_pending_tasks(self) -> int:
        """Cancel all tasks that have not started, or wait for another attempt; how many. Running ones go on, and the
        pool takes new tasks."""
        return self._engine.cancel_waiting("aborted")

    def forget(self, task_ids: Iterable[str] | None = None) -> int:
        """Drop the results and metrics of these tasks (all, when None) as far as they have ended; how many. For a pool
        that lives long: it keeps them for ever otherwise."""

        def drop() -> int:
            wanted = list(self._results) if task_ids is None else [it for it in task_ids if it in self._results]
            for task_id in wanted:
                del self._results[task_id], self._metrics[task_id]
            return len(wanted)

        return self._engine.ask(drop)

    # figures

    def get_metrics(self) -> dict[str, TaskMetrics]:
        """The metrics of every task ever submitted, by id, in the order of submission; copies of one moment."""
        return self._engine.ask(lambda: {task_id: replace(metrics) for task_id, metrics in self._metrics.items()})

    def get_summary_metrics(self) -> dict[str, Any]:
        """Counts by status, which add up to `total_tasks`; the mean `avg_execution_time_ms` of the tasks that
        completed or failed; `total_retries`. A task between two attempts counts as pending. `abandoned` is how many
        threads were given up and have not returned."""
        found = self.get_metrics().values()
        counts = dict.fromkeys(TaskStatus, 0)
        for metrics in found:
            counts[metrics.status] += 1
        times = [it.execution_time_ms for it in found if it.status in (TaskStatus.COMPLETED, TaskStatus.FAILED)]
        return {
            "total_tasks": len(found),
            "completed": counts[TaskStatus.COMPLETED],
            "failed": counts[TaskStatus.FAILED],
            "cancelled": counts[TaskStatus.CANCELLED],
            "running": counts[TaskStatus.RUNNING],
            "pending": counts[TaskStatus.PENDING] + counts[TaskStatus.RETRYING],
            "avg_execution_time_ms": sum(times) / len(times) if times else 0.0,
            "total_retries": sum(metrics.retries_used for metrics in found),
            "abandoned": len(self.abandoned_tasks()),
        }

    def abandoned_tasks(self) -> list[str]:
        """The ids of tasks whose worker did not stop when told, and has not returned yet."""
        return [work.call.entry.id for work in self._engine.deaf()]

    # the end

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more tasks. With `cancel_futures` those that have not started are cancelled; with `wait` this
        returns when all have ended and no worker is left but abandoned ones. Calling it again does no harm."""
        if cancel_futures:
            self._engine.close(wait=False)
            self._engine.cancel_waiting("the pool was shut down")
        self._engine.close(wait=wait)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._engine.stop_all("interrupted")
        try:
            self.shutdown(wait=True, cancel_futures=kind is not None)
        except KeyboardInterrupt:  # while it waited for the rest
            self._engine.stop_all("interrupted")
            self._engine.close(wait=True)
            raise

    # what the engine tells, one call at a time

    def _retry(self, error: BaseException) -> bool:
        hopeless = isinstance(error, ConfigError | PicklingError)
        return isinstance(error, self.config.retry_on) and not hopeless

    def _note(self, event: Event) -> None:
        """Fold one event into the metrics of its task."""
        metrics, facts = self._metrics[event.task_id], event.facts
        if event.kind == "attempt.started":
            metrics.status = TaskStatus.RUNNING
            metrics.start_time = metrics.start_time or event.at
        elif event.kind == "attempt.finished":
            metrics.execution_time_ms += facts["seconds"] * 1000.0
            metrics.worker_id = facts["worker"] or None
            metrics.error_message = facts["error"] or None
            metrics.end_time = event.at
        elif event.kind == "attempt.retried":
            metrics.status, metrics.end_time = TaskStatus.RETRYING, None
            metrics.retries_used = facts["attempt"]
        elif event.kind == "task.cancelled":
            metrics.error_message, metrics.end_time = facts["reason"], event.at
        if self.config.enable_instrumentation and logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s %s %s", metrics.task_name, event.kind, dict(facts))

    def _settled(self, call: Call, status: Status, caught: Caught) -> None:
        task_id = call.entry.id
        metrics = self._metrics[task_id]
        metrics.status = _FINAL[status]
        if caught.ok:
            result = TaskResult(task_id, call.name, True, caught.value, None, metrics)
        else:
            result = TaskResult(task_id, call.name, False, None, _failure(call.name, metrics, caught.value), metrics)
        self._results[task_id] = result
        if self.config.enable_instrumentation and logger.isEnabledFor(logging.INFO):
            level = logging.INFO if caught.ok else logging.WARNING
            logger.log(level, "%s %s in %.1f ms", call.name, metrics.status, metrics.execution_time_ms)
        for wait in tuple(self._waits.pop(task_id, ())):
            wait.ended(result)

    # waiting

    def _wanted(self, task_ids: Iterable[str] | None) -> list[str]:
        if isinstance(task_ids, str):
            raise ConfigError(f"task_ids {task_ids!r} is one text", hint="give a list of ids")
        wanted = list(self._metrics) if task_ids is None else list(task_ids)
        for task_id in wanted:
            self._metrics[task_id]
        return wanted

    def _wait(self, task_ids: list[str], timeout: float | None, return_when: str) -> bool:
        if timeout is not None and (not isinstance(timeout, int | float) or timeout != timeout):
            raise ConfigError(f"timeout {timeout!r} is not possible", hint="give seconds, or None to wait for ever")
        wait = _Wait(task_ids, return_when)
        for task_id in task_ids:
            if task_id not in self._results:
                self._waits.setdefault(task_id, []).append(wait)
            # Asked after it was said who waits: it may have ended just before.
            if task_id in self._results:
                wait.ended(self._results[task_id])
        if clock.until(wait.over.wait, timeout):
            return True
        for task_id in task_ids:
            with suppress(KeyError, ValueError):  # it has ended meanwhile
                self._waits[task_id].remove(wait)
        return wait.over.is_set()


class _Wait:
    """Somebody who waits for the end of some tasks."""

    def __init__(self, task_ids: Iterable[str], return_when: str) -> None:
        self._left, self._return_when = set(task_ids), return_when
        self.over = threading.Event()
        if not self._left:
            self.over.set()

    def ended(self, result: TaskResult) -> None:
        """Told at least once for each task, by any thread."""
        self._left.discard(result.task_id)
        metrics = result.metrics
        failed = metrics is not None and metrics.status is TaskStatus.FAILED
        first = self._return_when == "FIRST_COMPLETED" or (self._return_when == "FIRST_EXCEPTION" and failed)
        if first or not self._left:
            self.over.set()


def _new_id(random: Random) -> str:
    """A random UUID (version 4) in its usual form; made by hand, since uuid.UUID costs more than a whole start, and
    without asking the system, which would let go of the interpreter for each."""
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[random.getrandbits(2)]}{digits[17:20]}-{digits[20:]}"


def _failure(name: str, metrics: TaskMetrics, error: BaseException) -> Exception:
    retries = f"after {metrics.retries_used} retries"
    failed: TaskExecutionError
    if metrics.status is TaskStatus.CANCELLED:
        failed = TaskExecutionError(f"Task {name} was cancelled: {metrics.error_message}", task_id=metrics.task_id)
    elif isinstance(error, TaskTimeoutError):
        failed = TaskTimedOutError(
            f"Task {name} failed {retries}: {error}", elapsed=error.elapsed, timeout=error.timeout,
            partial_traces=error.partial_traces, task_id=metrics.task_id,
        )  # fmt: skip
    else:
        failed = TaskExecutionError(f"Task {name} failed {retries}: {error}", task_id=metrics.task_id)
    failed.__cause__ = error
    return failed
