"""The ledger on real files against a specification in plain Python, written from the protocol and not from the code.

Several ledgers of one process stand for several processes: lifelines belong to open files, not to processes. Waiters
do not sleep here; whoever is granted its lease takes it over when the rule says so."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import unittest
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from actors import run_clean
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ring_mutants import RING_MUTANTS

from necrocode import admission, liveness
from necrocode.claim import Claim, ClaimIndex, conflict
from necrocode.errors import LeaseLost, Refused
from necrocode.lease import Lease, Request, RunnerInstance
from necrocode.ledger import lifeline
from necrocode.ledger.files import FileLedger
from necrocode.statedir import put, to_json
from necrocode.testing import check

PATHS = ("a", "a/1", "a/2", "a/b/1", "c/1", "a/**", "a/b/**", "*/1", "c/?", "**")
one_claim = st.one_of(
    st.builds(lambda path, shared: Claim.file(path, shared=shared), st.sampled_from(PATHS), st.booleans()),
    st.builds(Claim.branch, st.sampled_from(["f", "f/1", "g"])),
)
some_claims = st.lists(one_claim, max_size=3).map(lambda many: tuple(dict.fromkeys(many)))
pick = st.integers(0, 30)


class Party(NamedTuple):
    """One who stands or waits, as the specification knows it."""

    name: str
    claims: tuple[Claim, ...]
    limit: int | None
    slot: bool
    key: tuple[int, int] = (0, 0)
    """Place in line: less priority is later, then later arrival."""


def meet(ours: tuple[Claim, ...], theirs: tuple[Claim, ...]) -> bool:
    return any(conflict(one, other) for one in ours for other in theirs)


class Specification:
    """Who stands, who waits, who was revoked, who is dead. The dead stand in nobody's way once somebody minds."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.standing: dict[str, Party] = {}
        self.waiting: list[Party] = []
        self.fenced: dict[str, Party] = {}
        self.dead: set[str] = set()

    def held_by(self, other_than: str) -> list[tuple[str, tuple[Claim, ...]]]:
        running = [(party.name, party.claims) for party in self.standing.values()]
        revoked = [(party.name, tuple(c for c in party.claims if c.sticky)) for party in self.fenced.values()]
        return [(name, claims) for name, claims in running + revoked if name != other_than]

    def in_the_way(self, party: Party) -> tuple[str, set[str]] | None:
        if blockers := {name for name, claims in self.held_by(party.name) if meet(party.claims, claims)}:
            return "claim", blockers
        limits = [limit for limit in (party.limit, self.limit) if limit is not None]
        taken = {one.name for one in self.standing.values() if one.slot}
        if party.slot and limits and len(taken) >= min(limits):
            return "limit", taken
        return None

    def serve(self) -> None:
        """In order; whoever has to wait on keeps back those behind it who want the same."""
        passed: list[Party] = []
        for party in sorted(self.waiting, key=lambda party: party.key):
            if self.in_the_way(party) or any(meet(party.claims, other.claims) for other in passed):
                passed.append(party)
                continue
            self.waiting.remove(party)
            if party.name not in self.dead:
                self.standing[party.name] = party

    def bury(self, names: set[str]) -> bool:
        gone = names & self.dead
        known = len(self.standing) + len(self.fenced) + len(self.waiting)
        for name in gone:
            self.standing.pop(name, None)
            self.fenced.pop(name, None)
        self.waiting = [party for party in self.waiting if party.name not in gone]
        self.serve()
        return known > len(self.standing) + len(self.fenced) + len(self.waiting)

    def ask(self, party: Party) -> str | None:
        """Why not, once the dead have been put out of the way; None when it stands now."""
        self.serve()
        while why := self.why_not(party):
            suspects = {*self.standing, *self.fenced, *why[1]} if why[0] == "queue" else why[1]
            if not self.bury(suspects):
                return why[0]
        return None

    def why_not(self, party: Party) -> tuple[str, set[str]] | None:
        if why := self.in_the_way(party):
            return why
        ahead = {other.name for other in self.waiting if other.key < party.key and meet(party.claims, other.claims)}
        return ("queue", ahead) if ahead else None


class Queued(Exception):
    """This registration would sleep now."""


class LedgerMachine(RuleBasedStateMachine):
    @initialize(limit=st.one_of(st.none(), st.integers(1, 4)))
    def begin(self, limit: int | None) -> None:
        self.root = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.ledgers = [FileLedger(self.root) for _ in range(3)]
        self.ledgers[0].configure(limit=limit)
        self.spec = Specification(limit)
        self.leases: dict[str, Lease] = {}
        self.count = 0
        self.tokens = [0]
        for ledger in self.ledgers:
            ledger._sleep = self._would_sleep  # type: ignore[method-assign]
            ledger._abandon = lambda lease, ledger=ledger: (  # type: ignore[method-assign]
                None if lease.runner_id in self.asleep else FileLedger._abandon(ledger, lease)
            )
        self.asleep: dict[str, Lease] = {}

    def _would_sleep(self, lease: Lease, waiter: Any, deadline: float | None) -> bool:
        self.asleep[lease.runner_id] = lease
        raise Queued(waiter.ticket)

    def of(self, names: Any, at: int) -> str | None:
        living = sorted(set(names) - self.spec.dead)
        return living[at % len(living)] if living else None

    def take_over(self) -> None:
        """Those who were granted wake up and say so."""
        for name in list(self.asleep):
            if name in self.spec.standing and name not in self.spec.dead:
                lease = self.asleep.pop(name)
                assert self.ledgers[0]._take_over(lease, 0.5), f"{name} is granted by the rule, not by the ledger"
                self.leases[name] = lease

    @rule(at=pick, claims=some_claims, wait=st.booleans())
    def register(self, at: int, claims: tuple[Claim, ...], wait: bool) -> None:
        self._register(at, claims, wait, 0, None, True)

    @rule(at=pick, claims=some_claims)
    def register_and_wait(self, at: int, claims: tuple[Claim, ...]) -> None:
        self._register(at, claims, True, 0, None, True)

    @rule(at=pick, path=st.sampled_from(PATHS))
    def register_one_file(self, at: int, path: str) -> None:
        self._register(at, (Claim.file(path),), at % 2 == 0, 0, None, True)

    @rule(at=pick, claims=some_claims, wait=st.booleans(), priority=st.sampled_from([0, 9, -9]),
          limit=st.sampled_from([None, 1, 2, 3]), slot=st.booleans())  # fmt: skip
    def register_on_terms(
        self, at: int, claims: tuple[Claim, ...], wait: bool, priority: int, limit: int | None, slot: bool
    ) -> None:
        self._register(at, claims, wait, priority, limit, slot)

    def _register(
        self, at: int, claims: tuple[Claim, ...], wait: bool, priority: int, limit: int | None, slot: bool
    ) -> None:
        self.count += 1
        name = f"r{self.count}"
        party = Party(name, claims, limit, slot, (-priority, self.count))
        why = self.spec.ask(party)
        request = Request(name, claims, limit=limit, priority=priority, slot=slot)
        try:
            lease = self.ledgers[at % 3].register(request, wait=wait)
        except Queued:
            assert wait and why, f"{name} waits, by the rule it stands"
            self.spec.waiting.append(party)
        except Refused as refused:
            assert why, f"{name} is refused ({refused.reason}), by the rule it stands"
            assert (refused.reason in ("limit", "queue")) == (why in ("limit", "queue")), (refused.reason, why)
            assert not {blocker.runner_id for blocker in refused.blockers} & self.spec.dead, "the dead refuse"
        else:
            assert why is None, f"{name} stands, by the rule it does not: {why}"
            self.spec.standing[name] = party
            self.leases[name] = lease
            assert lease.token is not None and lease.token > max(self.tokens)
            self.tokens.append(lease.token)

    @rule(at=pick)
    def release(self, at: int) -> None:
        self.take_over()
        if name := self.of(self.spec.standing, at):
            self.ledgers[at % 3].release(self.leases.pop(name))
            del self.spec.standing[name]
            self.spec.serve()

    @rule(at=pick, claims=some_claims)
    def claim(self, at: int, claims: tuple[Claim, ...]) -> None:
        self.take_over()
        if not (name := self.of(self.spec.standing, at)):
            return
        party = self.spec.standing[name]
        missing = tuple(one for one in claims if one not in party.claims)
        more = Party(name, missing, None, slot=False, key=(-1000, 0))
        why = self.spec.ask(more) if missing else None
        try:
            self.ledgers[(at + 1) % 3].claim(self.leases[name], claims)
        except Refused as refused:
            assert why, f"{name} may not have {claims} ({refused}), by the rule it may"
        else:
            assert why is None, f"{name} has {claims}, by the rule it may not: {why}"
            self.spec.standing[name] = party._replace(claims=party.claims + missing)

    @rule(at=pick, claim_at=pick)
    def drop(self, at: int, claim_at: int) -> None:
        self.take_over()
        if (name := self.of(self.spec.standing, at)) and (party := self.spec.standing[name]).claims:
            given = party.claims[claim_at % len(party.claims)]
            self.ledgers[at % 3].drop(self.leases[name], [given])
            self.spec.standing[name] = party._replace(claims=tuple(c for c in party.claims if c != given))
            self.spec.serve()

    @rule(at=pick)
    def die(self, at: int) -> None:
        """A holder, waiter or revoked one: its lifeline is let go of, its files stay."""
        waiting = [party.name for party in self.spec.waiting]
        if name := self.of([*self.spec.standing, *self.spec.fenced, *waiting], at):
            lease = self.leases.pop(name, None) or self.asleep.pop(name)
            assert lease.lifeline is not None
            lifeline.close(lease.lifeline)
            lease.lifeline = None
            self.spec.dead.add(name)

    @rule(at=pick)
    def fence(self, at: int) -> None:
        """Alive, and silent for long: somebody who minds revokes it."""
        self.take_over()
        if name := self.of(self.spec.standing, at):
            lease = self.leases[name]
            assert lease.lifeline is not None
            os.pwrite(lease.lifeline, f"{time.monotonic() - 1000:017.6f}".encode(), 0)
            assert self.ledgers[at % 3].fence(name)
            self.spec.fenced[name] = self.spec.standing.pop(name)
            self.spec.serve()

    @rule(at=pick, claims=some_claims)
    def revoked(self, at: int, claims: tuple[Claim, ...]) -> None:
        if name := self.of(self.spec.fenced, at):
            lease, ledger = self.leases[name], self.ledgers[at % 3]
            for call in (lambda: ledger.claim(lease, claims), lambda: ledger.renew(lease)):
                with pytest.raises(LeaseLost):
                    call()
            if at % 2:
                with pytest.raises(LeaseLost):
                    ledger.release(lease)
                del self.leases[name], self.spec.fenced[name]
                self.spec.serve()

    @rule(at=pick)
    def publish(self, at: int) -> None:
        self.take_over()
        if name := self.of(self.spec.standing, at):
            lease, other = self.leases[name], self.ledgers[(at + 1) % 3]
            with self.ledgers[at % 3].publishing(lease):
                assert not other.fence(name)

    @rule(limit=st.one_of(st.none(), st.integers(1, 4)))
    def configure(self, limit: int | None) -> None:
        self.ledgers[0].configure(limit=limit)
        self.spec.limit = limit
        self.spec.serve()

    @rule(at=pick)
    def sweep(self, at: int) -> None:
        self.spec.serve()
        self.spec.bury({*self.spec.standing, *self.spec.fenced, *(party.name for party in self.spec.waiting)})
        self.ledgers[at % 3].sweep()

    @rule(at=pick, how=st.sampled_from(["by hand", "by an earlier version", "by one who dies inside"]))
    def removed_otherwise(self, at: int, how: str) -> None:
        """A record goes in another way than by a pass that tells of it; then somebody minds, who may be in step."""
        self.take_over()
        if not (name := self.of(self.spec.standing, at)):
            return
        lease, runners = self.leases.pop(name), self.ledgers[0].state.runners
        before = os.stat(runners)
        (runners / f"{name}.{lease.token}.{lease.revision}.json").unlink()
        if how != "by hand":  # its mark in the lock file is enough
            os.utime(runners, ns=(before.st_atime_ns, before.st_mtime_ns))
            self._mark("free" if how == "by an earlier version" else "held")
        with pytest.raises(LeaseLost):
            self.ledgers[(at + 1) % 3].claim(lease, [Claim.file("other")])
        with pytest.raises(LeaseLost):
            self.ledgers[at % 3].release(lease)
        del self.spec.standing[name]
        self.sweep(at)

    def _mark(self, state: str) -> None:
        with self.ledgers[0].state.lock.open("r+b") as lock:
            generation = int(lock.read()[64:160].split()[1])
            lock.seek(64)
            lock.write(f"{state} {generation + 1} op=x".ljust(95).encode() + b"\n")

    @rule(at=pick, claims=some_claims)
    def placed_by_hand(self, at: int, claims: tuple[Claim, ...]) -> None:
        """A record of somebody dead: it stands in nobody's way once somebody minds."""
        self.count += 1
        name, held = f"r{self.count}", self.spec.held_by("")
        if any(meet(claims, theirs) for _, theirs in held):
            return
        record = RunnerInstance(name, "", "", "", datetime.now(UTC), datetime.now(UTC), slot=False)
        (self.ledgers[0].state.live / name).touch()
        put(
            self.ledgers[0].state.runners / f"{name}.{self.count}.0.json", to_json(record.with_claims(claims).to_dict())
        )
        self.spec.standing[name] = Party(name, claims, None, slot=False)
        self.spec.dead.add(name)

    @rule(at=pick)
    def a_process_starts(self, at: int) -> None:
        """A ledger that has read nothing yet."""
        self.ledgers[at % 3]._book.forget()

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "spec"):
            return
        self.take_over()
        assert check(self.root, lowered=True)
        seen = self.ledgers[1].snapshot()
        assert seen.consistent and not seen.unreadable
        running = {s.record.runner_id: set(s.record.claims) for s in seen.runners if s.state == "running"}
        assert running == {party.name: set(party.claims) for party in self.spec.standing.values()}
        assert {s.record.runner_id for s in seen.runners if s.state == "fenced"} == set(self.spec.fenced)
        line = [waiter.record.runner_id for waiter in seen.waiting]
        assert line == [party.name for party in sorted(self.spec.waiting, key=lambda party: party.key)]

    def teardown(self) -> None:
        if hasattr(self, "spec"):
            for lease in (*self.leases.values(), *self.asleep.values()):
                self.ledgers[0]._places[lease] = ("gone", "gone")
                self.ledgers[0]._close(lease)
            shutil.rmtree(self.root, ignore_errors=True)


TestLedgerModel = LedgerMachine.TestCase
TestLedgerModel.settings = settings(
    max_examples=int(os.environ.get("NECROCODE_EXAMPLES", "100")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


BROKEN_RULES = (
    *RING_MUTANTS,
    "pushing in",
    "last come, first served",
    "revoked leases keep all",
    "the dead refuse",
    "windows ignored",
)


@pytest.mark.parametrize("how", BROKEN_RULES)
def test_the_specification_tells_a_broken_rule(how: str) -> None:
    assert run_clean(_disagrees, how)


def _disagrees(how: str) -> bool:
    if how in RING_MUTANTS:
        RING_MUTANTS[how]()
    elif how == "pushing in":
        admission.View.ahead_of = lambda self, waiter: ClaimIndex()  # type: ignore[method-assign]
    elif how == "last come, first served":
        admission.View.in_order = lambda self: [  # type: ignore[method-assign]
            self.waiting[key] for key in sorted(self.waiting, reverse=True)
        ]
    elif how == "revoked leases keep all":
        admission.Standing.effective = property(lambda self: self.claims)  # type: ignore[method-assign,assignment]
    elif how == "the dead refuse":
        FileLedger._clear = lambda self, suspects: 0  # type: ignore[method-assign]
    elif how == "windows ignored":
        liveness.may_publish = lambda seen: False
    TestLedgerModel.settings = settings(
        TestLedgerModel.settings, phases=[Phase.generate], database=None, max_examples=500
    )
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(TestLedgerModel).run(result)
    return bool(result.failures or result.errors)
