"""One attempt as it is ordered, and what comes back: the two files of its folder, task.json and result.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import workspace
from necrocode.claim import Claim
from necrocode.errors import StateUnusable
from necrocode.outcome import Outcome
from necrocode.statedir import put, read_json, sync_folder, to_json
from necrocode.task import Argv, Task


class Order(NamedTuple):
    """One attempt as it is ordered. Whoever has this can carry it: nothing else is shared.

    `repository` and `path` are directories ("" for no repository); `base` is any revision; `claims` are wanted on
    top of the workspace and the branch; `patience` is how many seconds to wait for what strangers hold (None: for
    ever), when `wait` is set; `folder` is where logs and the result go."""

    run_id: str
    task: Task
    attempt: int
    folder: str
    path: str
    repository: str = ""
    branch: str = ""
    base: str = "HEAD"
    mode: workspace.Mode = "worktree"
    claims: tuple[Claim, ...] = ()
    agent: Argv = ()
    setup: tuple[Argv, ...] = ()
    wait: bool = True
    patience: float | None = None
    limit: int | None = None
    heartbeat_timeout: float = 300.0
    heartbeat_interval: float = 5.0
    grace: float = 10.0
    keep_workspace: bool = False

    @property
    def runner_id(self) -> str:
        return ".".join(part for part in (self.run_id, self.task.id, str(self.attempt)) if part)

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "task": self.task.to_dict(), "claims": [list(claim) for claim in self.claims]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Order:
        """The reverse; unknown keys are ignored. Raises KeyError or TypeError for what is no order."""
        known = {key: value for key, value in data.items() if key in cls._fields}
        known["task"] = Task.from_dict(data["task"])
        known["claims"] = tuple(Claim(*claim) for claim in data.get("claims", ()))
        known["agent"] = tuple(data.get("agent", ()))
        known["setup"] = tuple(map(tuple, data.get("setup", ())))
        return cls(**known)


def write_result(folder: Path, outcome: Outcome) -> None:
    """The result of an attempt, on the disk before this returns; the first one written is the one that counts."""
    draft = folder / f"result.{os.getpid()}.{os.urandom(3).hex()}.tmp"
    try:
        put(draft, to_json(outcome.to_dict()), durable=True)
        with suppress(FileExistsError):
            os.link(draft, folder / "result.json")
        sync_folder(folder)
    except OSError as error:
        raise StateUnusable(str(folder / "result.json"), error.strerror or str(error)) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def read_result(folder: Path) -> Outcome | None:
    """The outcome of an attempt, None while there is none. Raises StateUnreadable."""
    try:
        return Outcome.from_dict(read_json(folder / "result.json"))
    except FileNotFoundError:
        return None
