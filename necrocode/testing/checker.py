"""The protocol's invariants, asserted over the files alone, and waiting for facts instead of for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from necrocode.claim import Claim, ClaimIndex
from necrocode.lease import RunnerInstance
from necrocode.ledger.records import Damaged, LeaseName, QueueName, read_record
from necrocode.ledger.terms import read_terms
from necrocode.statedir import read

Fact = TypeVar("Fact")


class Broken(AssertionError):
    """An invariant does not hold; the message names it (I1 to I6 or I15 of docs/protocol.md) and the evidence."""


def wait_for(fact: Callable[[], Fact], within: float = 10.0, *, told: Callable[[], object] | None = None) -> Fact:
    """The first true value of `fact`, asked every few milliseconds; AssertionError (with what `told` says) after
    `within` seconds."""
    deadline = time.monotonic() + within
    while not (value := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {fact}{f'; {told()}' if told else ''}")
        time.sleep(0.003)
    return value


def check(root: str | os.PathLike[str], *, tries: int = 200, lowered: bool = False, damaged: bool = False) -> bool:
    """Assert the invariants over the files alone, never taking the gate (a checker that did would repair first).

    While others move, it looks until nothing moved during one look; False when that never happened. A gate left
    marked as held by a dead process counts as quiet when its mark does not change. `lowered` says that the host's
    limit may have been lowered under its holders, `damaged` that somebody has broken records by hand. Raises Broken."""
    place = Path(root)
    for _ in range(tries):
        before = _gate_line(place)
        try:
            state: _State | Broken = _State.read(place, damaged)
        except Broken as error:
            state = error
        if before == _gate_line(place) and (_is_free(before) or not _someone_inside(before)):
            if isinstance(state, Broken):
                raise state
            state.check(lowered)
            return True
        time.sleep(0.001)
    return False


def _gate_line(root: Path) -> bytes:
    try:
        return read(root / "lock")
    except FileNotFoundError:
        return b""


def _is_free(lock: bytes) -> bool:
    return lock == b"" or b"\nfree " in lock


def _someone_inside(lock: bytes) -> bool:
    for word in lock.split():
        if word.startswith(b"pid="):
            try:
                return read(f"/proc/{int(word[4:])}/stat").rpartition(b")")[2].split()[0] not in b"ZX"
            except (FileNotFoundError, ProcessLookupError):
                return False
    return False


class _Lease(NamedTuple):
    name: LeaseName
    record: RunnerInstance


class _State:
    """Everything in the directory, parsed anew, by code that shares nothing with the ledger's cache."""

    def __init__(self, root: Path, damaged: bool) -> None:
        self.root, self.damaged = root, damaged
        self.running: dict[str, _Lease] = {}
        self.fenced: dict[str, _Lease] = {}
        self.waiting: list[QueueName] = []
        self.limit: int | None = None
        self.quotas: dict[str, int] = {}
        self.counter = 0
        self.lifelines: set[str] = set()

    @classmethod
    def read(cls, root: Path, damaged: bool) -> _State:
        state = cls(root, damaged)
        state.counter = int((_gate_line(root).split() or [b"0"])[0])
        state.limit, state.quotas = read_terms(root / "config.json")
        state.lifelines = set(os.listdir(root / "live"))
        for folder, into in (("runners", state.running), ("fenced", state.fenced)):
            for file_name in os.listdir(root / folder):
                state._lease(root / folder / file_name, into)
        for file_name in os.listdir(root / "queue"):
            state._waiter(root / "queue" / file_name)
        return state

    def _lease(self, path: Path, into: dict[str, _Lease]) -> None:
        try:
            name, record = LeaseName.parse(path.name), read_record(path)
        except FileNotFoundError:
            return None
        except (Damaged, ValueError) as error:
            return self._broken(path, error)
        known = into.get(name.runner_id)
        if known is None or known.name[1:] < name[1:]:  # a writer that died left two revisions: the higher counts
            into[name.runner_id] = _Lease(name, record)
        return None

    def _waiter(self, path: Path) -> None:
        try:
            name = QueueName.parse(path.name)
            read_record(path)
            self.waiting.append(name)
        except FileNotFoundError:
            return None
        except (Damaged, ValueError) as error:
            return self._broken(path, error)
        return None

    def _broken(self, path: Path, error: Exception) -> None:
        if not self.damaged:
            raise Broken(f"I15: {path} is no record: {error}") from error

    def check(self, lowered: bool) -> None:
        self._check_limits(lowered)
        self._check_claims()
        self._check_tokens()
        self._check_places()

    def _check_limits(self, lowered: bool) -> None:
        counted = sorted(lease.name.token for lease in self.running.values() if lease.record.slot)
        for name, record in self.running.values():
            earlier = sum(token <= name.token for token in counted)
            if record.slot and record.limit is not None and earlier > record.limit:
                raise Broken(f"I1: {name.runner_id} was granted as number {earlier} of {record.limit}")
        if self.limit is not None and len(counted) > self.limit and not lowered:
            raise Broken(f"I1: {len(counted)} runners, the host's limit is {self.limit}")

    def _check_claims(self) -> None:
        index = ClaimIndex()
        for runner_id, claims in self._held():
            if blockers := index.blockers(runner_id, claims):
                raise Broken(f"I2: {runner_id} conflicts with {blockers}")
            index.add(runner_id, claims)

    def _held(self) -> list[tuple[str, tuple[Claim, ...]]]:
        running = [(name.runner_id, record.claims) for name, record in self.running.values()]
        fenced = [
            (name.runner_id, tuple(c for c in record.claims if c.sticky)) for name, record in self.fenced.values()
        ]
        return running + fenced

    def _check_tokens(self) -> None:
        tokens = [name.token for name, _ in (*self.running.values(), *self.fenced.values())]
        if len(set(tokens)) != len(tokens):
            raise Broken(f"I3: a token was granted twice: {sorted(tokens)}")
        numbers = [*tokens, *(name.ticket for name in self.waiting)]
        if any(number > self.counter for number in numbers):
            raise Broken(f"I4: a token or ticket is beyond the counter {self.counter}: {sorted(numbers)}")

    def _check_places(self) -> None:
        registering = [name.runner_id for name in self.waiting if not name.adding]
        places = [*self.running, *self.fenced, *registering]
        twice = {one for one in places if places.count(one) > 1}
        if twice:
            raise Broken(f"I5: in two places at once: {sorted(twice)}")
        hidden = [one for one in places if one not in self.lifelines]
        if hidden:
            raise Broken(f"I6: without a lifeline: {sorted(hidden)}")
