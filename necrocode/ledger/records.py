"""Records: immutable JSON files whose names carry what the listing must tell. The listing is the truth.

`runners/<id>.<token>.<revision>.json` and `fenced/` alike; `queue/<c|r>-<49-priority>-<ticket>.<id>.json`.
A Book is one process's copy: names it has parsed already are not read again, since no record is ever changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import process
from necrocode.admission import Standing, View, Waiter, Wish
from necrocode.errors import StateUnreadable
from necrocode.lease import SCHEMA, Request, RunnerInstance
from necrocode.statedir import StateDir, read, read_json

_BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


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
        if suffix != ".json" or not runner_id:
            raise ValueError(f"{name!r} is no record's name")
        return cls(runner_id, int(token), int(revision))


class QueueName(NamedTuple):
    """What the name of a file in queue/ says."""

    adding: bool
    priority: int
    ticket: int
    runner_id: str

    def __str__(self) -> str:
        return f"{'c' if self.adding else 'r'}-{49 - self.priority:02d}-{self.ticket:018d}.{self.runner_id}.json"

    @classmethod
    def parse(cls, name: str) -> QueueName:
        stem, suffix = os.path.splitext(name)
        key, _, runner_id = stem.partition(".")
        kind, priority, ticket = key.split("-")
        if suffix != ".json" or not runner_id or kind not in ("c", "r"):
            raise ValueError(f"{name!r} is no waiter's name")
        return cls(kind == "c", 49 - int(priority), int(ticket), runner_id)

    @classmethod
    def of(cls, waiter: Waiter) -> QueueName:
        return cls(waiter.adding, waiter.priority, waiter.ticket, waiter.runner_id)


def parse_record(data: bytes) -> RunnerInstance:
    """Raises ValueError, KeyError or TypeError for what is no record, and for one of a newer schema."""
    value = json.loads(data)
    if int(value["schema"]) > SCHEMA:
        raise ValueError(f"schema {value['schema']} is newer than {SCHEMA}")
    return RunnerInstance.from_dict(value)


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
    return Wish(record.claims, record.limit, record.spec_name, record.holder.user if record.holder else "", record.slot)


class Book:
    """The view of one state directory, kept in step with its listings. Only used inside the gate."""

    def __init__(self, state: StateDir, is_held: Callable[[str], bool]) -> None:
        self._state, self._is_held = state, is_held
        self.view = View()
        self.forget()
        self._terms: tuple[int, int, int] | None = None

    def forget(self) -> None:
        """Trust nothing that was read before: the next sync reads everything."""
        self.view = View(self.view.limit, self.view.quotas)
        self._leases: dict[str, dict[str, LeaseName]] = {"runners": {}, "fenced": {}}
        self._queue: dict[str, Waiter] = {}
        self.quarantined: list[dict[str, str]] = []

    def sync(self) -> None:
        self._sync_terms()
        self._sync_leases("runners")
        self._sync_leases("fenced")
        self._sync_queue()

    def _sync_terms(self) -> None:
        path = self._state.root / "config.json"
        try:
            found = os.stat(path)
        except FileNotFoundError:
            self.view.limit, self.view.quotas = None, {}
            return
        terms = (found.st_ino, found.st_size, found.st_mtime_ns)
        if terms != self._terms:
            self.view.limit, self.view.quotas = read_terms(path)
            self._terms = terms

    def _sync_leases(self, folder: str) -> None:
        known, names = self._leases[folder], os.listdir(self._state.root / folder)
        if len(names) == len(known) and all(name in known for name in names):
            return
        present = set(names)
        for name in [name for name in known if name not in present]:
            self._forget_lease(folder, name)
        for name in present - known.keys():
            self._learn_lease(folder, name)

    def _forget_lease(self, folder: str, file_name: str) -> None:
        name = self._leases[folder].pop(file_name)
        standing = self.view.standing.get(name.runner_id)
        if standing and (standing.token, standing.revision, standing.fenced) == (
            name.token,
            name.revision,
            folder == "fenced",
        ):
            self.view.leave(name.runner_id)

    def _learn_lease(self, folder: str, file_name: str) -> None:
        path = self._state.root / folder / file_name
        try:
            name = LeaseName.parse(file_name)
        except ValueError as error:
            return self._set_aside(path, error)
        standing = self._read_standing(path, name, fenced=folder == "fenced")
        if standing:
            self._leases[folder][file_name] = name
            self._enter(folder, name, standing)

    def _read_standing(self, path: Path, name: LeaseName, *, fenced: bool) -> Standing | None:
        try:
            return standing_of(name, parse_record(read(path)), fenced=fenced)
        except FileNotFoundError:
            return None
        except _BROKEN as error:
            if self._is_held(name.runner_id):
                # Its owner lives, so it holds what nobody can read any more: everything, until it is proven dead.
                return Standing(name.runner_id, (), name.token, name.revision, fenced=fenced, unreadable=True)
            self._set_aside(path, error)
            return None

    def _enter(self, folder: str, name: LeaseName, standing: Standing) -> None:
        """Two revisions of one lease are left when a writer died between its two steps: the higher one counts."""
        other = self.view.standing.get(name.runner_id)
        if (
            other
            and folder == "runners"
            and not other.fenced
            and (other.token, other.revision) > (name.token, name.revision)
        ):
            return self._unlink_lease(name)
        self.view.stand(standing)
        if other and folder == "runners" and not other.fenced:
            self._unlink_lease(LeaseName(other.runner_id, other.token, other.revision))

    def _unlink_lease(self, name: LeaseName) -> None:
        self._leases["runners"].pop(str(name), None)
        with suppress(FileNotFoundError):
            os.unlink(self._state.runners / str(name))

    def _sync_queue(self) -> None:
        known, names = self._queue, os.listdir(self._state.queue)
        if len(names) == len(known) and all(name in known for name in names):
            return
        present = set(names)
        for name in [name for name in known if name not in present]:
            self.view.waiting.pop(known.pop(name).key, None)
        for name in sorted(present - known.keys()):
            self._learn_waiter(name)

    def _learn_waiter(self, file_name: str) -> None:
        path = self._state.queue / file_name
        try:
            name = QueueName.parse(file_name)
        except ValueError as error:
            return self._set_aside(path, error)
        waiter = Waiter(
            name.runner_id, name.ticket, name.priority, adding=name.adding, read=lambda: self._read_wish(path)
        )
        self.add_waiter(waiter)
        return None

    def _read_wish(self, path: Path) -> Wish:
        try:
            return wish_of(parse_record(read(path)))
        except FileNotFoundError:
            return Wish()
        except _BROKEN as error:
            self._set_aside(path, error)
            return Wish(slot=False)

    def _set_aside(self, path: Path, error: Exception) -> None:
        moved_to = self._state.quarantine(path)
        self.quarantined.append({"file": str(path), "reason": str(error), "moved_to": moved_to})

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


def read_terms(path: Path) -> tuple[int | None, dict[str, int]]:
    """The host's limit and quotas. Raises StateUnreadable for a config.json that is not one."""
    try:
        value: Any = read_json(path)
    except FileNotFoundError:
        return None, {}
    limit: Any = value.get("limit") if isinstance(value, dict) else "?"
    quotas: Any = value.get("quotas", {}) if isinstance(value, dict) else {}
    counts = [*quotas.values(), *([] if limit is None else [limit])] if isinstance(quotas, dict) else ["?"]
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 1 for count in counts):
        wanted = '{"limit": null or a number from 1, "quotas": {"spec:NAME": number, ...}}'
        raise StateUnreadable(str(path), f"must be {wanted}")
    return limit, quotas
