"""Benchmarks of agent systems: tasks, queues, time limits, repetitions, reports that survive a crash."""

from __future__ import annotations

from necrocode.benchmark.callbacks import BenchmarkCallback
from necrocode.benchmark.registry import ComponentRegistry
from necrocode.benchmark.report import AgentError, TaskEnvironmentError, TaskExecutionStatus, UserError
from necrocode.benchmark.store import ReportStore
from necrocode.benchmark.suite import Benchmark
from necrocode.benchmark.tasks import Task, TaskCollection, TaskProtocol, TimeoutAction
from necrocode.context import TaskContext, check_timeout, current
from necrocode.errors import TaskTimeoutError
from necrocode.queues import AdaptiveQueue, PriorityQueue, SequentialQueue, TaskQueue

__all__ = [
    "AdaptiveQueue", "AgentError", "Benchmark", "BenchmarkCallback", "ComponentRegistry", "PriorityQueue",
    "ReportStore", "SequentialQueue", "Task", "TaskCollection", "TaskContext", "TaskEnvironmentError",
    "TaskExecutionStatus", "TaskProtocol", "TaskQueue", "TaskTimeoutError", "TimeoutAction", "UserError",
    "check_timeout", "current",
]  # fmt: skip
