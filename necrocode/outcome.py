"""How an attempt ended, as one value; every face's result is a projection of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple


class Status(StrEnum):
    """Where a task stands."""

    WAITING = "waiting"
    """For its turn, its dependencies, its delay, or what it claims."""
    RUNNING = "running"
    """An attempt is under way."""
    STOPPING = "stopping"
    """Asked to end: its clock ran out, or somebody cancelled it."""
    DONE = "done"
    """It did what was asked."""
    FAILED = "failed"
    """It ended without doing so, and no attempts are left."""
    TIMED_OUT = "timed_out"
    """A clock ran out."""
    CANCELLED = "cancelled"
    """It was told not to start, or to end."""
    LOST = "lost"
    """The process that carried it died; somebody else may take it up."""

    @property
    def is_final(self) -> bool:
        return self in FINAL


WAITING, RUNNING, STOPPING, DONE, CANCELLED = (
    Status.WAITING, Status.RUNNING, Status.STOPPING, Status.DONE, Status.CANCELLED,
)  # fmt: skip
"""Where nearly every task stands once. In Python 3.11 a look at them through their class costs as much as a call."""

FINAL = frozenset({Status.DONE, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED})

FINAL_ERRORS = ("not_found", "not_executable", "needs_attention")
"""The `error_kind`s of a failure after which another attempt would end the same way."""


_OF_PROGRAMS = frozenset({"work", "verify", "timeout", "silent", "stopped", "lost"})


_EXITS = {"not_found": 127, "not_executable": 126, "needs_attention": 3}


class Outcome(NamedTuple):
    """One finished attempt. Times are seconds; `started` and `ended` are seconds since 1970.

    `error` is a sentence, `error_kind` the phase or class it belongs to (conflict, limit, prepare, work, verify,
    commit, timeout, silent, lost, stopped, ...). `usage` holds cpu_seconds, max_rss_mb and whatever the agent told."""

    task_id: str
    status: Status
    attempt: int = 1
    error: str = ""
    error_kind: str = ""
    exit_code: int | None = None
    runner_id: str = ""
    token: int | None = None
    workspace: str = ""
    branch: str = ""
    base: str = ""
    commits: tuple[str, ...] = ()
    files_changed: tuple[str, ...] = ()
    lines_added: int = 0
    lines_removed: int = 0
    started: float = 0.0
    ended: float = 0.0
    waited: float = 0.0
    concurrent: int = 1
    phases: Mapping[str, float] = {}
    usage: Mapping[str, float] = {}
    artifacts: Mapping[str, str] = {}
    details: Mapping[str, Any] = {}

    @property
    def ok(self) -> bool:
        return self.status is Status.DONE

    @property
    def ran(self) -> bool:
        """Whether a program of it ran, so that its logs may say more than `error` does."""
        return bool(self.attempt) and (self.ok or self.error_kind in _OF_PROGRAMS)

    @property
    def run_code(self) -> int:
        """What `necrocode run` ends with when this is all that there was to do."""
        if self.ok:
            return 0
        return 130 if self.error == "interrupted" else _EXITS.get(self.error_kind, 1)

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.started)

    def to_dict(self) -> dict[str, Any]:
        data = self._asdict()
        data["status"] = str(self.status)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """The reverse; unknown keys are ignored. Raises KeyError or ValueError for what is no outcome."""
        known = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in cls._fields
        }
        return cls(**{**known, "task_id": data["task_id"], "status": Status(data["status"])})


def run_code(ends: Iterable[tuple[str, int]]) -> int:
    """That of a run whose tasks ended so: the status and the exit code of each. What was not started because another
    task was not done says nothing beside that one."""
    bad = [end for end in ends if end[1]]
    codes = {code for status, code in bad if (status, code) != (Status.CANCELLED, 1)} or {code for _, code in bad}
    return next((code for code in (130, 127, 126, 1, 3) if code in codes), 0)
