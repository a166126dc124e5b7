"""Where everything of a ledger on files lies, and the moves that change it: each is one rename or one unlink."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from necrocode import process
from necrocode.admission import Standing, Waiter
from necrocode.errors import LeaseLost
from necrocode.lease import Lease, Request, RunnerInstance
from necrocode.ledger import lifeline, waiting
from necrocode.ledger.book import Book
from necrocode.ledger.gate import Gate
from necrocode.ledger.operations import Operations
from necrocode.ledger.records import Damaged, LeaseName, QueueName, is_orphaned, read_record, record_of, standing_of
from necrocode.liveness import Observer, Seen
from necrocode.statedir import StateDir, move, put, to_json, told

LEASES: dict[tuple[str, str], Lease] = {}
"""Every lease of this process by (state directory's real path, runner id): leases belong to the process, not to an
object."""


class Placing(Operations):
    """The moves and looks of a store on files. What they need stands in the ledger that inherits them."""

    state: StateDir
    on_stale: str
    _root: str
    _real: str
    _book: Book
    _door: Gate
    _observer: Observer
    _places: dict[Lease, tuple[str, str]]
    _to_hide: list[str]
    _to_kill: deque[RunnerInstance]
    _watched: tuple[int, ...]

    # ---- a request's way in and out

    def _open(self, request: Request) -> Lease:
        with told(self._root):
            lease = Lease(record_of(request))
            lease.pid = os.getpid()
            lease.lifeline, life = lifeline.create(self.state, request.runner_id, tree=request.tree)
        self._places[lease] = (life, f"{life}.json")
        return lease

    def _prepare(self, lease: Lease, *, wait: bool) -> None:
        with told(self._root):
            put(self._places[lease][1], to_json(lease.record.to_dict()), mode=self.state.file_mode)
            if wait:
                lease.bell = waiting.make_bell(self._hidden_bell(lease), self.state.file_mode)

    def _show(self, lease: Lease) -> None:
        life, draft = self._places[lease]
        if life != self._life(lease.runner_id):
            os.rename(life, self._life(lease.runner_id))
            self._places[lease] = (self._life(lease.runner_id), draft)

    def _hide(self, lease: Lease) -> None:
        self._to_hide.append(self._life(lease.runner_id))

    def _bury(self, runner_id: str) -> None:
        self._unlink(self._life(runner_id), self._bell(runner_id))

    def _unlink(self, *paths: str) -> bool:
        """Whether all of them are gone."""
        gone = True
        for path in paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False  # a sweep will do it
        return gone

    def _owns(self, lease: Lease) -> bool:
        if lease.lifeline is None or lease.pid != os.getpid():
            return False
        return lifeline.is_ours(lease.lifeline, self._life(lease.runner_id))

    def _own(self, lease: Lease) -> int:
        if lease.lifeline is None or lease.pid != os.getpid():
            raise LeaseLost(lease.runner_id, ours=lease.token, found=None)
        return lease.lifeline

    def _close(self, lease: Lease) -> None:
        life, draft = self._places.pop(lease, ("", ""))
        descriptor, lease.lifeline = lease.lifeline, None
        if lease.pid != os.getpid():
            return  # a forked child's copy: the files are its parent's, and fork has closed what had to be closed
        if draft:
            self._unlink(draft)
        if life and life != self._life(lease.runner_id):
            self._unlink(life)
        if life:
            self._hush(lease)  # of a handle that has entered, the bell is for whoever waits for more to close
        key = (self._real, lease.runner_id)
        if LEASES.get(key) is lease:
            del LEASES[key]
        if descriptor is not None:
            lifeline.close(descriptor)

    # ---- moves

    def _admit(self, lease: Lease, token: int) -> None:
        self._rename_in(self._places[lease][1], LeaseName(lease.runner_id, token, 0), lease.record)
        lease.token, lease.revision = token, 0
        lease.record = lease.record._replace(token=token)

    def _enter(self, lease: Lease) -> None:
        self._places.pop(lease, None)
        self._hush(lease)  # admitted at once: nobody will ring
        LEASES[self._real, lease.runner_id] = lease

    def _rename_in(self, source: str, name: LeaseName, record: RunnerInstance) -> Standing:
        os.rename(source, f"{self._root}/runners/{name}")
        standing = standing_of(name, record, fenced=False)
        self._book.add_lease("runners", name, standing)
        return standing

    def _enqueue(self, lease: Lease, waiter: Waiter) -> None:
        if waiter.adding:
            lease.bell = waiting.make_bell(self._hidden_bell(lease), self.state.file_mode)
            draft = self._draft(lease.runner_id)
            put(draft, to_json(lease.record._replace(claims=waiter.wish.claims).to_dict()), mode=self.state.file_mode)
        else:
            draft = self._places[lease][1]
        if lease.bell is not None:
            os.rename(self._hidden_bell(lease), self._bell(lease.runner_id))
        self._watched = self._changes()
        move(draft, self._entry(waiter))
        self._book.add_waiter(waiter)

    def _draft(self, runner_id: str) -> str:
        return f"{self._root}/tmp/{runner_id}.{os.getpid()}.{os.urandom(3).hex()}.json"

    def _grant(self, waiter: Waiter, token: int) -> None:
        # From what is known of the wish: the record itself is read by whoever needs more of it.
        wish, name = waiter.wish, LeaseName(waiter.runner_id, token, 0)
        try:
            os.rename(self._entry(waiter), f"{self._root}/runners/{name}")
        except FileNotFoundError:
            return self._drop(waiter)  # set aside as damaged, or removed by hand
        self._book.drop_waiter(waiter)
        standing = Standing(
            name.runner_id, wish.claims, token, 0, wish.spec_name, wish.user, waiter.needs_slot, timeout=wish.timeout
        )
        self._book.add_lease("runners", name, standing)
        return None

    def _rewrite(self, standing: Standing, record: RunnerInstance) -> Standing:
        old = LeaseName(*standing.name)
        draft = self._draft(standing.runner_id)
        put(draft, to_json(record._replace(token=standing.token).to_dict()), mode=self.state.file_mode)
        try:
            renewed = self._rename_in(draft, old._replace(revision=old.revision + 1), record)
        except BaseException:
            self._unlink(draft)
            raise
        if standing.unreadable:
            self._book.set_aside(f"runners/{old}", "damaged; published anew by its owner")
        elif not self._unlink(f"{self._root}/runners/{old}"):
            self._door.ring.doubt()  # when it stays, the higher revision counts, and everybody has to see that
        self._book.drop_lease("runners", old)
        return renewed

    def _remove(self, standing: Standing) -> None:
        folder, name = "fenced" if standing.fenced else "runners", LeaseName(*standing.name)
        if standing.unreadable:
            self._book.set_aside(f"{folder}/{name}", "damaged")
        else:
            os.unlink(f"{self._root}/{folder}/{name}")
        self._book.drop_lease(folder, name)
        self.view.leave(standing.runner_id)

    def _revoke(self, standing: Standing) -> None:
        name, record = LeaseName(*standing.name), self._record(standing.runner_id)
        os.rename(f"{self._root}/runners/{name}", f"{self._root}/fenced/{name}")
        self._book.drop_lease("runners", name)
        self._book.add_lease("fenced", name, standing._replace(fenced=True))
        if self.on_stale == "kill" and record:
            self._to_kill.append(record)

    def _drop(self, waiter: Waiter) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._entry(waiter))
        self._book.drop_waiter(waiter)

    # ---- looks

    def _record(self, runner_id: str) -> RunnerInstance | None:
        standing, waiter = self.view.standing.get(runner_id), self.view.waiter(runner_id, adding=False)
        if standing:
            path = f"{self._root}/{'fenced' if standing.fenced else 'runners'}/{LeaseName(*standing.name)}"
        elif waiter:
            path = self._entry(waiter)
        else:
            return None
        return record_at(path)

    def _look(self, runner_id: str) -> Seen:
        return self._judged(runner_id, lambda: self._record(runner_id))

    def _is_orphaned(self, runner_id: str) -> bool:
        return is_orphaned(self._record(runner_id))

    def _judged(self, runner_id: str, read: Callable[[], RunnerInstance | None]) -> Seen:
        """What is seen of a holder; when it lives in another time namespace, by our own clock."""
        now = time.monotonic()
        seen = lifeline.look(self._life(runner_id), now)
        if seen.silent is None or abs(seen.silent) < 60.0:
            return seen  # close enough to be our own clock; only an old or a future stamp is worth a read
        record = read()
        if not (record and record.holder) or record.holder.time_namespace == process.identity().time_namespace:
            return seen
        since = None
        if seen.publishing is not None:
            since = self._observer.silent(f"{runner_id} publishing", round(now - seen.publishing, 3), now)
        return Seen(True, self._observer.silent(runner_id, round(now - seen.silent, 3), now), since)

    def _look_again(self, lease: Lease) -> None:
        """Our record has another name now: a later revision of ours, or none."""
        token: int | None = None
        with told(self._root), suppress(FileNotFoundError):
            for file_name in os.listdir(f"{self._root}/runners"):
                with suppress(ValueError):
                    name = LeaseName.parse(file_name)
                    if name.runner_id == lease.runner_id:
                        token = name.token
                        if token == lease.token and name.revision > lease.revision:
                            lease.revision = name.revision
            if token is None and self._owns(lease):
                token = self._token_inside(lease)
        if token is None or token != lease.token or not self._owns(lease):
            raise LeaseLost(lease.runner_id, ours=lease.token, found=token)

    def _token_inside(self, lease: Lease) -> int | None:
        """Beside thousands a listing can miss a record that is being rewritten: inside the gate it is there."""
        with self._gate("renew"):
            standing = self.view.standing.get(lease.runner_id)
            if standing is None or standing.fenced:
                return None
            lease.revision = max(lease.revision, standing.revision)
            return standing.token

    def _life(self, runner_id: str) -> str:
        return f"{self._root}/live/{runner_id}"

    def _bell(self, runner_id: str) -> str:
        return f"{self._root}/bells/{runner_id}"

    def _hidden_bell(self, lease: Lease) -> str:
        return f"{self._root}/tmp/bell.{lease.runner_id}.{lease.pid}.{id(lease):x}"

    def _entry(self, waiter: Waiter) -> str:
        return f"{self._root}/queue/{QueueName.of(waiter)}"

    def _changes(self) -> tuple[int, ...]:
        """Differs when something that can be waited for may have become free, also by hand or by one that died."""
        with suppress(FileNotFoundError):
            config = os.stat(f"{self._root}/config.json").st_mtime_ns
            return (config, *(os.stat(f"{self._root}/{folder}").st_mtime_ns for folder in ("runners", "fenced")))
        return tuple(os.stat(f"{self._root}/{folder}").st_mtime_ns for folder in ("runners", "fenced"))

    def _is_settled(self, seen: tuple[int, ...]) -> bool:
        """Whether nobody can be served now who could not before: all that was freed, was freed in the gate."""
        if seen == self._watched:
            return self._door.peek()[0]
        return seen[:-2] == self._watched[:-2] and self._door.explains(seen[-2:])

    def _hush(self, lease: Lease) -> None:
        bell, lease.bell = lease.bell, None
        if bell is not None:
            waiting.close_bell(bell, self._hidden_bell(lease), self._bell(lease.runner_id))


def record_at(path: str) -> RunnerInstance | None:
    try:
        return read_record(path)
    except (FileNotFoundError, Damaged):
        return None
