"""The tasks of one manager on one event loop: what its engine asks for and tells."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import threading
import traceback
import uuid
from collections.abc import Awaitable, Generator, Mapping
from contextlib import suppress
from math import isnan
from typing import TYPE_CHECKING, Any

from necrocode import aio, clock
from necrocode.claim import Claim
from necrocode.context import check_timeout
from necrocode.errors import ConfigError, LeaseLost, Refused, TaskTimeoutError
from necrocode.life import Entry
from necrocode.outcome import Status
from necrocode.schedule import Behind
from necrocode.task_calls.executors import AgentFailed, NoExecutor, carried, executor_for
from necrocode.task_calls.locks import Held, Locks
from necrocode.task_calls.models import AgentInstance, AgentResult, AgentTask
from necrocode.task_calls.resources import claim_of

if TYPE_CHECKING:
    from necrocode.task_calls.manager import ParallelTaskManager

logger = logging.getLogger("necrocode.task_calls")


class Job:
    """One task that was handed over, its instance, and the future of its result."""

    def __init__(self, task: AgentTask, resources: set[str], group: str) -> None:
        self.task, self.resources, self.group = task, resources, group
        self.claims: dict[str, Claim] = {name: claim_of(name) for name in sorted(resources)}
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", task.agent_id)[:80].strip("-") or "agent"
        now = clock.wall()
        name = f"{slug}.{uuid.uuid4().hex[:8]}"
        self.instance = AgentInstance(name, task.agent_id, task.task_id, "waiting", set(), now)
        self.done: asyncio.Future[AgentResult] = asyncio.get_running_loop().create_future()
        self.context = contextvars.copy_context()
        self.attempts = 0
        self.began: float | None = None
        self.spent = self.waited = 0.0
        self.behind: Behind | None = None
        self.behind_since: float | None = None
        self.alarm: asyncio.TimerHandle | None = None
        self.blocked = self.may_retry = False
        self.lost: LeaseLost | None = None
        self.held: Held | None = None


class Carrying:
    """Everything of a manager that belongs to one loop."""

    def __init__(self, manager: ParallelTaskManager) -> None:
        self._manager = manager
        self.loop = asyncio.get_running_loop()
        self.threads = aio.Threads()
        self.jobs: dict[str, Job] = {}
        self.engine = aio.Engine(manager.new_schedule(), self, manager.grace)
        self._locks = Locks(manager.ledger, self.threads)

    def add(self, task: AgentTask, resources: set[str], group: str, ended: Mapping[str, str]) -> Job:
        """Hand over a task; `ended` tells of earlier ones how they ended."""
        manager = self._manager
        job = Job(task, resources, group)
        retries = task.retries if task.retries is not None else manager.policy.retries
        entry = Entry(
            task.task_id, manager.priority_of(task), tuple(one for one in task.dependencies if one not in ended),
            tuple(job.claims.values()), task.timeout_seconds, manager.policy._replace(retries=retries),
        )  # fmt: skip
        self.jobs[task.task_id] = job
        manager.tell("task.queued", job, after=list(task.dependencies))
        self.engine.add(entry)
        failed = next((one for one in task.dependencies if ended.get(one, "completed") != "completed"), None)
        if failed is not None:
            how = "was cancelled" if ended[failed] == "cancelled" else "failed"
            self.engine.cancel(task.task_id, f"comes after {failed}, which {how}")
        return job

    # what the engine asks for and tells

    def begin(self, task_id: str, attempt: int) -> asyncio.Future[Any]:
        job = self.jobs[task_id]
        if job.alarm is not None:
            job.alarm.cancel()
        if job.behind_since is not None:
            job.waited += self.loop.time() - job.behind_since
            job.behind_since = None
        job.attempts, job.blocked, job.lost, job.may_retry = attempt, False, None, False
        context = job.context.copy()
        return self.loop.create_task(self._attempt(job), context=context, name=f"task-{job.instance.instance_id}")

    def behind(self, order: Behind) -> None:
        job, manager = self.jobs[order.task_id], self._manager
        if job.behind_since is None:
            job.behind_since = self.loop.time()
            if manager.resource_timeout is not None:
                job.alarm = self.loop.call_later(manager.resource_timeout, self._waited_too_long, job)
        job.behind = order
        manager.tell("conflict.avoided", job, task=order.task_id, after=order.after, claims=[str(order.held)])

    def _waited_too_long(self, job: Job) -> None:
        assert job.behind is not None
        holder = self.jobs.get(job.behind.after)
        who = holder.instance.instance_id if holder else job.behind.after
        seconds = self._manager.resource_timeout or 0.0
        what = f"resource {job.behind.wanted.name} after {seconds:g} s, held by {who}"
        self.engine.cancel(job.task.task_id, f"timeout waiting for {what}")

    def may_retry(self, task_id: str, error: BaseException) -> bool:
        return isinstance(error, Exception) and self.jobs[task_id].may_retry

    def retrying(self, task_id: str, error: BaseException) -> None:
        job = self.jobs[task_id]
        self._manager.tell("attempt.retried", job, attempt=job.attempts, delay=0.0, error=told(error))

    def ended(self, task_id: str, status: Status, value: Any, error: BaseException | None, reason: str) -> None:
        job = self.jobs.pop(task_id)
        if job.alarm is not None:
            job.alarm.cancel()
        self.engine.schedule.forget(task_id)
        if status is Status.DONE:
            self._report(job, 1.0)
        result = _result_of(job, status, value, error, reason)
        job.instance.status, job.instance.resources_locked = result.status, set()
        if not job.done.done():
            job.done.set_result(result)
        self._manager.took(job, result)

    # one attempt

    async def _attempt(self, job: Job) -> AgentResult:
        held: Held | None = None
        try:
            executor = executor_for(self._manager.executor, job.task, self._manager.agent_types)
            held = await self._admitted(job)
            return await carried(executor, job.task, Report(self, job), self.threads, job.instance.instance_id)
        except asyncio.CancelledError:
            if job.lost is not None:
                raise job.lost from None
            raise
        except Exception as error:
            job.may_retry = self._is_worth_another(error)
            raise
        finally:
            job.held = None
            if job.began is not None:
                job.spent += self.loop.time() - job.began
                job.began = None
            if held is not None:
                await self._locks.give_back(held)

    def _is_worth_another(self, error: Exception) -> bool:
        if isinstance(error, NoExecutor | ConfigError | Refused):
            return False
        retry_on = self._manager.retry_on
        return retry_on is None or bool(retry_on(error))

    async def _admitted(self, job: Job) -> Held:
        manager = self._manager
        asked = self.loop.time()
        held = await self._locks.take(
            manager.request_for(job), manager.resource_timeout, lambda refused: self._blocked(job, refused),
            lambda lost: self._lost(job, lost), lambda: self._beat(job),
        )  # fmt: skip
        try:
            if job.blocked:
                job.waited += self.loop.time() - asked
                await self.engine.unblocked(job.task.task_id)
            else:
                self.engine.admitted(job.task.task_id)
        except asyncio.CancelledError:
            await self._locks.give_back(held)
            raise
        job.held, job.began = held, self.loop.time()
        instance = job.instance
        instance.status, instance.resources_locked = "running", set(job.resources)
        instance.start_time = instance.heartbeat = clock.wall()
        manager.tell("attempt.started", job, attempt=job.attempts, waited=job.waited, resources=sorted(job.resources))
        job.waited = 0.0
        return held

    def _blocked(self, job: Job, refused: Refused) -> None:
        logger.debug("%s waits: %s", job.instance.instance_id, refused)
        if job.task.task_id not in self.jobs:
            return  # it has ended meanwhile
        job.blocked = True
        self.engine.blocked(job.task.task_id)

    def _lost(self, job: Job, lost: LeaseLost) -> None:
        job.lost = lost
        self.engine.interrupt(job.task.task_id)

    def _beat(self, job: Job) -> None:
        job.instance.heartbeat = clock.wall()

    def report(self, job: Job, share: float) -> None:
        if not job.done.done() and job.held is not None:
            self._report(job, share)

    def _report(self, job: Job, share: float) -> None:
        if share == 1.0 == job.instance.progress:
            return
        job.instance.progress, job.instance.heartbeat = share, clock.wall()
        self._manager.progressed(job.instance.instance_id, share)


class Report:
    """The `progress` that an executor gets. May be called from any thread, awaited or not."""

    def __init__(self, carrying: Carrying, job: Job) -> None:
        self._carrying, self._job, self._thread = carrying, job, threading.get_ident()

    def __call__(self, share: float) -> Awaitable[None]:
        """Tell that this share (0 to 1) is done. In a thread it raises once the task was stopped."""
        number = float(share)
        if isnan(number):
            raise ValueError("progress is a share from 0 to 1")
        number = min(1.0, max(0.0, number))
        if threading.get_ident() == self._thread:
            self._carrying.report(self._job, number)
        else:
            check_timeout()
            with suppress(RuntimeError):  # the loop is closed
                self._carrying.loop.call_soon_threadsafe(self._carrying.report, self._job, number)
        return _Told()


class _Told:
    """What may be awaited and need not be."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from asyncio.sleep(0).__await__()


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _result_of(job: Job, status: Status, value: Any, error: BaseException | None, reason: str) -> AgentResult:
    given = error.result if isinstance(error, AgentFailed) else value
    result = given if isinstance(given, AgentResult) else AgentResult()
    task, instance = job.task, job.instance
    result.agent_id, result.task_id, result.instance_id = task.agent_id, task.task_id, instance.instance_id
    result.idempotency_key, result.attempts, result.progress = task.idempotency_key, job.attempts, instance.progress
    result.start_time, result.end_time = instance.start_time, clock.wall()
    result.execution_time_ms = 1000.0 * job.spent
    result.success = status is Status.DONE
    result.status = "completed" if result.success else "cancelled" if status is Status.CANCELLED else "failed"
    if status is Status.TIMED_OUT:
        error = TaskTimeoutError(job.spent, task.timeout_seconds or 0.0, task_id=task.task_id)
    if not result.success:
        result.error = error if not isinstance(error, asyncio.CancelledError) else None
        result.error_message = _words(status, result.error, reason)
        if "timeout waiting for resource" in reason:
            result.status = "failed"
    return result


def _words(status: Status, error: BaseException | None, reason: str) -> str:
    if status is Status.CANCELLED:
        return reason if reason.startswith("timeout") else f"cancelled: {reason}"
    if isinstance(error, Refused):
        return f"timeout waiting for resource: {error}"
    if isinstance(error, NoExecutor | AgentFailed | TaskTimeoutError):
        return str(error)
    return told(error) if error is not None else reason
