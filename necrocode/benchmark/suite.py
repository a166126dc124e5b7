"""Benchmark: subclass it, say how agents are set up, run and judged; `run` does the rest."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from inspect import Parameter, iscoroutinefunction, signature
from os import PathLike
from typing import Any

from necrocode.benchmark.callbacks import BenchmarkCallback, ProgressBar
from necrocode.benchmark.course import Course
from necrocode.benchmark.registry import ComponentRegistry
from necrocode.benchmark.report import TaskExecutionStatus, report_of, status_of
from necrocode.benchmark.store import ReportStore
from necrocode.benchmark.tasks import Task, TaskCollection
from necrocode.context import TaskContext
from necrocode.errors import ConfigError
from necrocode.futures import attempt
from necrocode.queues import SequentialQueue, TaskQueue, expanded

logger = logging.getLogger("necrocode.benchmark")

Report = dict[str, Any]

_HOOKS = ("setup_environment", "setup_user", "setup_agents", "setup_evaluators", "run_agents", "evaluate")


class Benchmark(ABC):
    """Sets agents up for each task, runs them, collects traces, evaluates, and reports.

    `agent_data` is handed to the set-up: one value for all tasks, or a list with one for each. `callbacks` hear what
    happens; `progress_bar` shows it on a terminal. What is set up runs in worker threads, several at once, so nothing
    of a task may be kept on the benchmark itself."""

    def __init__(
        self,
        agent_data: Any = None,
        callbacks: Iterable[BenchmarkCallback] | None = None,
        n_task_repeats: int = 1,
        progress_bar: bool = True,
    ) -> None:
        SequentialQueue[Any]((), n_task_repeats)  # refuses impossible repeats
        self.agent_data, self.n_task_repeats, self.progress_bar = agent_data, n_task_repeats, progress_bar
        if callbacks is not None and not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks {callbacks!r} are no list", hint="give a list of BenchmarkCallbacks")
        self.callbacks: list[BenchmarkCallback] = list(callbacks or ())
        self.reports: list[Report] = []
        self.tasks = TaskCollection()
        self._data_of: dict[str, Any] = {}
        self._terms: tuple[ReportStore | None, Any, float] = (None, "thread", 5.0)
        self._registry = ComponentRegistry({"benchmark": type(self).__name__, "n_task_repeats": n_task_repeats})
        self._reports_lock, self._callback_lock = threading.Lock(), threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: no locks, no callbacks, no reports."""
        unsent = ("_reports_lock", "_callback_lock", "_terms", "callbacks", "reports", "tasks")
        kept = {name: value for name, value in self.__dict__.items() if name not in unsent}
        return {**kept, "callbacks": [], "reports": [], "tasks": []}

    # what a benchmark says

    def setup_environment(self, agent_data: Any, task: Task) -> Any:
        """The environment of one repetition; None when it needs none."""
        return None

    def setup_user(self, agent_data: Any, environment: Any, task: Task) -> Any:
        """The simulated user of one repetition; None when it needs none."""
        return None

    @abstractmethod
    def setup_agents(
        self, agent_data: Any, environment: Any, task: Task, user: Any
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The agents to run, and all agents by name, whose traces are collected."""

    def setup_evaluators(self, environment: Any, task: Task, agents: Sequence[Any], user: Any) -> Sequence[Any]:
        """What judges the answer; nothing by default."""
        return ()

    def get_model_adapter(self, model_id: str, **kwargs: Any) -> Any:
        """The model of this name, for those parts of a benchmark that need one."""
        raise ConfigError(f"{type(self).__name__} has no get_model_adapter", hint="override it to provide models")

    @abstractmethod
    def run_agents(self, agents: Sequence[Any], task: Task, environment: Any, query: str) -> Any:
        """Let the agents work and return their final answer. With a parameter `context` it also gets the TaskContext,
        whose `check_timeout()` it should call between steps; `necrocode.benchmark.check_timeout()` does the same
        from anywhere below."""

    def evaluate(
        self, evaluators: Sequence[Any], agents: Mapping[str, Any], final_answer: Any, traces: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """One dict for each evaluator, from what it returns when it is called with final_answer and traces."""
        return [evaluator(final_answer=final_answer, traces=traces) for evaluator in evaluators]

    # running

    def run(
        self,
        tasks: Task | Iterable[Task | Mapping[str, Any]] | None = None,
        queue: TaskQueue[Task] | Iterable[tuple[Task, int]] | None = None,
        max_workers: int = 1,
        *,
        store: ReportStore | str | PathLike[str] | None = None,
        executor: str | Executor = "thread",
        grace: float = 5.0,
    ) -> list[Report]:
        """Run every task and return the reports, in the order in which they were started.

        `queue` decides what is started when (default: SequentialQueue over `tasks`, which may then be missing); at
        most `max_workers` repetitions work at once. An attempt that is still at it `grace` seconds after its limit
        is given up (a thread) or killed (`executor="process"`, which needs a benchmark that can be pickled).

        With a `store` each report is on the disk before the next task starts; what has a report there is not run
        again, and other processes that run with the same store share the work.

        Raises TaskTimeoutError when a task whose timeout_action is RAISE ran out of time, ConfigError for what
        cannot be meant. What was reported by then is in `reports`."""
        if isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1:
            raise ConfigError(f"max_workers {max_workers!r} is not possible", hint="give a whole number from 1")
        for hook in _HOOKS:
            if iscoroutinefunction(getattr(self, hook)):
                raise ConfigError(
                    f"{hook} is a coroutine function", hint="write a plain one; asyncio.run inside is fine"
                )
        queue = self._queue(tasks, queue)
        if store is not None and not isinstance(store, ReportStore):
            if not isinstance(store, str | PathLike):
                raise ConfigError(f"store {store!r} is not possible", hint="give a directory, or a ReportStore")
            store = ReportStore(store)
        if store is not None:
            store.belongs_to(type(self).__qualname__)
        self.reports = []
        self._terms = store, executor, grace
        heard, self.callbacks = self.callbacks, [*self.callbacks]
        if self.progress_bar:
            self.callbacks.append(ProgressBar(len(queue) if isinstance(queue, TaskQueue) else None))
        self._invoke_callbacks("on_run_start", self)
        try:
            return self._run_sequential(queue) if max_workers == 1 else self._run_parallel(queue, max_workers)
        finally:
            self._invoke_callbacks("on_run_end", self, list(self.reports))
            self.callbacks = heard

    def _queue(self, tasks: Any, queue: Any) -> Any:
        if tasks is None and queue is None:
            raise ConfigError("there is nothing to run", hint="give tasks or a queue")
        if queue is not None and (isinstance(queue, type) or not isinstance(queue, Iterable)):
            raise ConfigError(f"queue {queue!r} is not possible", hint="give a TaskQueue, or pairs (task, repeat_idx)")
        # One mapping is one task; a mapping is iterable too, but over its keys.
        given = [tasks] if isinstance(tasks, Mapping) else [] if tasks is None else expanded(tasks)
        self.tasks = TaskCollection.from_list(given or list(getattr(queue, "tasks", [])))
        data = self.agent_data
        self._data_of = {}
        if isinstance(data, Sequence) and not isinstance(data, str | bytes):
            if len(data) != len(self.tasks):
                raise ConfigError(f"agent_data has {len(data)} entries for {len(self.tasks)} tasks")
            self._data_of = {task.id: entry for task, entry in zip(self.tasks, data, strict=True)}
        return SequentialQueue(self.tasks, self.n_task_repeats) if queue is None else queue

    def _run_sequential(self, queue: Any) -> list[Report]:
        """One at a time, in the order of the queue."""
        return Course(self, queue, 1, *self._terms).run()

    def _run_parallel(self, queue: Any, max_workers: int) -> list[Report]:
        """At most `max_workers` at once, started in the order of the queue."""
        return Course(self, queue, max_workers, *self._terms).run()

    def get_failed_tasks(self, status: TaskExecutionStatus | str | None = None) -> TaskCollection:
        """The tasks of the last run with a report that is no success, or has this status."""
        failed = {
            report["task_id"]
            for report in self.reports
            if (report["status"] == status if status is not None else report["status"] != TaskExecutionStatus.SUCCESS)
        }
        return TaskCollection(task for task in self.tasks if task.id in failed)

    # one repetition

    def _execute_task_repetition(self, task: Task, repeat_idx: int, context: TaskContext) -> Report:
        """Set up, run, collect, evaluate: one attempt at one repetition, in this thread. Never raises an Exception."""
        self._registry.clear()
        try:
            with context.active():
                return self._phases(task, repeat_idx, context)
        finally:
            self._registry.clear()

    def _phases(self, task: Task, repeat_idx: int, context: TaskContext) -> Report:
        agents: dict[str, Any] = {}
        phases: tuple[tuple[Callable[[], Any], TaskExecutionStatus], ...] = (
            (lambda: self._set_up(task, agents), TaskExecutionStatus.SETUP_FAILED),
            (lambda: self._work(task, context, *said[-1].value), TaskExecutionStatus.UNKNOWN_EXECUTION_ERROR),
        )
        said: list[Any] = []
        for phase, failing in phases:
            said.append(attempt(_within, (context, phase), {}))
            if not said[-1].ok:
                return self._told(task, repeat_idx, context, said[-1].value, failing)
        evaluators, answer = said[0].value[2], said[1].value
        traces = self._registry.collect_traces()
        judged = attempt(_within, (context, lambda: self.evaluate(evaluators, agents, answer, traces)), {})
        if not judged.ok:
            return self._told(task, repeat_idx, context, judged.value, TaskExecutionStatus.EVALUATION_FAILED)
        config = self._registry.collect_configs()
        success = TaskExecutionStatus.SUCCESS
        return report_of(task.id, repeat_idx, success, traces=traces, config=config, evaluation=judged.value)

    def _set_up(self, task: Task, agents: dict[str, Any]) -> tuple[Sequence[Any], Any, Sequence[Any]]:
        data = self._data_of.get(task.id, self.agent_data if not self._data_of else None)
        environment = self.setup_environment(data, task)
        user = self.setup_user(data, environment, task)
        to_run, named = self.setup_agents(data, environment, task, user)
        agents.update(named)
        evaluators = self.setup_evaluators(environment, task, to_run, user)
        parts = [("environment", "env", environment), ("user", "user", user)]
        parts += [("agents", name, agent) for name, agent in agents.items()]
        parts += [("callbacks", type(callback).__name__, callback) for callback in self.callbacks]
        for category, name, part in parts:
            if id(part) not in self._registry._component_id_map:
                self.register(category, name, part)
        return to_run, environment, evaluators

    def _work(
        self, task: Task, context: TaskContext, agents: Sequence[Any], environment: Any, evaluators: Sequence[Any]
    ) -> Any:
        more = {"context": context} if _takes_context(self.run_agents) else {}
        return self.run_agents(agents, task, environment, task.query, **more)

    def _told(
        self, task: Task, repeat_idx: int, context: TaskContext, error: BaseException, failing: TaskExecutionStatus
    ) -> Report:
        status = status_of(error, failing, expired=context.is_expired)
        traces, config = self._registry.collect_traces(), self._registry.collect_configs()
        return report_of(task.id, repeat_idx, status, traces=traces, config=config, error=error)

    # parts

    def register(self, category: str, name: str, component: Any) -> Any:
        """Have the component's traces and configuration in the report of the repetition that runs in this thread."""
        return self._registry.register(category, name, component)

    def clear_registry(self) -> None:
        """Forget what this thread registered."""
        self._registry.clear()

    def collect_all_traces(self) -> dict[str, Any]:
        """The traces of what this thread registered."""
        return self._registry.collect_traces()

    def collect_all_configs(self) -> dict[str, Any]:
        """The configurations of what this thread registered."""
        return self._registry.collect_configs()

    def _invoke_callbacks(self, method_name: str, *args: Any, **kwargs: Any) -> None:
        """Tell all callbacks, one after the other and never two at once."""
        with self._callback_lock:
            for callback in self.callbacks:
                method = getattr(callback, method_name, None)
                caught = attempt(method, args, kwargs) if method else None
                if caught and not caught.ok:
                    if not isinstance(caught.value, Exception):
                        raise caught.value
                    logger.warning("%s.%s failed", type(callback).__name__, method_name, exc_info=caught.value)

    def _append_report_safe(self, report: Report) -> None:
        with self._reports_lock:
            self.reports.append(report)


def _within(context: TaskContext, phase: Callable[[], Any]) -> Any:
    """One phase, with a check point before and after it."""
    context.check_timeout()
    value = phase()
    context.check_timeout()
    return value


def _takes_context(function: Callable[..., Any]) -> bool:
    known = signature(function).parameters
    return "context" in known or any(it.kind is Parameter.VAR_KEYWORD for it in known.values())
