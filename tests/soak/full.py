"""A small disk that is full, has no room for names, or may not be written, at any moment of what a ledger and a runner
do; and has room again."""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from necrocode import journal
from necrocode.attempt import carry
from necrocode.claim import Claim
from necrocode.errors import NecrocodeError, Refused
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger
from necrocode.ledger.terms import read_terms
from necrocode.order import Order, read_result, take, taken_by, write_result
from necrocode.runs import Plan, attempt_folder
from necrocode.statedir import put, to_json
from necrocode.task import Task
from necrocode.testing import check, forked, result_of
from tests.soak.grounds import lacking_root, mount, own_mounts, remount, unmount
from tests.soak.part import Part, Soak

SPACE, NAMES, READ_ONLY = "disks full", "disks without room for names", "disks read-only"
_KINDS = (SPACE, NAMES, READ_ONLY)
_BLOCKS, _NAMES = 256, 400
_BLOCK = 4096
_CYCLES = 25
"""Of one process: what it holds, it holds through all of them."""


def play(soak: Soak) -> None:
    own_mounts()
    chance, place, trouble = soak.chance(), soak.place / "small", soak.place / "trouble"
    place.mkdir()
    for first in range(0, soak.wanted, _CYCLES):
        mount("none", place, "tmpfs", f"size={_BLOCKS * _BLOCK},nr_inodes={_NAMES},mode=700")
        try:
            count = min(_CYCLES, soak.wanted - first)
            child = forked(partial(_cycles, soak, place, first, count, chance.randrange(1 << 30)), trouble)
            result_of(child, trouble, within=300.0)
        except AssertionError as error:
            soak.history.broken(f"cycles from {first} on: {error}")
            trouble.unlink(missing_ok=True)
        finally:
            unmount(place)


def _cycles(soak: Soak, place: Path, first: int, count: int, seed: int) -> None:
    disk = _Disk(place, random.Random(seed))
    for at in range(first, first + count):
        kind = _KINDS[at % len(_KINDS)]
        disk.cycle(kind, at)
        soak.history.injected(kind)
    soak.history.note(f"{disk.refused} operations refused")


class _Disk:
    """One process on the small disk: what it does there, and what must be there whatever happens."""

    def __init__(self, place: Path, chance: random.Random) -> None:
        self.place, self.chance, self.root = place, chance, place / "state"
        self.ledger = FileLedger(self.root)
        self.held: dict[str, Lease] = {}
        self.results: dict[Path, int] = {}
        self.limit = 50
        self.ledger.configure(limit=self.limit)
        self.at = 0
        self.refused = self.attempts = 0

    def cycle(self, kind: str, at: int) -> None:
        self.at = at
        if kind == READ_ONLY:
            self._close()
        with _read_only(self.place) if kind == READ_ONLY else self._filled(kind):
            for _ in range(4):
                self._try(self.chance.choice(self._doings(kind)))
                self._look()
        if kind == READ_ONLY:
            self.ledger = FileLedger(self.root)
        self._recovered()

    def _close(self) -> None:
        """Nothing may be open for writing where writing ends."""
        self._let_go()
        del self.ledger
        gc.collect()

    def _doings(self, kind: str) -> list[Callable[[], object]]:
        doings = [self._register, self._sweep, self._tell, self._make]
        held = [self._release, self._claim, self._publish, self._renew]
        return (
            doings if kind == READ_ONLY else [*doings, *held, self._configure, self._attempt, self._attempt, self._plan]
        )

    def _try(self, do: Callable[[], object]) -> None:
        """Typed, with the place that it is about, or done."""
        try:
            do()
        except Refused:
            pass
        except NecrocodeError as error:
            self.refused += 1
            assert len(str(error)) > 20 and os.sep in str(error), f"names no place: {error!r}"

    # -- what is done

    def _register(self) -> None:
        name = f"r{self.at}.{self.chance.randrange(1000)}"
        claims = (Claim.file(f"src/{self.chance.randrange(6)}/**"), Claim.workspace(f"/w/{name}"))
        self.held[name] = FileLedger(self.root).register(Request(name, claims, heartbeat_timeout=600))

    def _any(self) -> str:
        if not self.held:
            self._register()
        return self.chance.choice(sorted(self.held))

    def _release(self) -> None:
        name = self._any()
        lease = self.held.pop(name)
        try:
            self.ledger.release(lease)
        except NecrocodeError:
            self._sweep()  # the handle is closed: what is left of it is nobody's
            raise

    def _claim(self) -> None:
        self.ledger.claim(self.held[self._any()], [Claim.file(f"doc/{self.chance.randrange(6)}")])

    def _publish(self) -> None:
        with self.ledger.publishing(self.held[self._any()]):
            pass

    def _renew(self) -> None:
        self.ledger.renew(self.held[self._any()])

    def _configure(self) -> None:
        self.ledger.configure(limit=self.limit + 1)
        self.limit += 1

    def _sweep(self) -> None:
        FileLedger(self.root).sweep()

    def _tell(self) -> None:
        journal.append(self.root / "events", [journal.make("error.recorded", error="x" * 500)])

    def _make(self) -> None:
        FileLedger(self.place / f"new{self.at}")

    def _plan(self) -> None:
        run_id = f"p{self.at}"
        with suppress(OSError):
            (self.root / "runs" / run_id).mkdir(mode=0o700)
            Plan(run_id, (Task("a", command=("true",)),), {"a": ()}, 1, mode="none").save(self.ledger.state)
            Plan.load(self.ledger.state, run_id)

    def _attempt(self) -> None:
        """As a runner carries it, with a program."""
        self.attempts += 1
        run_id, number = "run", self.attempts
        folder = attempt_folder(self.ledger.state, run_id, "t", number)
        try:
            folder.mkdir(mode=0o700, parents=True)
            task = Task("t", command=("echo", "x" * 3000))
            order = Order(run_id, task, number, str(folder), str(self.place), mode="none", grace=0.1)
            put(folder / "task.json", to_json(order.to_dict()))
        except OSError:
            return  # there is nobody yet to tell
        if take(folder):
            outcome = carry(order, self.ledger)
            write_result(folder, outcome)
            self.results[folder] = outcome.attempt

    # -- what must be so

    def _look(self) -> None:
        if not check(self.root, tries=3):
            # What was refused inside the gate left it marked, so that the next one in puts right what was cut short.
            self._try(self._sweep)
            assert check(self.root) or self.refused, "no quiet moment"
        standing = {name.rsplit(".", 3)[0] for name in os.listdir(self.root / "runners")}
        assert set(self.held) <= standing, f"lost: {set(self.held) - standing}"
        limit = read_terms(self.root / "config.json")[0] or 0
        assert self.limit <= limit <= self.limit + 1, f"limit {limit}, not {self.limit}"
        self.limit = limit  # what was refused at the last step may have been done
        for folder, attempt in self.results.items():
            outcome = read_result(folder)
            assert outcome and outcome.attempt == attempt, f"{folder}: {outcome}"
        for folder in (self.root / "runs").glob("*/t.*"):
            read_result(folder)
            taken_by(folder)
        list(journal.read(self.root / "events"))

    def _recovered(self) -> None:
        """There is room again: everything can be had and done, and nothing is left of what was refused."""
        self._sweep()
        for name, lease in self.held.items():
            self.ledger.renew(lease)
            with self.ledger.publishing(lease):
                assert name
        self._let_go()
        every = (Claim.file("src/**"), Claim.file("doc/**"))
        lease = self.ledger.register(Request("all", every, limit=1))
        self.ledger.release(lease)
        before = len(self.results)
        self._attempt()
        assert len(self.results) == before + 1 and read_result(list(self.results)[-1]).ok, "no attempt can be carried"
        self.ledger.sweep()
        left = {name: os.listdir(self.root / name) for name in ("runners", "queue", "fenced", "live", "bells", "tmp")}
        assert not any(left.values()), f"left: {left}"
        assert not os.listdir(self.root / "quarantine"), os.listdir(self.root / "quarantine")
        self._look()
        self._make_room()

    def _let_go(self) -> None:
        while self.held:
            self.ledger.release(self.held.popitem()[1])

    def _make_room(self) -> None:
        for folder in (*self.place.glob("new*"), *(self.root / "runs").iterdir()):
            if folder.name.startswith("new"):
                FileLedger(folder)  # what was half made is made
            shutil.rmtree(folder)
        for day in (self.root / "events").iterdir():
            day.unlink()
        self.results.clear()

    # -- the disk

    @contextmanager
    def _filled(self, kind: str) -> Iterator[None]:
        ballast = self.place / "ballast"
        ballast.mkdir()
        try:
            (self._fill if kind == SPACE else self._name)(ballast)
            yield
        finally:
            for file in ballast.iterdir():
                file.unlink()
            ballast.rmdir()

    def _fill(self, ballast: Path) -> None:
        """But for some blocks."""
        handle = os.open(ballast / "full", os.O_WRONLY | os.O_CREAT)
        try:
            size = 0
            with suppress(OSError):
                while True:
                    size += os.write(handle, b"x" * _BLOCK)
            os.ftruncate(handle, max(0, size - self.chance.randrange(8) * _BLOCK))
        finally:
            os.close(handle)

    def _name(self, ballast: Path) -> None:
        """As many files as there may be, but for some."""
        made = []
        with suppress(OSError):
            while True:
                made.append(ballast / str(len(made)))
                made[-1].touch()
        for path in made[: self.chance.randrange(9)]:
            path.unlink(missing_ok=True)


@contextmanager
def _read_only(place: Path) -> Iterator[None]:
    options = f"size={_BLOCKS * _BLOCK},nr_inodes={_NAMES}"
    remount(place, options, read_only=True)
    try:
        yield
    finally:
        remount(place, options)


PART = Part(
    goal="disks that are full, have no room for names or may not be written: typed errors, what was there stays, and "
    "all goes on when there is room again",
    counts="disks",
    full=2_000,
    play=play,
    lacking=lacking_root,
)
