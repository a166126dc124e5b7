"""ParallelTaskManager: carries out agents' tasks side by side, within a limit, and keeps their resources apart."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from necrocode import aio, journal
from necrocode.event import Event
from necrocode.lease import PRIORITIES, Request
from necrocode.ledger.memory import MemoryLedger
from necrocode.retry import Policy
from necrocode.schedule import Schedule
from necrocode.task_calls import resources as rules
from necrocode.task_calls.carrying import Carrying, Job
from necrocode.task_calls.executors import Configured, checked_executor
from necrocode.task_calls.figures import Figures
from necrocode.task_calls.locks import ledger_of
from necrocode.task_calls.models import AgentInstance, AgentResult, AgentTask, InvalidTaskCall, ResourceLock

logger = logging.getLogger("necrocode.task_calls")

_MOST_WAITING = 256
"""How many tasks may wait for what strangers hold; each takes a thread."""
_REMEMBERED = 10_000
"""Of how many ended tasks it is known how they ended, for those that depend on them."""
_SETTLE = 5.0
"""Seconds that callbacks may take to hear of the last progress before they are cancelled."""


class ParallelTaskManager:
    """At most `max_concurrent_tasks` at once, in order of priority; tasks that need the same resource one after the
    other, without taking a slot while they wait.

    `executor` is who does it: a function(task, progress), sync or async, or a mapping of agent ids or types to such
    functions, argvs or known agents' names. Resources are claims of a ledger: in memory, or with `coordinator` (a
    ParallelCoordinator, a ledger, or a state directory) those of the whole machine, whose limit then holds as well.
    `resource_timeout` is how many seconds a task may wait for a resource, None for ever. A failed attempt is repeated
    `max_retries` times, after `retry_delay` seconds, doubled each time; `retry_on(error)` may say no.

    To replace: `identify_resources(task) -> set of names`, `prioritise(task) -> number` (higher first),
    `schedule(limit) -> Schedule`, `listen(event)` for everything that happens, `on_error(task, error)` for what
    failed for good; the last two may be coroutine functions."""

    def __init__(
        self,
        max_concurrent_tasks: int = 10,
        *,
        executor: Configured = None,
        workflow_id: str | None = None,
        coordinator: Any = None,
        max_retries: int = 0,
        retry_delay: float = 1.0,
        retry_on: Callable[[BaseException], bool] | None = None,
        resource_timeout: float | None = None,
        identify_resources: Callable[[AgentTask], Iterable[str]] | None = None,
        prioritise: Callable[[AgentTask], int] | None = None,
        schedule: Callable[[int], Schedule] | None = None,
        listen: Callable[[Event], Any] | None = None,
        on_error: Callable[[AgentTask, BaseException | None], Any] | None = None,
        grace: float = aio.GRACE,
    ) -> None:
        self._limit = _checked(max_concurrent_tasks)
        _check_seconds(retry_delay=retry_delay, grace=grace, resource_timeout=resource_timeout or 0.0)
        replaced = {"identify_resources": identify_resources, "prioritise": prioritise, "schedule": schedule}
        _check_callable(retry_on=retry_on, **replaced)
        self.executor, self.workflow_id = checked_executor(executor), workflow_id
        self.policy = Policy(max_retries, base=retry_delay).checked()
        self.retry_on, self.resource_timeout, self.grace = retry_on, resource_timeout, grace
        self.agent_types: dict[str, str] = {}
        self._host_limit = getattr(coordinator, "max_parallel_runners", None)
        self._heartbeat_timeout = getattr(coordinator, "heartbeat_timeout_seconds", 300.0)
        self.ledger = MemoryLedger() if coordinator is None else ledger_of(coordinator)
        self._identify, self._prioritise, self._schedule = identify_resources, prioritise, schedule
        self._progress: list[aio.Subscriber] = []
        self._listeners = [aio.Subscriber(listen)] if listen else []
        self._on_error = [aio.Subscriber(on_error)] if on_error else []
        self._ended: OrderedDict[str, str] = OrderedDict()
        self.figures = Figures()
        self._carrying: Carrying | None = None

    @property
    def max_concurrent_tasks(self) -> int:
        """May be changed at any time; what runs goes on."""
        return self._limit

    @max_concurrent_tasks.setter
    def max_concurrent_tasks(self, limit: int) -> None:
        self._limit = _checked(limit)
        if self._carrying is not None:
            self._carrying.engine.schedule.limit = limit
            self._carrying.engine.go()

    # ---- the document's methods

    async def execute_parallel_tasks(self, tasks: list[AgentTask]) -> list[AgentResult]:
        """Carry out all of them; the results in the order of the tasks. No failure of one touches another or is
        raised. When this call is cancelled, so are its tasks, to their end.

        Raises InvalidTaskCall, before anything starts, for what cannot be meant."""
        tasks = [AgentTask.of(task) for task in tasks]
        carrying = self._here()
        resources = self._resources(tasks, carrying)
        groups = self._group_tasks_by_resource_requirements(tasks)
        group_of = {task.task_id: name for name, some in groups.items() for task in some}
        # What is here, perhaps once more, is waited for, however it ended before.
        needed = {one for task in tasks for one in task.dependencies} - resources.keys() - carrying.jobs.keys()
        earlier = {one: self._ended[one] for one in needed if one in self._ended}
        jobs = [
            carrying.add(task, resources[task.task_id], group_of.get(task.task_id, "general_tasks"), earlier)
            for task in tasks
        ]
        try:
            if jobs:
                await asyncio.wait([job.done for job in jobs])
        except asyncio.CancelledError:
            await self._stop(jobs, "whoever waited for it was cancelled")
            raise
        await aio.all_heard([*self._progress, *self._listeners, *self._on_error], _SETTLE)
        return [job.done.result() for job in jobs]

    def add_progress_callback(self, callback: Callable[[str, float], Any]) -> None:
        """Call `callback(instance_id, share from 0 to 1)`, sync or async, at every step of every task, in order. One
        that raises is logged."""
        self._progress.append(aio.Subscriber(callback))

    def get_running_instances(self) -> dict[str, AgentInstance]:
        """Those that work now, by instance id. The same objects later tell how they ended."""
        return {job.instance.instance_id: job.instance for job in self._jobs() if job.held is not None}

    def get_waiting_instances(self) -> dict[str, AgentInstance]:
        """Those that were handed over and do not work: for a slot, a resource, a dependency, or another try."""
        return {job.instance.instance_id: job.instance for job in self._jobs() if job.held is None}

    def get_resource_locks(self) -> dict[str, ResourceLock]:
        """Who holds which resource now."""
        return {name: self._lock(job, name) for job in self._jobs() if job.held is not None for name in job.claims}

    def get_resource_contention(self) -> dict[str, dict[str, float]]:
        """For each resource that was waited for: `waits`, `seconds` in all, and the `longest`."""
        return self.figures.contention()

    def _lock(self, job: Job, name: str) -> ResourceLock:
        instance = job.instance
        expires = instance.heartbeat + self._heartbeat_timeout
        return ResourceLock(name, instance.instance_id, rules.lock_type(job.claims[name]), instance.start_time, expires)

    def _identify_required_resources(self, task: AgentTask) -> set[str]:
        """The names of what the task needs alone (`shared:NAME` for what it shares)."""
        return rules.required(task) if self._identify is None else set(self._identify(task))

    def _group_tasks_by_resource_requirements(self, tasks: list[AgentTask]) -> dict[str, list[AgentTask]]:
        """Which tasks touch the same things; told with every task, and shown by `necrocode status`."""
        return rules.grouped(tasks, self.agent_types)

    # ---- waiting and cancelling

    async def wait_for_all(self, seconds: float | None = 300) -> bool:
        """Whether everything that was handed over is done within so many seconds; None waits for ever."""
        _check_seconds(timeout=max(0.0, seconds) if isinstance(seconds, int | float) else seconds or 0.0)
        for _ in range(3):
            await asyncio.sleep(0)  # calls that were made into tasks a moment ago hand over what they have
        loop = asyncio.get_running_loop()
        until = None if seconds is None else loop.time() + seconds
        while jobs := self._jobs():
            left = None if until is None else max(0.0, until - loop.time())
            _, pending = await asyncio.wait([job.done for job in jobs], timeout=left)
            if pending and until is not None and loop.time() >= until:
                return False
        return True

    async def cancel(self, ids: Iterable[str] | None = None, reason: str = "cancel was asked for") -> int:
        """Stop the tasks of these agents, instances or task ids (None: all), whether they work or wait; returns how
        many, once they have ended."""
        wanted = {ids} if isinstance(ids, str) else None if ids is None else set(ids)
        jobs = [job for job in self._jobs() if wanted is None or wanted & _names(job)]
        await self._stop(jobs, reason)
        return len(jobs)

    async def _stop(self, jobs: list[Job], reason: str) -> None:
        carrying = self._carrying
        live = [job for job in jobs if not job.done.done()]
        if carrying is None or not live:
            return
        for job in live:
            carrying.engine.cancel(job.task.task_id, reason)
        await aio.to_the_end(asyncio.gather(*(job.done for job in live)))

    # ---- what its tasks are carried with

    def _jobs(self) -> list[Job]:
        return list(self._carrying.jobs.values()) if self._carrying is not None else []

    def _here(self) -> Carrying:
        if self._carrying is None or self._carrying.loop is not asyncio.get_running_loop():
            self._carrying = Carrying(self)
        return self._carrying

    def _resources(self, tasks: list[AgentTask], carrying: Carrying) -> dict[str, set[str]]:
        """What each task needs; everything that can be refused is refused here, before any of them is handed over."""
        found: dict[str, set[str]] = {}
        for task in tasks:
            if task.task_id in found or task.task_id in carrying.jobs:
                raise InvalidTaskCall(f"task {task.task_id!r} is there already", hint="give each task its own task_id")
            found[task.task_id] = set(self._identify_required_resources(task))
            self.priority_of(task)
            for name in found[task.task_id]:
                rules.claim_of(name)
        return found

    def new_schedule(self) -> Schedule:
        if self._schedule is not None:
            return self._schedule(self._limit)
        return Schedule(limit=self._limit, most_blocked=_MOST_WAITING)

    def priority_of(self, task: AgentTask) -> int:
        return task.priority if self._prioritise is None else int(self._prioritise(task))

    def request_for(self, job: Job) -> Request:
        """The lease of one attempt."""
        workflow = str(job.task.workflow_id or self.workflow_id or "")
        details = {"agent_id": job.task.agent_id, "group": job.group, "command": job.task.description[:80]}
        return Request(
            job.instance.instance_id, tuple(job.claims.values()), job.task.task_id, workflow, limit=self._host_limit,
            priority=min(max(self.priority_of(job.task), PRIORITIES[0]), PRIORITIES[-1]),
            heartbeat_timeout=self._heartbeat_timeout, details=details,
        )  # fmt: skip

    def tell(self, kind: str, job: Job, **facts: Any) -> None:
        event = journal.make(
            kind, runner_id=job.instance.instance_id, task_id=job.task.task_id,
            spec_name=str(job.task.workflow_id or self.workflow_id or ""), agent=job.task.agent_id, **facts,
        )  # fmt: skip
        logger.debug("%s %s %s", kind, job.instance.instance_id, facts)
        self.figures.add(event)
        if (state := getattr(self.ledger, "state", None)) is not None:
            journal.append(state.events, [event])
        for listener in self._listeners:
            listener.tell(event)

    def took(self, job: Job, result: AgentResult) -> None:
        """A task came to its end."""
        self._ended[job.task.task_id] = result.status
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
        status = {"completed": "done"}.get(result.status, result.status)
        self.tell(
            "attempt.finished", job, attempt=result.attempts, status=status, error=result.error_message or "",
            seconds=result.execution_time_ms / 1000, confidence=result.confidence_score,
        )  # fmt: skip
        for subscriber in self._on_error if result.status == "failed" else ():
            subscriber.tell(job.task, result.error)

    def progressed(self, instance_id: str, share: float) -> None:
        for subscriber in self._progress:
            subscriber.tell(instance_id, share)


def _checked(limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidTaskCall(f"max_concurrent_tasks {limit!r} is not possible", hint="give a whole number from 1")
    return limit


def _check_seconds(**settings: Any) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
            raise InvalidTaskCall(f"{name} {value!r} is not possible", hint="give seconds from 0")


def _check_callable(**settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and not callable(value):
            raise InvalidTaskCall(f"{name} {value!r} is not possible", hint="give a function")


def _names(job: Job) -> set[str]:
    return {job.task.agent_id, job.task.task_id, job.instance.instance_id}
