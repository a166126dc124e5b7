"""The book: one process's copy of what the listings say, kept in step by the ring. Names it has parsed already are not
read again, since no record is ever changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from necrocode.admission import Standing, View, Waiter, Wish
from necrocode.errors import StateUnreadable
from necrocode.ledger.records import Damaged, LeaseName, QueueName, read_record, standing_of, wish_of
from necrocode.ledger.ring import FOLDERS, Ring
from necrocode.ledger.terms import read_terms
from necrocode.statedir import StateDir


class Book:
    """The view of one state directory. Only used inside the gate.

    `trouble` is why the host's terms cannot be read (None when they can): then nobody is admitted, since nobody
    knows to how many, and everything else works."""

    def __init__(self, state: StateDir, ring: Ring, is_held: Callable[[str], bool]) -> None:
        self._state, self._ring, self._is_held = state, ring, is_held
        self._root = str(state.root)
        self._config = f"{self._root}/config.json"
        self._reads = self._read_wish  # one for all: a line may be thousands long, in each of thousands of processes
        self.view = View()
        self.trouble: StateUnreadable | None = None
        self.quarantined: list[dict[str, str]] = []
        self.forget()

    def forget(self) -> None:
        """Trust nothing that was read before: the next sync reads everything."""
        self.view = View()
        self._ring.forget()
        self._leases: dict[str, dict[str, LeaseName]] = {"runners": {}, "fenced": {}}
        self._queue: dict[str, Waiter] = {}
        self._terms: tuple[int, int, int] | None = None

    def sync(self) -> bool:
        """Read what is new; True when somebody may be admitted for it: by other terms of the host, because a record
        can be read that could not be, because one was set aside, or because the folders were changed from outside."""
        changed = self.sync_terms()
        changed |= sum(map(self._read_again, sorted(self.view.unreadable))) > 0
        self._catch_up()
        return changed or self._ring.is_new or bool(self.quarantined)

    def _catch_up(self) -> None:
        news = self._ring.news()
        if news is None:
            self._list()
            return
        for folder, names in news.items():
            known = self._names(folder)
            gone = [name for name, here in names.items() if not here and name in known]
            self._update(folder, gone, [name for name, here in names.items() if here and name not in known])
        if self._ring.is_due():
            self._compare()

    def _read_again(self, runner_id: str) -> bool:
        """Whether this live holder's record has become a record: its rights may have been mended."""
        standing = self.view.standing[runner_id]
        name, folder = LeaseName(*standing.name), "fenced" if standing.fenced else "runners"
        try:
            record = read_record(f"{self._root}/{folder}/{name}")
        except (FileNotFoundError, Damaged):
            return False
        self.view.stand(standing_of(name, record, fenced=standing.fenced))
        return True

    def _compare(self) -> None:
        """Whether the listings agree with the ring; nobody may believe it any more if they do not."""
        if self._list():
            self._ring.begin()
            self._list()
        else:
            self._ring.compared()

    def _list(self) -> bool:
        """Read the folders; True when one of them was not as we knew it."""
        differs = False
        for folder in FOLDERS:
            known, present = self._names(folder).keys(), set(os.listdir(f"{self._root}/{folder}"))
            if known != present:
                self._update(folder, known - present, present - known)
                differs = True
        return differs

    def _names(self, folder: str) -> Mapping[str, object]:
        return self._queue if folder == "queue" else self._leases[folder]

    def _update(self, folder: str, gone: Iterable[str], new: Iterable[str]) -> None:
        for name in gone:
            if folder == "queue":
                self.view.waiting.pop(self._queue.pop(name).key, None)
            else:
                self._forget_lease(folder, name)
        for name in sorted(new):
            if folder == "queue":
                self._learn_waiter(name)
            else:
                self._learn_lease(folder, name)

    def sync_terms(self) -> bool:
        """Read the host's terms; True when they are others than before."""
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

    def _forget_lease(self, folder: str, file_name: str) -> None:
        name = self._leases[folder].pop(file_name)
        standing = self.view.standing.get(name.runner_id)
        if standing and (standing.name, standing.fenced) == (name, folder == "fenced"):
            self.view.leave(name.runner_id)

    def _learn_lease(self, folder: str, file_name: str) -> None:
        place = f"{folder}/{file_name}"
        try:
            name = LeaseName.parse(file_name)
            record = read_record(f"{self._root}/{place}")
        except FileNotFoundError:
            pass
        except ValueError as error:
            self.set_aside(place, str(error))
        except Damaged as error:
            if not self._is_held(name.runner_id):
                self.set_aside(place, str(error))
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
        if other and other.token != name.token and other.unreadable != standing.unreadable:
            # Nobody has two leases: what cannot be read is no reason to doubt what can.
            kept, doubted = (other, standing) if standing.unreadable else (standing, other)
            self.view.stand(kept)
            self._doubt("fenced" if doubted.fenced else "runners", LeaseName(*doubted.name))
        elif other is None or other.fenced != standing.fenced:
            self.view.stand(standing)
        elif other.name[1:] > name[1:]:
            self._unlink_lease(folder, name)
        else:
            self.view.stand(standing)
            self._unlink_lease(folder, LeaseName(*other.name))

    def _doubt(self, folder: str, name: LeaseName) -> None:
        self.set_aside(f"{folder}/{name}", "cannot be read, and its runner has another lease")
        self.drop_lease(folder, name)

    def _unlink_lease(self, folder: str, name: LeaseName) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._root}/{folder}/{name}")
        self.drop_lease(folder, name)

    def _learn_waiter(self, file_name: str) -> None:
        try:
            name = QueueName.parse(file_name)
        except ValueError as error:
            return self.set_aside(f"queue/{file_name}", str(error))
        return self._line_up(file_name, name.waiter(self._reads))

    def _read_wish(self, waiter: Waiter) -> Wish:
        """A wish that nobody can read is for nothing; its waiter finds its entry gone, and asks again."""
        place = f"queue/{QueueName.of(waiter)}"
        try:
            return wish_of(read_record(f"{self._root}/{place}"))
        except FileNotFoundError:
            return Wish()
        except Damaged as error:
            self.set_aside(place, str(error))
            return Wish()

    def set_aside(self, place: str, reason: str) -> None:
        """Into quarantine with it (named from the state directory on), and remember to tell."""
        path = self._state.root / place
        moved_to = self._state.quarantine(path)
        if "/" in place:
            self._ring.note(place, False)
        if moved_to:
            self.quarantined.append({"file": str(path), "reason": reason, "moved_to": moved_to})

    def take_quarantined(self) -> list[dict[str, str]]:
        """What was set aside since this was last asked."""
        taken, self.quarantined = self.quarantined, []
        return taken

    # ---- moves: the disk first, then the view; whoever comes next reads of them in the ring

    def add_lease(self, folder: str, name: LeaseName, standing: Standing) -> None:
        file_name = str(name)
        self._leases[folder][file_name] = name
        self._ring.note(f"{folder}/{file_name}", True)
        self.view.stand(standing)

    def drop_lease(self, folder: str, name: LeaseName) -> None:
        file_name = str(name)
        self._leases[folder].pop(file_name, None)
        self._ring.note(f"{folder}/{file_name}", False)

    def add_waiter(self, waiter: Waiter) -> None:
        file_name = str(QueueName.of(waiter))
        self._ring.note(f"queue/{file_name}", True)
        self._line_up(file_name, waiter)

    def _line_up(self, file_name: str, waiter: Waiter) -> None:
        self._queue[file_name] = waiter
        self.view.waiting[waiter.key] = waiter

    def drop_waiter(self, waiter: Waiter) -> None:
        file_name = str(QueueName.of(waiter))
        self._queue.pop(file_name, None)
        self.view.waiting.pop(waiter.key, None)
        self._ring.note(f"queue/{file_name}", False)
