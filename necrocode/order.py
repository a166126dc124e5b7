"""One attempt as it is ordered, who carries it, and what comes back: task.json, runner.json and result.json."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import journal, process, workspace
from necrocode.claim import Claim
from necrocode.errors import StateUnreadable
from necrocode.lease import Identity
from necrocode.ledger import lifeline
from necrocode.outcome import Outcome, Status
from necrocode.statedir import StateDir, put, read_json, sync, to_json, told
from necrocode.task import Argv, Task


class Order(NamedTuple):
    """One attempt as it is ordered. Whoever has this can carry it: nothing else is shared.

    `repository` and `path` are directories ("" for no repository); `base` is any revision; `join` is one that a branch
    which is there already is to have too, or ""; `claims` are wanted on
    top of the workspace and the branch; `patience` is how many seconds to wait for what strangers hold (None: for
    ever), when `wait` is set; `folder` is where logs and the result go;
    `result_mark` is a text in the line of output with which the agent tells its result ("" when it tells none);
    `alone` says that the process that carries this does nothing else meanwhile, so every orphan is this attempt's."""

    run_id: str
    task: Task
    attempt: int
    folder: str
    path: str
    repository: str = ""
    branch: str = ""
    base: str = "HEAD"
    join: str = ""
    mode: workspace.Mode = "worktree"
    claims: tuple[Claim, ...] = ()
    agent: Argv = ()
    result_mark: str = ""
    setup: tuple[Argv, ...] = ()
    wait: bool = True
    patience: float | None = None
    limit: int | None = None
    heartbeat_timeout: float = 300.0
    heartbeat_interval: float = 5.0
    grace: float = 10.0
    keep_workspace: bool = False
    alone: bool = False

    @property
    def runner_id(self) -> str:
        return ".".join(part for part in (self.run_id, self.task.id, str(self.attempt)) if part)

    def to_dict(self) -> dict[str, Any]:
        """What was ordered, without what is as it would be anyway."""
        task = _said(self.task.to_dict(), Task._field_defaults)
        facts = {"task": task, "claims": [list(claim) for claim in self.claims]}
        return _said({**self._asdict(), **facts}, self._field_defaults)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Order:
        """The reverse; unknown keys are ignored. Raises KeyError or TypeError for what is no order."""
        known = {key: value for key, value in data.items() if key in cls._fields}
        known["task"] = Task.from_dict(data["task"])
        known["claims"] = tuple(Claim(*claim) for claim in data.get("claims", ()))
        known["agent"] = tuple(data.get("agent", ()))
        known["setup"] = tuple(map(tuple, data.get("setup", ())))
        return cls(**known)


def _said(facts: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    unsaid = object()
    return {
        key: value
        for key, value in facts.items()
        if (default := defaults.get(key, unsaid)) is unsaid or (value != default and (default != () or value != []))
    }


_card: tuple[int, Path] | None = None
"""This process's number, and where it has put itself down before."""


def take(folder: Path) -> bool:
    """Put this process down as the one that carries the attempt; False when another did before. Whoever gives up
    an attempt that nobody has begun takes it first, so that it is either begun or given up, never both.

    Raises StateUnusable."""
    global _card
    path = folder / "runner.json"
    with told(path):
        if _card and _card[0] == os.getpid():
            try:
                os.link(_card[1], path)  # it says the same each time
                return True
            except FileExistsError:
                return False
            except OSError:
                _card = None  # that one is gone, elsewhere, or has as many names as it may
        # On the disk, once for each process: after a power cut there is a whole one or none, never an empty one.
        if not _put_first(path, to_json(process.identity()._asdict()), durable=True):
            return False
        _card = os.getpid(), path
        return True


def taken_by(folder: Path) -> Identity | None:
    """Who carries or carried the attempt; None while nobody does. Raises StateUnreadable."""
    path = folder / "runner.json"
    try:
        return Identity.from_dict(read_json(path))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise StateUnreadable(str(path), f"names no process ({error!r})") from error


def was_begun(state: StateDir, task_id: str, folder: Path) -> bool:
    """Whether a runner took an attempt that has no result. When none did, none ever will: it is given up here. Of one
    that lives there may be no other sign than its lifeline, of one that died no other than what it wrote."""
    lives = lifeline.is_held(state.live / f"{folder.parent.name}.{folder.name}")
    if lives or any(name.endswith(".log") for name in os.listdir(folder)) or not take(folder):
        return True
    why = "its launcher died before it began"
    write_result(folder, unheard(task_id, folder, Status.CANCELLED, why, "not_begun"))
    return False


def _put_first(path: Path, data: bytes, *, durable: bool = False) -> bool:
    """Write the file whole unless it is there already; whether it was ours that came to stand."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(3).hex()}.tmp")
    try:
        put(draft, data, durable=durable)
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)
    return True


def write_result(folder: Path, outcome: Outcome) -> None:
    """The result of an attempt, on the disk before this returns; the first one written is the one that counts."""
    path = folder / "result.json"
    with told(path):
        if not path.exists() and _put_first(path, to_json(outcome.to_dict()), durable=True):
            sync(folder)


def unheard(task_id: str, folder: Path, status: Status, error: str, kind: str) -> Outcome:
    """The outcome of an attempt of which no runner tells."""
    now, number = time.time(), int(folder.name.rpartition(".")[2])
    return Outcome(task_id, status, number, error, kind, started=now, ended=now)


def lost(why: str, times: int, most: int) -> tuple[Status, str, str]:
    """How an attempt ended whose runner died, the task's runners so often in all: the last time it has failed."""
    if times < most:
        return Status.LOST, why, "lost"
    return Status.FAILED, f"{why} {times} times: not tried again", "lost"


def read_result(folder: Path) -> Outcome | None:
    """The outcome of an attempt, None while there is none. Raises StateUnreadable."""
    path = folder / "result.json"
    try:
        return Outcome.from_dict(read_json(path))
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateUnreadable(str(path), f"is no result ({error!r})") from error


def put_aside(state: StateDir, run_id: str, error: StateUnreadable) -> None:
    """Move a file of a run that cannot be read to quarantine, and tell it, unless somebody else just did.

    Raises the error itself when it says nothing of the file: this process, or the machine, is short of something."""
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
    with told(error.path):
        moved = state.quarantine(Path(error.path))
    if moved:
        facts = {"file": error.path, "reason": str(error), "moved_to": moved}
        journal.append(state.events, [journal.make("record.quarantined", run_id=run_id, **facts)])
