"""Records: immutable JSON files whose names carry what the listing must tell. The listing is the truth.

`runners/<id>.<token>.<revision>.json` and `fenced/` alike; `queue/<c|r>-<49-priority>-<ticket>-<slot>.<id>.json`,
where c waits for more claims and r to be registered, and <slot> is `none` (needs none), `any`, or the waiter's own
limit: what a hand-over must know of those it passes, so that it need not read their records.
A Book is one process's copy: names it has parsed already are not read again, since no record is ever changed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from necrocode import process
from necrocode.admission import Standing, View, Waiter, Wish
from necrocode.errors import ConfigError, StateUnreadable
from necrocode.lease import PRIORITIES, SCHEMA, Request, RunnerInstance
from necrocode.ledger.terms import read_terms
from necrocode.statedir import StateDir, read

_BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, ConfigError)
"""What parsing raises for a file that is no record."""
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
        stem, suffix = os.path.splitext(name)
        key, _, runner_id = stem.partition(".")
        kind, priority, ticket, slot = key.split("-")
        limit = None if slot in ("none", "any") else int(slot)
        parsed = cls(kind == "c", 49 - int(priority), int(ticket), slot != "none", limit, runner_id)
        if suffix != ".json" or not runner_id or parsed.priority not in PRIORITIES or str(parsed) != name:
            raise ValueError(f"{name!r} is no waiter's name")
        return parsed

    @classmethod
    def of(cls, waiter: Waiter) -> QueueName:
        return cls(
            waiter.adding, waiter.priority, waiter.ticket, waiter.needs_slot, waiter.limit, waiter.runner_id
        )  # fmt: skip

    def waiter(self, read: Callable[[], Wish]) -> Waiter:
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
        holder=process.identity(), details=request.details,
    )  # fmt: skip
    return record.with_claims(tuple(dict.fromkeys(request.claims)))


def wish_of(record: RunnerInstance) -> Wish:
    user = record.holder.user if record.holder else ""
    return Wish(record.claims, record.spec_name, user, record.heartbeat_timeout)


class Book:
    """The view of one state directory, kept in step with its listings. Only used inside the gate.

    `trouble` is why the host's terms cannot be read (None when they can): then nobody is admitted, since nobody
    knows to how many, and everything else works."""

    def __init__(self, state: StateDir, is_held: Callable[[str], bool]) -> None:
        self._state, self._is_held = state, is_held
        self._root = str(state.root)
        self._config, self._line = f"{self._root}/config.json", f"{self._root}/queue"
        self._folders = {folder: f"{self._root}/{folder}" for folder in ("runners", "fenced")}
        self.view = View()
        self.trouble: StateUnreadable | None = None
        self.quarantined: list[dict[str, str]] = []
        self.forget()

    def forget(self) -> None:
        """Trust nothing that was read before: the next sync reads everything."""
        self.view = View()
        self._leases: dict[str, dict[str, LeaseName]] = {"runners": {}, "fenced": {}}
        self._queue: dict[str, Waiter] = {}
        self._terms: tuple[int, int, int] | None = None

    def sync(self) -> bool:
        """Read what is new; True when the host's terms are."""
        changed = self._sync_terms()
        self._sync_leases("runners")
        self._sync_leases("fenced")
        self._sync_queue()
        return changed

    def _sync_terms(self) -> bool:
        try:
            found = os.stat(self._config)
            terms = (found.st_ino, found.st_size, found.st_mtime_ns)
        except FileNotFoundError:
            terms = (0, 0, 0)
        if terms == self._terms:
            return False
        try:
            self.view.limit, self.view.quotas = read_terms(Path(self._config))
            self.trouble, self._terms = None, terms
        except StateUnreadable as error:
            self.trouble, self._terms = error, terms
            self.view.limit = 0
        return True

    def _sync_leases(self, folder: str) -> None:
        known, present = self._leases[folder], set(os.listdir(self._folders[folder]))
        if known.keys() == present:
            return
        for name in [name for name in known if name not in present]:
            self._forget_lease(folder, name)
        for name in sorted(present - known.keys()):
            self._learn_lease(folder, name)

    def _forget_lease(self, folder: str, file_name: str) -> None:
        name = self._leases[folder].pop(file_name)
        standing = self.view.standing.get(name.runner_id)
        if standing and (standing.name, standing.fenced) == (name, folder == "fenced"):
            self.view.leave(name.runner_id)

    def _learn_lease(self, folder: str, file_name: str) -> None:
        path = f"{self._root}/{folder}/{file_name}"
        try:
            name = LeaseName.parse(file_name)
            record = read_record(path)
        except FileNotFoundError:
            pass
        except ValueError as error:
            self.set_aside(path, str(error))
        except Damaged as error:
            if not self._is_held(name.runner_id):
                self.set_aside(path, str(error))
                return
            # Its owner lives, so it holds what nobody can read any more: everything, until it is proven dead.
            unknown = Standing(name.runner_id, (), *name[1:], fenced=folder == "fenced", unreadable=True)
            self._enter(folder, name, unknown)
        else:
            self._enter(folder, name, standing_of(name, record, fenced=folder == "fenced"))

    def _enter(self, folder: str, name: LeaseName, standing: Standing) -> None:
        """Two revisions of one lease are left when a writer died between its two steps: the higher one counts."""
        self._leases[folder][str(name)] = name
        other = self.view.standing.get(name.runner_id)
        if other is None or other.fenced != standing.fenced:
            self.view.stand(standing)
        elif other.name[1:] > name[1:]:
            self._unlink_lease(folder, name)
        else:
            self.view.stand(standing)
            self._unlink_lease(folder, LeaseName(*other.name))

    def _unlink_lease(self, folder: str, name: LeaseName) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._root}/{folder}/{name}")
        self._leases[folder].pop(str(name), None)

    def _sync_queue(self) -> None:
        known, present = self._queue, set(os.listdir(self._line))
        if known.keys() == present:
            return
        for name in [name for name in known if name not in present]:
            self.view.waiting.pop(known.pop(name).key, None)
        for name in sorted(present - known.keys()):
            self._learn_waiter(name)

    def _learn_waiter(self, file_name: str) -> None:
        path = f"{self._root}/queue/{file_name}"
        try:
            name = QueueName.parse(file_name)
        except ValueError as error:
            return self.set_aside(path, str(error))
        return self.add_waiter(name.waiter(lambda: self._read_wish(path)))

    def _read_wish(self, path: str) -> Wish:
        """A wish that nobody can read is for nothing; its waiter finds its entry gone, and asks again."""
        try:
            return wish_of(read_record(path))
        except FileNotFoundError:
            return Wish()
        except Damaged as error:
            self.set_aside(path, str(error))
            return Wish()

    def set_aside(self, path: str | os.PathLike[str], reason: str) -> None:
        """Into quarantine with it, and remember to tell."""
        moved_to = self._state.quarantine(Path(path))
        if moved_to:
            self.quarantined.append({"file": str(path), "reason": reason, "moved_to": moved_to})

    def take_quarantined(self) -> list[dict[str, str]]:
        """What was set aside since this was last asked."""
        taken, self.quarantined = self.quarantined, []
        return taken

    # ---- moves: the disk first, then the view

    def add_lease(self, folder: str, name: LeaseName, standing: Standing) -> None:
        self._leases[folder][str(name)] = name
        self.view.stand(standing)

    def drop_lease(self, folder: str, name: LeaseName) -> None:
        self._leases[folder].pop(str(name), None)

    def add_waiter(self, waiter: Waiter) -> None:
        self._queue[str(QueueName.of(waiter))] = waiter
        self.view.waiting[waiter.key] = waiter

    def drop_waiter(self, waiter: Waiter) -> None:
        self._queue.pop(str(QueueName.of(waiter)), None)
        self.view.waiting.pop(waiter.key, None)
