"""Everything that can go wrong, as one tree.

Each error carries the facts it was made of as attributes, a sentence that names them, and a hint: what to do
next. All of them survive pickling, so they can cross process borders unchanged.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from necrocode.lease import Holder


def _revive(cls: type[NecrocodeError], args: tuple[Any, ...], facts: dict[str, Any]) -> NecrocodeError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class NecrocodeError(Exception):
    """Base of every error raised by necrocode; `hint` says what to do about it ("" when nothing helps)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call __init__ with the message alone, which no subclass here accepts.
        return _revive, (type(self), self.args, dict(self.__dict__))


def hint_of(error: NecrocodeError) -> str:
    """What to do about it. A workspace that something else keeps is kept with force, too: there the cause tells."""
    cause = error.__cause__
    if not isinstance(error, WorkspaceKept) or cause is None:
        return error.hint
    return getattr(cause, "hint", "") or "put that right first; force would not change it"


def advised(error: NecrocodeError) -> str:
    """The error and what to do about it, where there is room for one sentence only."""
    hint = hint_of(error)
    return f"{error} ({hint})" if hint else str(error)


def described(error: OSError) -> str:
    """Where the operating system refused something, and why."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def advice(error: OSError) -> str:
    """What to do about what the operating system refused, "" when nothing helps."""
    hints = {
        errno.ENOSPC: "free some space; nothing was half-written",
        errno.EDQUOT: "free some space; nothing was half-written",
        errno.EROFS: "mount it for writing, or choose another place",
        errno.EMFILE: "too many open files: raise `ulimit -n`",
        errno.ENFILE: "too many open files on this machine",
    }
    return hints.get(error.errno or 0, "")


class ConfigError(NecrocodeError):
    """Something the user wrote cannot be used; `where` is the file, line or option."""

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.where = where


class Refused(NecrocodeError):
    """A claim or a slot was not granted. `reason` is limit, quota, duplicate, waiting, queue, unreadable or the
    claim's kind."""

    def __init__(
        self,
        message: str,
        *,
        runner_id: str,
        reason: str,
        blockers: Sequence[Holder] = (),
        waited: float = 0.0,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.runner_id, self.reason, self.blockers, self.waited = runner_id, reason, tuple(blockers), waited


class ResourceConflictError(Refused, RuntimeError):
    """Somebody else holds, or waits ahead for, something that was asked for; `blockers` says who."""

    def __init__(
        self, runner_id: str, blockers: Sequence[Holder] = (), *, reason: str = "conflict", waited: float = 0.0
    ) -> None:
        held = "; ".join(str(blocker) for blocker in blockers) or "it is not free"
        after = f" after {waited:.1f} s" if waited else ""
        said = f"{runner_id} was refused{after} ({reason}): {held}"
        hint = "wait for the holder (wait=True, --wait) or ask for something else"
        if reason == "duplicate":
            whose = "".join(f" by {blocker.facts or blocker.runner_id}" for blocker in blockers)
            said = f"the name {runner_id} is taken{whose}"
            hint = f"use another name, or wait until that one has ended: necrocode wait {runner_id}"
        elif reason == "waiting":
            said = f"{runner_id} waits for more already: one wait for each lease at a time"
            hint = "claim all of it in one call, or let the first wait end"
        super().__init__(said, runner_id=runner_id, reason=reason, blockers=blockers, waited=waited, hint=hint)

    @property
    def conflicts(self) -> list[str]:
        return [str(blocker) for blocker in self.blockers]


class ResourceLimitError(Refused, RuntimeError):
    """All slots that this request may use are taken: `live` of `limit`."""

    def __init__(
        self,
        runner_id: str,
        live: int,
        limit: int,
        blockers: Sequence[Holder] = (),
        *,
        reason: str = "limit",
        waited: float = 0.0,
    ) -> None:
        after = f" after {waited:.1f} s" if waited else ""
        super().__init__(
            f"{runner_id} was refused{after} ({reason}): {live} of {limit} slots are taken",
            runner_id=runner_id, reason=reason, blockers=blockers, waited=waited,
            hint="wait for a slot (wait=True), end a runner, or raise the limit",
        )  # fmt: skip
        self.live, self.limit = live, limit


class LeaseLost(NecrocodeError):
    """This lease is no longer ours: fenced, released or never granted. Whatever it covered must not be written."""

    def __init__(self, runner_id: str, *, ours: int | None, found: int | None = None) -> None:
        now = "no lease" if found is None else f"token {found}"
        super().__init__(
            f"{runner_id}: the lease with token {ours} is gone (the ledger has {now})",
            hint="stop the work and register again; its claims may belong to somebody else by now",
        )
        self.runner_id, self.ours, self.found = runner_id, ours, found


class Deadlock(NecrocodeError):
    """Waiting would close a circle: each of `cycle` waits for the next, the last for the first."""

    def __init__(self, cycle: Sequence[str]) -> None:
        super().__init__(
            "waiting here would never end: " + " -> ".join(cycle),
            hint="drop a claim and try again, or claim everything at registration",
        )
        self.cycle = tuple(cycle)


class GateTimeout(NecrocodeError):
    """The gate of a state directory stayed shut; `holder` is what its lock file says about who is inside."""

    def __init__(self, path: str, seconds: float, holder: str) -> None:
        super().__init__(
            f"{path}: the gate did not open within {seconds:g} s; inside: {holder or 'unknown'}",
            hint="a stopped process may hold it: look at that pid, continue or end it",
        )
        self.path, self.seconds, self.holder = path, seconds, holder


class StateUnusable(NecrocodeError):
    """The state directory as a whole cannot be worked with (owner, rights, file system, version)."""

    def __init__(self, path: str, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"{path}: {reason}", hint=hint or "choose another directory with --state-dir or NECROCODE_STATE_DIR"
        )
        self.path, self.reason = path, reason


class StateUnreadable(NecrocodeError):
    """One file of the state cannot be read; it was kept, at `moved_to` when that is not empty."""

    def __init__(self, path: str, reason: str, moved_to: str = "") -> None:
        super().__init__(
            f"{path}: {reason}" + (f"; kept as {moved_to}" if moved_to else ""),
            hint="`necrocode doctor` shows the state directory's health",
        )
        self.path, self.reason, self.moved_to = path, reason, moved_to


class TaskFailed(NecrocodeError):
    """An attempt at a task ended without its result."""

    def __init__(self, message: str, *, task_id: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.task_id = task_id


class PlaybookExecutionError(TaskFailed):
    """A step of a playbook failed: which, and with what exit code (None when it never started)."""

    def __init__(self, message: str, *, step: str = "", returncode: int | None = None, task_id: str = "") -> None:
        super().__init__(message, task_id=task_id)
        self.step, self.returncode = step, returncode


class TaskTimeoutError(TaskFailed, TimeoutError):
    """A clock ran out after `elapsed` of `timeout` seconds; `partial_traces` is what was there by then."""

    def __init__(
        self, elapsed: float = 0.0, timeout: float = 0.0, partial_traces: Any = None, *, task_id: str = ""
    ) -> None:
        super().__init__(
            f"timed out after {elapsed:.1f} s (limit {timeout:g} s)",
            task_id=task_id,
            hint="raise the timeout or split the task",
        )
        self.elapsed, self.timeout, self.partial_traces = elapsed, timeout, partial_traces


class WorkspaceKept(NecrocodeError):
    """A workspace was not removed, because `reason`; nothing in it was touched."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path} was kept: {reason}", hint="look at it, then `necrocode gc --force` or git worktree remove"
        )
        self.path, self.reason = path, reason


class LandingConflict(NecrocodeError):
    """`branch` and `base` changed the same places; nothing was moved."""

    def __init__(self, base: str, branch: str, paths: Sequence[str]) -> None:
        theirs, ours = (name.replace("refs/heads/", "") for name in (base, branch))
        super().__init__(
            f"{ours} and {theirs} are in conflict: both changed {', '.join(paths)}",
            hint="merge them by hand, or let one come after the other, so that it builds on it",
        )
        self.base, self.branch, self.paths = base, branch, tuple(paths)


class GitFailed(NecrocodeError):
    """git ended with `returncode`; `stderr` is its own explanation."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str, *, hint: str = "") -> None:
        said = stderr.strip().splitlines() or ["no message"]
        # The first complaint has the cause, the last one what it came to.
        first = next((line for line in said if line.startswith(("error: ", "fatal: "))), said[-1])
        why = "; ".join(dict.fromkeys((first, said[-1])))
        super().__init__(f"{' '.join(argv)} ended with {returncode}: {why}", hint=hint)
        self.argv, self.returncode, self.stderr = tuple(argv), returncode, stderr
