"""Records: immutable JSON files whose names carry what the listing must tell. The listing is the truth.

`runners/<id>.<token>.<revision>.json` and `fenced/` alike; `queue/<c|r>-<49-priority>-<ticket>-<slot>.<id>.json`,
where c waits for more claims and r to be registered, and <slot> is `none` (needs none), `any`, or the waiter's own
limit: what a hand-over must know of those it passes, so that it need not read their records.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from necrocode import process
from necrocode.admission import Standing, Waiter, Wish
from necrocode.errors import ConfigError
from necrocode.lease import PRIORITIES, SCHEMA, Request, RunnerInstance
from necrocode.statedir import read

_BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, ConfigError)
"""What parsing raises for a file that is no record."""
_QUEUED = re.compile(r"([cr])-(\d\d)-(\d{18}|[1-9]\d{18,})-(none|any|[1-9]\d*)\.(.+)\.json", re.ASCII | re.DOTALL)
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM)
"""What reading says of something that will never be a record: a link, a folder, a socket, not ours to read. Other
errors (a failing disk, too many open files) may pass, so they are told and prove nothing about the file."""


class LeaseName(NamedTuple):
    """What the name of a file in runners/ or fenced/ says."""

    runner_id: str
    token: int
    revision: int

    def __str__(self) -> str:
        return f"{self.runner_id}.{self.token}.{self.revision}.json"

    @classmethod
    def parse(cls, name: str) -> LeaseName:
        stem, suffix = os.path.splitext(name)
        runner_id, token, revision = stem.rsplit(".", 2)
        parsed = cls(runner_id, int(token), int(revision))
        if suffix != ".json" or not runner_id or min(parsed[1:]) < 0 or str(parsed) != name:
            raise ValueError(f"{name!r} is no record's name")
        return parsed


class QueueName(NamedTuple):
    """What the name of a file in queue/ says."""

    adding: bool
    priority: int
    ticket: int
    slot: bool
    limit: int | None
    runner_id: str

    def __str__(self) -> str:
        kind, slot = "c" if self.adding else "r", "none" if not self.slot else self.limit or "any"
        return f"{kind}-{49 - self.priority:02d}-{self.ticket:018d}-{slot}.{self.runner_id}.json"

    @classmethod
    def parse(cls, name: str) -> QueueName:
        found = _QUEUED.fullmatch(name)  # a line may be thousands long, and whoever comes reads all of it
        if found is None or (priority := 49 - int(found[2])) not in PRIORITIES:
            raise ValueError(f"{name!r} is no waiter's name")
        kind, _, ticket, slot, runner_id = found.groups()
        limit = None if slot in ("none", "any") else int(slot)
        return cls(kind == "c", priority, int(ticket), slot != "none", limit, runner_id)

    @classmethod
    def of(cls, waiter: Waiter) -> QueueName:
        return cls(
            waiter.adding, waiter.priority, waiter.ticket, waiter.needs_slot, waiter.limit, waiter.runner_id
        )  # fmt: skip

    def waiter(self, read: Callable[[Waiter], Wish]) -> Waiter:
        """The waiter of this name; the rest of what it wants is read when it is first needed."""
        return Waiter(
            self.runner_id, self.ticket, self.priority,
            adding=self.adding, needs_slot=self.slot, limit=self.limit, read=read,
        )  # fmt: skip


def runner_of(folder: str, name: str) -> str:
    """Whose file of that folder this is, "" for a name that is none of ours."""
    try:
        return QueueName.parse(name).runner_id if folder == "queue" else LeaseName.parse(name).runner_id
    except ValueError:
        return ""


def parse_record(data: bytes) -> RunnerInstance:
    """Raises one of _BROKEN for what is no record, and for one of a newer schema."""
    value = json.loads(data)
    if int(value["schema"]) > SCHEMA:
        raise ValueError(f"schema {value['schema']} is newer than {SCHEMA}")
    record = RunnerInstance.from_dict(value)
    Request(
        record.runner_id, limit=record.limit, priority=record.priority, heartbeat_timeout=record.heartbeat_timeout
    ).checked()
    if record.holder and not isinstance(record.holder.pid, int):
        raise TypeError(f"{record.holder.pid!r} is no pid")
    return record


def read_record(path: str | os.PathLike[str]) -> RunnerInstance:
    """Raises FileNotFoundError, Damaged for what is no record, OSError for what may be one that cannot be read now."""
    try:
        return parse_record(read(path))
    except _BROKEN as error:
        raise Damaged(str(error)) from error
    except OSError as error:
        if error.errno in _NO_FILE:
            raise Damaged(error.strerror or "") from error
        raise


class Damaged(Exception):
    """This file is no record; inside this floor only: what is to be done about it differs from place to place."""


def standing_of(name: LeaseName, record: RunnerInstance, *, fenced: bool) -> Standing:
    user = record.holder.user if record.holder else ""
    return Standing(
        name.runner_id, record.claims, name.token, name.revision, record.spec_name, user,
        record.slot, fenced, timeout=record.heartbeat_timeout,
    )  # fmt: skip


def record_of(request: Request) -> RunnerInstance:
    """The record that a request of this process becomes."""
    now = datetime.now(UTC)
    record = RunnerInstance(
        runner_id=request.runner_id, task_id=request.task_id, spec_name=request.spec_name,
        workspace_path=request.workspace_path, start_time=now, last_heartbeat=now, limit=request.limit,
        priority=request.priority, heartbeat_timeout=request.heartbeat_timeout, slot=request.slot, tree=request.tree,
        holder=process.identity(), details=request.details, mono=time.monotonic(),
    )  # fmt: skip
    return record.with_claims(tuple(dict.fromkeys(request.claims)))


def is_orphaned(record: RunnerInstance | None) -> bool:
    """Whether who registered has provably ended. While what inherited its lifeline holds it all the same, the lease is
    theirs, until the last of them ends: nobody is left who could give signs of life."""
    return record is not None and record.tree and record.holder is not None and process.is_gone(record.holder)


def wish_of(record: RunnerInstance) -> Wish:
    user = record.holder.user if record.holder else ""
    return Wish(record.claims, record.spec_name, user, record.heartbeat_timeout)
