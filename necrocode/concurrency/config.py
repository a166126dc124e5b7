"""WorkerPoolConfig: how many workers, of what kind, and how long and how often they try."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from math import isfinite
from typing import Any

from necrocode.errors import ConfigError
from necrocode.futures import Foreign, Processes, Threads, Workers
from necrocode.futures.slots import Slots
from necrocode.ledger.operations import Operations
from necrocode.retry import Policy

GRACE = 0.1
"""Seconds after its limit in which a thread may come back by itself before it is given up."""


@dataclass
class WorkerPoolConfig:
    """The settings of a WorkerPool. Raises ConfigError for numbers that cannot be meant.

    `task_timeout_seconds` is for one attempt, from when it begins to work; None for no limit. A failed attempt is
    repeated up to `max_retries` times, after `backoff_base_seconds * 2**n`, at most `backoff_max_seconds`, of which
    chance takes off a share of up to `jitter`. Only exceptions of `retry_on` are tried again, and attempts whose time
    was over only with `retry_timeouts`. `enable_instrumentation` switches the log lines; metrics are always kept.

    `executor` is "thread" (default), "process", or a concurrent.futures.Executor, which stays yours to shut down.
    With a `coordinator` (a ParallelCoordinator or a ledger) each attempt also holds one of the machine's slots."""

    max_workers: int = 50
    task_timeout_seconds: float | None = 180.0
    max_retries: int = 3
    backoff_base_seconds: float = 1.0
    backoff_max_seconds: float = 60.0
    enable_instrumentation: bool = True
    executor: str | Executor = "thread"
    coordinator: Any = None
    jitter: float = 0.0
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception
    retry_timeouts: bool = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises ConfigError that names the setting."""
        if isinstance(self.max_workers, bool) or not isinstance(self.max_workers, int) or self.max_workers < 1:
            raise ConfigError(f"max_workers {self.max_workers!r} is not possible", hint="give a whole number from 1")
        limit = self.task_timeout_seconds
        if limit is not None and not (_is_number(limit) and limit > 0):
            raise ConfigError(
                f"task_timeout_seconds {limit!r} is not possible", hint="give seconds above 0, or None for no limit"
            )
        for name in ("backoff_base_seconds", "backoff_max_seconds", "jitter"):
            if not _is_number(getattr(self, name)):
                raise ConfigError(f"{name} {getattr(self, name)!r} is not possible", hint="give a number")
        for name in ("enable_instrumentation", "retry_timeouts"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} {getattr(self, name)!r} is not possible", hint="give True or False")
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise ConfigError(
                f"retry_on {self.retry_on!r} is not possible", hint="give an exception's class, or a tuple"
            )
        self.policy()
        if self.executor not in ("thread", "process") and not isinstance(self.executor, Executor):
            raise ConfigError(
                f"executor {self.executor!r} is not known",
                hint='give "thread", "process" or a concurrent.futures.Executor',
            )
        ledger_of(self.coordinator)

    def policy(self) -> Policy:
        """The rule of retries that these settings make."""
        return Policy(
            self.max_retries, self.backoff_base_seconds, cap=self.backoff_max_seconds, jitter=self.jitter
        ).checked()

    def workers(self, name: str) -> Workers:
        """The workers of the kind that `executor` names."""
        if isinstance(self.executor, Executor):
            return Foreign(self.executor, grace=GRACE)
        return Processes(name) if self.executor == "process" else Threads(name, grace=GRACE)

    def slots(self, name: str) -> Slots | None:
        """The machine's slots, when there is a coordinator."""
        ledger = ledger_of(self.coordinator)
        if ledger is None:
            return None
        limit = getattr(self.coordinator, "max_parallel_runners", None)
        return Slots(ledger, name, limit, getattr(self.coordinator, "heartbeat_timeout_seconds", 300.0))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def ledger_of(coordinator: Any) -> Operations | None:
    """The ledger that a coordinator asks, or is. Raises ConfigError for anything else."""
    if coordinator is None or isinstance(coordinator, Operations):
        return coordinator
    ledger = getattr(coordinator, "ledger", None)
    if not isinstance(ledger, Operations):
        raise ConfigError(f"coordinator {coordinator!r} has no ledger", hint="give a ParallelCoordinator or a ledger")
    return ledger
