"""The ledger's promises, kept by both stores alike; and what only files can promise, over several processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from actors import Puppet
from stalls import unstalled

from necrocode import liveness
from necrocode.claim import Claim
from necrocode.errors import (
    ConfigError,
    Deadlock,
    GateTimeout,
    LeaseLost,
    NecrocodeError,
    Refused,
    ResourceConflictError,
    ResourceLimitError,
)
from necrocode.lease import Lease, Request
from necrocode.ledger import lifeline, memory, waiting, watchman
from necrocode.ledger.files import FileLedger
from necrocode.ledger.memory import MemoryLedger
from necrocode.ledger.operations import Operations
from necrocode.testing import check, wait_for

MakePuppet = Callable[..., Puppet]


def file(path: str, *, shared: bool = False) -> Claim:
    return Claim.file(path, shared=shared)


def request(runner_id: str, *claims: Claim | str, **terms: Any) -> Request:
    return Request(runner_id, tuple(file(one) if isinstance(one, str) else one for one in claims), **terms)


class Thread:
    """One call in a thread of its own; `result` raises what it raised."""

    def __init__(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        self._call = (call, args, options)
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        call, args, options = self._call
        try:
            self.value = call(*args, **options)
        except NecrocodeError as error:
            self.error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def result(self, within: float = 20.0) -> Any:
        self._thread.join(within)
        assert self.over, "still waiting"
        if self.error:
            raise self.error
        return self.value


def queued(
    ledger: Operations, runner_id: str, *claims: Claim | str, timeout: float | None = None, **terms: Any
) -> Thread:
    """A registration that waits in a thread, and until it stands in line."""
    thread = Thread(ledger.register, request(runner_id, *claims, **terms), wait=True, timeout=timeout)
    wait_for(lambda: thread.over or ledger.view.waiter(runner_id))
    return thread


def waits_for_more(ledger: Operations, lease: Lease, *claims: Claim | str, timeout: float | None = None) -> Thread:
    wanted = [file(one) if isinstance(one, str) else one for one in claims]
    thread = Thread(ledger.claim, lease, wanted, wait=True, timeout=timeout)
    wait_for(lambda: thread.over or ledger.view.waiter(lease.runner_id, adding=True))
    return thread


def empty(ledger: Operations) -> None:
    """Give back whatever stands, and what is granted because of that."""

    def is_empty() -> bool:
        for lease in filter(None, map(ledger.find, list(ledger.view.standing))):
            with contextlib.suppress(LeaseLost):
                ledger.release(lease)
        return not ledger.view.standing and not ledger.view.waiting

    wait_for(is_empty)


@pytest.fixture(params=["files", "memory"])
def ledger(request: pytest.FixtureRequest, state_root: Path) -> Iterator[Operations]:
    if request.param == "memory":
        yield MemoryLedger()
        return
    yield FileLedger(state_root)
    check(state_root, lowered=True)


@pytest.fixture
def files(state_root: Path) -> Iterator[FileLedger]:
    """A ledger on files; whatever the test leaves, its invariants hold."""
    yield FileLedger(state_root)
    check(state_root, lowered=True)


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not woken is not served."""
    for module, name in ((waiting, "_TICK"), (watchman, "_ROUND"), (memory, "_TICK")):
        monkeypatch.setattr(module, name, 60.0)


class TestRegistering:
    def test_grants_tokens_that_grow(self, ledger: Operations) -> None:
        tokens = []
        for at in range(5):
            lease = ledger.register(request(f"r{at % 2}", "a.py"))
            tokens.append(lease.token)
            ledger.release(lease)
        assert tokens == sorted(set(tokens))

    def test_grants_all_claims_or_none(self, ledger: Operations) -> None:
        ledger.register(request("a", "x.py"))
        with pytest.raises(ResourceConflictError):
            ledger.register(request("b", "free.py", "x.py", "other.py"))
        ledger.register(request("c", "free.py", "other.py"))

    @pytest.mark.parametrize(
        ("held", "wanted", "reason"),
        [
            (file("src/**"), file("src/a.py"), "file"),
            (file("src/a.py"), file("src/*.py"), "file"),
            (Claim.branch("fix"), Claim.branch("fix/one"), "branch"),
            (Claim.workspace("/w/one"), Claim.workspace("/w/one/nested"), "workspace"),
            (Claim("port", "8080"), Claim("port", "8080"), "port"),
        ],
    )
    def test_refuses_a_conflict_with_reason_and_blockers(
        self, ledger: Operations, held: Claim, wanted: Claim, reason: str
    ) -> None:
        holder = ledger.register(request("holder", held, task_id="13.2"))
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(request("late", wanted))
        (blocker,) = refused.value.blockers
        assert (refused.value.reason, refused.value.runner_id) == (reason, "late")
        assert (blocker.runner_id, blocker.claim, blocker.wanted) == ("holder", held, wanted)
        assert (blocker.token, blocker.task_id, blocker.pid) == (holder.token, "13.2", os.getpid())

    def test_shared_claims_stand_side_by_side(self, ledger: Operations) -> None:
        ledger.register(request("a", file("doc.md", shared=True)))
        ledger.register(request("b", file("doc.md", shared=True)))
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(request("c", "doc.md"))
        assert sorted(blocker.runner_id for blocker in refused.value.blockers) == ["a", "b"]

    def test_refuses_at_the_own_limit_naming_the_live(self, ledger: Operations) -> None:
        for name in "ab":
            ledger.register(request(name, limit=2))
        with pytest.raises(ResourceLimitError) as refused:
            ledger.register(request("c", limit=2))
        assert (refused.value.reason, refused.value.live, refused.value.limit) == ("limit", 2, 2)
        assert sorted(blocker.runner_id for blocker in refused.value.blockers) == ["a", "b"]
        ledger.register(request("c", limit=3))

    def test_holders_without_a_limit_count(self, ledger: Operations) -> None:
        ledger.register(request("a"))
        with pytest.raises(ResourceLimitError):
            ledger.register(request("b", limit=1))

    def test_the_lower_of_the_own_and_the_hosts_limit_applies(self, ledger: Operations) -> None:
        ledger.configure(limit=2)
        ledger.register(request("a", limit=9))
        with pytest.raises(ResourceLimitError) as own:
            ledger.register(request("b", limit=1))
        ledger.register(request("b", limit=9))
        with pytest.raises(ResourceLimitError) as host:
            ledger.register(request("c", limit=9))
        assert (own.value.limit, host.value.limit) == (1, 2)

    def test_what_needs_no_slot_neither_counts_nor_is_refused(self, ledger: Operations) -> None:
        ledger.configure(limit=1)
        ledger.register(request("launcher", slot=False))
        ledger.register(request("a"))
        ledger.register(request("other", slot=False))

    def test_quotas_hold_for_a_spec_and_for_a_user(self, ledger: Operations) -> None:
        ledger.configure(quotas={"spec:auth": 1})
        first = ledger.register(request("a", spec_name="auth"))
        ledger.register(request("b", spec_name="docs"))
        with pytest.raises(ResourceLimitError) as refused:
            ledger.register(request("c", spec_name="auth"))
        assert (refused.value.reason, refused.value.limit) == ("quota", 1)
        assert [blocker.runner_id for blocker in refused.value.blockers] == ["a"]
        assert first.record.holder is not None
        ledger.configure(quotas={f"user:{first.record.holder.user}": 2})
        with pytest.raises(ResourceLimitError):
            ledger.register(request("d"))

    def test_refuses_a_live_duplicate(self, ledger: Operations) -> None:
        first = ledger.register(request("a", "x.py"))
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(request("a", "y.py"))
        assert refused.value.reason == "duplicate"
        ledger.renew(first)
        ledger.release(first)
        ledger.release(ledger.register(request("a")))

    def test_a_duplicate_does_no_harm_to_one_who_waits(self, ledger: Operations, no_ticks: None) -> None:
        holder = ledger.register(request("holder", "x.py"))
        thread = queued(ledger, "w", "x.py")
        for _ in range(3):
            with pytest.raises(ResourceConflictError):
                ledger.register(request("w", "y.py"), wait=True)
        started = time.monotonic()
        ledger.release(holder)
        ledger.release(thread.result())
        assert time.monotonic() - started < 20  # woken, not found by a tick

    @pytest.mark.parametrize(
        "terms",
        [{"limit": 0}, {"limit": True}, {"limit": "3"}, {"priority": 50}, {"priority": -51}, {"heartbeat_timeout": 0}],
    )
    def test_turns_down_what_cannot_be_meant(self, ledger: Operations, terms: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            ledger.register(request("a", **terms))
        with pytest.raises(ConfigError):
            ledger.register(request("../a"))


class TestWaiting:
    def test_serves_in_order_of_arrival(self, ledger: Operations) -> None:
        holder, order = ledger.register(request("holder", limit=1)), []
        threads = []
        for at in range(6):

            def turn(at: int = at) -> None:
                lease = ledger.register(request(f"w{at}", limit=1), wait=True)
                order.append((at, lease.token))
                ledger.release(lease)

            threads.append(Thread(turn))
            wait_for(lambda at=at: ledger.view.waiter(f"w{at}"))
        ledger.release(holder)
        for thread in threads:
            thread.result()
        assert [at for at, _ in order] == list(range(6))
        assert order == sorted(order, key=lambda one: one[1])

    def test_serves_the_higher_priority_first(self, ledger: Operations) -> None:
        holder = ledger.register(request("holder", "x.py"))
        threads = {p: queued(ledger, f"w{p}", "x.py", priority=p) for p in (0, -50, 49, 7)}
        ledger.release(holder)
        for priority in (49, 7, 0, -50):
            lease = threads[priority].result()
            assert not any(thread.over for p, thread in threads.items() if p < priority)
            ledger.release(lease)

    def test_lets_those_pass_that_want_other_things(self, ledger: Operations) -> None:
        """The first waits for x and y; who wants y stays behind it, who wants z does not."""
        holder = ledger.register(request("holder", "x.py", limit=3))
        first = queued(ledger, "first", "x.py", "y.py", limit=3)
        behind = queued(ledger, "behind", "y.py", limit=3)
        other = ledger.register(request("other", "z.py", limit=3), wait=True, timeout=5)
        assert not first.over and not behind.over
        ledger.release(holder)
        lease = first.result()
        assert not behind.over
        ledger.release(lease)
        ledger.release(behind.result())
        ledger.release(other)

    def test_nobody_pushes_in(self, ledger: Operations) -> None:
        holder = ledger.register(request("holder", "x.py", limit=5))
        thread = queued(ledger, "w", "x.py", "y.py", limit=5)
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(request("late", "y.py", limit=5))
        assert refused.value.reason == "queue"
        assert [(b.runner_id, b.state) for b in refused.value.blockers] == [("w", "waiting")]
        ledger.release(holder)
        ledger.release(thread.result())

    def test_hands_over_in_the_step_that_frees(self, ledger: Operations) -> None:
        """Between a release and the waiter's waking nobody else can get in."""
        holder = ledger.register(request("holder", limit=1))
        thread = queued(ledger, "w", limit=1)
        ledger.release(holder)
        with pytest.raises(ResourceLimitError) as refused:
            ledger.register(request("late", limit=1))
        assert [blocker.runner_id for blocker in refused.value.blockers] == ["w"]
        lease = thread.result()
        assert lease.record.waited_seconds > 0
        assert lease.record.token == lease.token

    def test_gives_up_after_its_timeout_and_says_why(self, ledger: Operations) -> None:
        holder = ledger.register(request("holder", "x.py"))
        started = time.monotonic()
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(request("w", "x.py"), wait=True, timeout=0.1)
        assert 0.1 <= time.monotonic() - started < 5
        assert refused.value.waited >= 0.1
        assert [blocker.runner_id for blocker in refused.value.blockers] == ["holder"]
        with pytest.raises(ResourceConflictError):
            ledger.register(request("w", "x.py"), wait=True, timeout=0)
        ledger.release(holder)
        ledger.register(request("late", "x.py"))

    def test_whoever_gives_up_holds_nobody_back(self, ledger: Operations, no_ticks: None) -> None:
        ledger.register(request("holder", "x.py"))
        first = queued(ledger, "first", "x.py", "y.py", timeout=0.3)
        second = queued(ledger, "second", "y.py")
        with pytest.raises(Refused):
            first.result()
        started = time.monotonic()
        ledger.release(second.result())
        assert time.monotonic() - started < 20

    def test_tells_what_is_waited_for_and_lets_itself_be_stopped(self, ledger: Operations) -> None:
        holder, heard = ledger.register(request("holder", "x.py")), []
        with pytest.raises(Refused):
            ledger.register(request("w", "x.py"), wait=True, timeout=0.05, on_wait=heard.append)
        assert [refusal.reason for refusal in heard] == ["file"]

        def stop(refusal: Refused) -> None:
            raise refusal

        with pytest.raises(ResourceConflictError):
            ledger.register(request("w", "x.py"), wait=True, on_wait=stop)
        assert ledger.view.waiting == {}
        ledger.release(holder)

    def test_a_lower_own_limit_holds_back_only_who_wants_the_same(self, ledger: Operations) -> None:
        for name in "ab":
            ledger.register(request(name))
        narrow = queued(ledger, "narrow", "x.py", limit=2)
        ledger.register(request("c", "y.py", limit=9))
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(request("d", "x.py", limit=9))
        assert refused.value.reason == "queue" and not narrow.over

    def test_a_raised_limit_admits_at_once_and_a_lowered_one_ends_nobody(self, ledger: Operations) -> None:
        ledger.configure(limit=1)
        first = ledger.register(request("a"))
        threads = [queued(ledger, name) for name in "bc"]
        ledger.configure(limit=3)
        leases = [first, *(thread.result() for thread in threads)]
        ledger.configure(limit=1)
        for lease in leases:
            ledger.renew(lease)
        ledger.release(leases.pop())
        with pytest.raises(ResourceLimitError):
            ledger.register(request("d"))
        for lease in leases:
            ledger.release(lease)
        ledger.register(request("d"))

    def test_a_quota_lets_others_pass(self, ledger: Operations) -> None:
        ledger.configure(quotas={"spec:auth": 1})
        first = ledger.register(request("a", spec_name="auth"))
        second = queued(ledger, "b", spec_name="auth")
        ledger.register(request("c", spec_name="docs"))
        assert not second.over
        ledger.release(first)
        second.result()

    def test_single_quotas_are_changed_beside_the_others(self, ledger: Operations) -> None:
        ledger.configure(quotas={"spec:a": 1, "spec:b": 2})
        ledger.configure(quota={"spec:c": 3})
        ledger.configure(limit=9, quota={"spec:a": None, "spec:b": 4, "spec:never": None})
        with pytest.raises(ConfigError):
            ledger.configure(quota={"spec:c": 0})
        for at in range(4):
            ledger.register(request(f"b{at}", spec_name="b"))
        ledger.register(request("a1", spec_name="a"))
        assert ledger.view.quotas == {"spec:b": 4, "spec:c": 3} and ledger.view.limit == 9

    @pytest.mark.parametrize("terms", [{"limit": 0}, {"limit": -1}, {"limit": True}, {"quotas": {"spec:x": 0}}])
    def test_terms_that_cannot_be_meant_change_nothing(self, ledger: Operations, terms: dict[str, Any]) -> None:
        ledger.configure(limit=1)
        with pytest.raises(ConfigError):
            ledger.configure(**terms)
        ledger.register(request("a"))
        with pytest.raises(ResourceLimitError):
            ledger.register(request("b"))


class TestHolding:
    def test_claims_more_or_nothing(self, ledger: Operations) -> None:
        lease, other = ledger.register(request("a", "a.py")), ledger.register(request("b", "b.py"))
        with pytest.raises(ResourceConflictError) as refused:
            ledger.claim(lease, [file("c.py"), file("b.py")])
        assert refused.value.reason == "file" and lease.claims == (file("a.py"),)
        ledger.claim(lease, [file("c.py"), file("d.py")])
        with pytest.raises(ResourceConflictError):
            ledger.claim(other, [file("c.py")])
        assert set(lease.claims) == {file("a.py"), file("c.py"), file("d.py")}

    def test_gives_back(self, ledger: Operations) -> None:
        lease = ledger.register(request("a", "a.py", "b.py"))
        thread = queued(ledger, "w", "b.py")
        ledger.drop(lease, [file("b.py"), file("never-held.py")])
        thread.result()
        assert lease.claims == (file("a.py"),)

    def test_swaps_in_one_step(self, ledger: Operations) -> None:
        lease = ledger.register(request("a", "a.py"))
        ledger.claim(lease, [file("b.py")], drop=[file("a.py")])
        ledger.register(request("c", "a.py"))
        assert lease.claims == (file("b.py"),)

    def test_a_refused_swap_changes_nothing(self, ledger: Operations) -> None:
        lease = ledger.register(request("a", "a.py"))
        ledger.register(request("b", "b.py"))
        with pytest.raises(ResourceConflictError):
            ledger.claim(lease, [file("b.py")], drop=[file("a.py")])
        assert lease.claims == (file("a.py"),)
        with pytest.raises(ResourceConflictError):
            ledger.register(request("c", "a.py"))

    def test_holders_who_wait_are_served_before_registrations(self, ledger: Operations) -> None:
        blocker, lease = ledger.register(request("blocker", "x.py")), ledger.register(request("a", "a.py"))
        registration = queued(ledger, "w", "x.py", priority=49)
        more = waits_for_more(ledger, lease, "x.py")
        ledger.release(blocker)
        more.result()
        assert file("x.py") in lease.claims and not registration.over
        ledger.renew(lease)
        ledger.release(lease)
        registration.result()

    def test_gives_up_waiting_for_more_and_keeps_what_it_has(self, ledger: Operations) -> None:
        ledger.register(request("blocker", "x.py"))
        lease = ledger.register(request("a", "a.py"))
        with pytest.raises(ResourceConflictError) as refused:
            ledger.claim(lease, [file("x.py")], wait=True, timeout=0.05)
        assert refused.value.waited >= 0.05 and lease.claims == (file("a.py"),)
        ledger.renew(lease)

    def test_names_the_circle_instead_of_waiting_in_it(self, ledger: Operations) -> None:
        a, b, c = (ledger.register(request(name, f"{name}.py")) for name in "abc")
        threads = [waits_for_more(ledger, a, "b.py"), waits_for_more(ledger, b, "c.py")]
        with pytest.raises(Deadlock) as deadlock:
            ledger.claim(c, [file("a.py")], wait=True)
        assert deadlock.value.cycle == ("c", "a", "b", "c")
        ledger.release(c)
        threads[1].result()
        ledger.release(b)
        threads[0].result()

    def test_a_swap_that_resolves_the_circle_is_none(self, ledger: Operations) -> None:
        a, b = (ledger.register(request(name, f"{name}.py")) for name in "ab")
        thread = waits_for_more(ledger, a, "b.py")
        swap = Thread(ledger.claim, b, [file("a.py")], drop=[file("b.py")], wait=True)
        thread.result()
        wait_for(lambda: ledger.view.waiter("b", adding=True))
        ledger.release(a)
        swap.result()
        assert b.claims == (file("a.py"),)

    def test_upgrades_when_the_other_readers_have_gone(self, ledger: Operations) -> None:
        a, b = (ledger.register(request(name, file("x.py", shared=True))) for name in "ab")
        with pytest.raises(ResourceConflictError):
            ledger.claim(a, [file("x.py")])
        thread = waits_for_more(ledger, a, "x.py")
        with pytest.raises(Deadlock) as deadlock:
            ledger.claim(b, [file("x.py")], wait=True)
        assert deadlock.value.cycle == ("b", "a", "b")
        with pytest.raises(ResourceConflictError):
            ledger.register(request("late", file("x.py", shared=True)))
        ledger.release(b)
        thread.result()

    def test_waits_once_for_each_lease(self, ledger: Operations) -> None:
        blocker, lease = ledger.register(request("blocker", "x.py", "y.py")), ledger.register(request("a"))
        thread = waits_for_more(ledger, lease, "x.py")
        with pytest.raises(ResourceConflictError) as refused:
            ledger.claim(lease, [file("y.py")], wait=True)
        assert refused.value.reason == "waiting" and "waits for more already" in str(refused.value)
        ledger.release(blocker)
        thread.result()

    def test_a_release_ends_the_own_wait_for_more(self, ledger: Operations) -> None:
        ledger.register(request("blocker", "x.py"))
        lease = ledger.register(request("a"))
        thread = waits_for_more(ledger, lease, "x.py")
        ledger.release(lease)
        with pytest.raises(LeaseLost):
            thread.result()
        assert ledger.view.waiting == {}

    def test_a_second_release_says_that_it_was_one(self, ledger: Operations) -> None:
        lease = ledger.register(request("a"))
        ledger.release(lease)
        again = ledger.register(request("a"))
        for call in (ledger.release, ledger.renew, lambda old: ledger.claim(old, [file("x.py")])):
            with pytest.raises(LeaseLost) as lost:
                call(lease)
            assert lost.value.ours == lease.token and lost.value.found in (None, again.token)
        ledger.renew(again)

    def test_finds_its_own_leases_by_id(self, ledger: Operations) -> None:
        lease = ledger.register(request("a"))
        assert ledger.find("a") is lease and ledger.find("b") is None  # type: ignore[attr-defined]
        ledger.release(lease)
        assert ledger.find("a") is None  # type: ignore[attr-defined]


class TestFencing:
    @staticmethod
    def silent(ledger: Operations, *claims: Claim | str, **terms: Any) -> Lease:
        """A lease that never renews and is fenced for it."""
        lease = ledger.register(request("silent", *claims, heartbeat_timeout=0.05, **terms))
        wait_for(lambda: ledger.sweep() == 1)
        return lease

    def test_silence_costs_the_slot_and_the_files_but_not_the_sticky_claims(self, ledger: Operations) -> None:
        self.silent(ledger, "x.py", Claim.branch("fix"), Claim.workspace("/w/1"), limit=1)
        ledger.register(request("next", "x.py", limit=1))
        for sticky in (Claim.branch("fix"), Claim.workspace("/w/1/sub")):
            with pytest.raises(ResourceConflictError) as refused:
                ledger.register(request("late", sticky))
            (blocker,) = refused.value.blockers
            assert (blocker.runner_id, blocker.state) == ("silent", "fenced")

    def test_the_fenced_can_do_nothing_more(self, ledger: Operations) -> None:
        lease = self.silent(ledger, "x.py")
        with pytest.raises(LeaseLost):
            ledger.renew(lease)
        with pytest.raises(LeaseLost):
            ledger.claim(lease, [file("y.py")])
        with pytest.raises(LeaseLost):
            ledger.drop(lease, [file("x.py")])
        with pytest.raises(LeaseLost), ledger.publishing(lease):
            pytest.fail("a fenced lease published")
        with pytest.raises(ResourceConflictError):
            ledger.register(request("silent"))
        with pytest.raises(LeaseLost):
            ledger.release(lease)

    def test_its_release_gives_the_sticky_claims_back(self, ledger: Operations) -> None:
        lease = self.silent(ledger, Claim.branch("fix"))
        thread = queued(ledger, "w", Claim.branch("fix"))
        with pytest.raises(LeaseLost):
            ledger.release(lease)
        thread.result()
        ledger.register(request("silent"))

    def test_a_blocker_that_is_silent_is_fenced_on_the_way(self, ledger: Operations) -> None:
        ledger.register(request("silent", "x.py", heartbeat_timeout=0.05))
        lease = ledger.register(request("w", "x.py"), wait=True, timeout=10)
        assert lease.claims == (file("x.py"),)

    def test_renewing_keeps_it_alive(self, ledger: Operations) -> None:
        for scene in unstalled(0.25):
            with scene:
                lease = ledger.register(request("a", heartbeat_timeout=0.5))
                until = time.monotonic() + 1.0
                while scene.step() < until:
                    ledger.renew(lease)
                    assert ledger.sweep() == 0
                    time.sleep(0.01)
            empty(ledger)

    def test_a_waiter_needs_no_heartbeat(self, ledger: Operations) -> None:
        """It stamps while it waits, also with a timeout shorter than the tick, and begins its lease fresh."""
        for scene in unstalled(0.2):
            with scene:
                holder = ledger.register(request("holder", limit=1))
                thread = queued(ledger, "w", limit=1, heartbeat_timeout=0.4)
                until = time.monotonic() + 0.9
                while scene.step() < until:
                    ledger.sweep()
                    time.sleep(0.02)
                ledger.release(holder)
                ledger.sweep()
                ledger.renew(thread.result())
            empty(ledger)

    def test_can_be_ordered(self, ledger: Operations) -> None:
        lease = ledger.register(request("a", "x.py"))
        assert ledger.fence("a") and not ledger.fence("a") and not ledger.fence("nobody")
        with pytest.raises(LeaseLost):
            ledger.renew(lease)

    def test_ends_the_own_wait_for_more(self, ledger: Operations) -> None:
        ledger.register(request("blocker", "x.py"))
        lease = ledger.register(request("a"))
        thread = waits_for_more(ledger, lease, "x.py")
        ledger.fence("a")
        with pytest.raises(LeaseLost):
            thread.result()

    def test_publishing_defers_it(self, ledger: Operations) -> None:
        lease = ledger.register(request("a", heartbeat_timeout=0.05))
        with ledger.publishing(lease) as token:
            assert token == lease.token
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                assert ledger.sweep() == 0 and not ledger.fence("a")
            with ledger.publishing(lease):
                pass
            assert not ledger.fence("a")  # the inner window did not end the outer one
        wait_for(lambda: ledger.sweep() == 1)

    def test_publishing_defers_it_up_to_a_bound(self, ledger: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(liveness, "PUBLISHING_BOUND", 0.1)
        lease = ledger.register(request("a", heartbeat_timeout=0.05))
        with ledger.publishing(lease):
            wait_for(lambda: ledger.sweep() == 1)
        with pytest.raises(LeaseLost):
            ledger.renew(lease)

    def test_releasing_inside_a_window_is_allowed(self, ledger: Operations) -> None:
        lease = ledger.register(request("a"))
        with ledger.publishing(lease):
            ledger.release(lease)
        ledger.register(request("a"))


class TestThreads:
    def test_many_at_one_limit(self, ledger: Operations) -> None:
        inside, most, lock = 0, 0, threading.Lock()

        def work(at: int) -> None:
            nonlocal inside, most
            for turn in range(15):
                lease = ledger.register(request(f"t{at}.{turn}", f"{at % 3}.py", limit=2), wait=True)
                with lock:
                    inside += 1
                    most = max(most, inside)
                ledger.renew(lease)
                with lock:
                    inside -= 1
                ledger.release(lease)

        threads = [Thread(work, at) for at in range(6)]
        for thread in threads:
            thread.result(60)
        assert most <= 2 and not ledger.view.standing and not ledger.view.waiting


class TestOverFiles:
    """Several objects and processes on one directory."""

    def test_two_objects_of_one_process_are_one_party(self, state_root: Path, files: FileLedger) -> None:
        other = FileLedger(state_root)
        lease = files.register(request("a", "x.py", limit=1))
        with pytest.raises(ResourceConflictError):
            other.register(request("b", "x.py"))
        assert other.find("a") is lease
        other.claim(lease, [file("y.py")])
        files.renew(lease)
        other.release(lease)
        with pytest.raises(LeaseLost):
            files.release(lease)
        files.register(request("b", "x.py", limit=1))

    def test_another_process_can_neither_renew_nor_release(self, files: FileLedger, puppet: MakePuppet) -> None:
        one = puppet()
        one.do("register", request("a", "x.py"))
        assert files.find("a") is None
        with pytest.raises(ResourceConflictError) as refused:
            files.register(request("a"))
        assert refused.value.blockers[0].pid == one.pid
        one.do("release", "a")
        files.register(request("a", "x.py"))

    def test_a_dead_holder_never_refuses_anybody(self, files: FileLedger, puppet: MakePuppet) -> None:
        one = puppet()
        one.do("register", request("a", "x.py", Claim.workspace("/w"), limit=1))
        one.kill()
        files.register(request("b", "x.py", Claim.workspace("/w"), limit=1))

    def test_nor_does_a_chain_of_dead(self, files: FileLedger, puppet: MakePuppet) -> None:
        """A dead holder, a dead waiter behind it, and whoever wants what only the waiter wants."""
        holder, waiter = puppet(), puppet()
        holder.do("register", request("holder", "x.py"))
        waiter.begin("register", request("waiter", "x.py", "y.py"), wait=True)
        wait_for(lambda: files.has_waiters())
        waiter.kill()
        holder.kill()
        files.register(request("late", "y.py"))

    def test_a_dead_one_comes_back_under_its_id_and_lives(self, files: FileLedger, puppet: MakePuppet) -> None:
        one = puppet()
        one.do("register", request("a", "x.py"))
        one.kill()
        lease = files.register(request("a", "x.py"))
        files.sweep()
        files.renew(lease)
        assert lifeline.is_held(files.state.live / "a")
        with pytest.raises(ResourceConflictError):
            puppet().do("register", request("b", "x.py"))

    def test_those_who_waited_for_the_dead_come_before_its_successor(
        self, files: FileLedger, puppet: MakePuppet
    ) -> None:
        holder, waiter = puppet(), puppet()
        holder.do("register", request("a", limit=1))
        waiter.begin("register", request("w", limit=1), wait=True)
        wait_for(lambda: files.has_waiters())
        waiter.stop()
        holder.kill()
        with pytest.raises(ResourceLimitError) as refused:
            files.register(request("a", limit=1))
        assert [blocker.runner_id for blocker in refused.value.blockers] == ["w"]
        waiter.go()
        assert waiter.result().runner_id == "w"

    def test_who_is_served_in_front_of_a_newcomer_has_the_smaller_token(
        self, files: FileLedger, puppet: MakePuppet, state_root: Path
    ) -> None:
        """Tokens grow with every grant, also when the newcomer's own arrival found out about the dead."""
        holder, waiter = puppet(), puppet()
        holder.do("register", request("a", "x.py"))
        waiter.begin("register", request("w", limit=1), wait=True)
        wait_for(lambda: files.has_waiters())
        waiter.stop()
        holder.kill()
        newcomer = files.register(request("n", "x.py"))
        check(state_root)
        waiter.go()
        assert waiter.result().token < newcomer.token

    def test_a_dead_waiter_holds_nobody_back(self, files: FileLedger, puppet: MakePuppet) -> None:
        holder = files.register(request("holder", "x.py"))
        dead, alive = puppet(), puppet()
        dead.begin("register", request("dead", "x.py"), wait=True)
        wait_for(lambda: len(os.listdir(files.state.queue)) == 1)
        alive.begin("register", request("alive", "x.py"), wait=True)
        wait_for(lambda: len(os.listdir(files.state.queue)) == 2)
        dead.kill()
        files.release(holder)
        assert alive.result().runner_id == "alive"

    def test_an_interrupted_waiter_leaves_nothing(self, files: FileLedger, puppet: MakePuppet) -> None:
        holder = files.register(request("holder", "x.py"))
        one = puppet()
        one.begin("register", request("w", "x.py"), wait=True)
        wait_for(lambda: files.has_waiters())
        one.interrupt()
        with pytest.raises(KeyboardInterrupt):
            one.result()
        files.release(holder)
        assert [os.listdir(files.state.root / f) for f in ("runners", "queue", "live", "bells", "tmp")] == [[]] * 5

    def test_an_interrupted_wait_for_more_keeps_the_lease(self, files: FileLedger, puppet: MakePuppet) -> None:
        files.register(request("holder", "x.py"))
        one = puppet()
        one.do("register", request("a", "a.py"))
        one.begin("claim", "a", [file("x.py")], wait=True)
        wait_for(lambda: files.has_waiters())
        one.interrupt()
        with pytest.raises(KeyboardInterrupt):
            one.result()
        assert not files.has_waiters() and os.listdir(files.state.bells) == []
        one.do("renew", "a")
        one.do("claim", "a", [file("b.py")])

    def test_a_forked_child_holds_and_can_do_nothing(self, files: FileLedger, puppet: MakePuppet) -> None:
        """Mode `process`: the lease ends with the process that registered, whatever it forked."""
        one = puppet()
        one.do("register", request("a", "x.py", limit=1))
        child = one.do("fork", 60)
        try:
            one.kill()
            # The child lets go of its copy as soon as it runs for the first time.
            files.register(request("b", "x.py", limit=1), wait=True, timeout=20)
        finally:
            os.kill(child, signal.SIGKILL)

    def test_a_forked_child_cannot_release_for_its_parent(self, files: FileLedger) -> None:
        from actors import run_clean

        assert run_clean(_release_in_a_child, str(files.state.root)) == ["LeaseLost"] * 3

    def test_a_tree_holds_until_its_last_process(self, files: FileLedger) -> None:
        """Mode `tree`: the agent that inherited the lifeline keeps slot, files and workspace when the runner dies, also
        when there has been no heartbeat for long: nobody is left to give one."""
        code = (
            "import os, subprocess, sys\n"
            "from necrocode.claim import Claim\n"
            "from necrocode.lease import Request\n"
            "from necrocode.ledger.files import FileLedger\n"
            "claims = (Claim.workspace('/w'), Claim.file('a.py'))\n"
            "request = Request('a', claims, limit=1, tree=True, heartbeat_timeout=0.05)\n"
            "lease = FileLedger(sys.argv[1]).register(request)\n"
            "agent = subprocess.Popen(['sleep', '60'], pass_fds=[lease.lifeline], stdout=subprocess.DEVNULL)\n"
            "print(agent.pid, flush=True)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        runner = subprocess.run(
            [sys.executable, "-c", code, str(files.state.root)], stdout=subprocess.PIPE, check=False
        )
        agent = int(runner.stdout)
        try:
            assert runner.returncode == -signal.SIGKILL
            life = files.state.live / "a"
            wait_for(lambda: (lifeline.look(life, time.monotonic()).silent or 0.0) > 0.1)
            with pytest.raises(ResourceLimitError):
                files.register(request("b", limit=1))
            for held in (Claim.workspace("/w"), Claim.file("a.py")):
                with pytest.raises(ResourceConflictError):
                    files.register(request("b", held))
            assert files.sweep() == 0
            seen = files.snapshot()
            assert (seen.live, seen.runners[0].liveness, seen.undone) == (1, "alive", False)
        finally:
            os.kill(agent, signal.SIGKILL)
        files.register(request("b", Claim.workspace("/w"), limit=1), wait=True, timeout=10)

    def test_the_state_directory_taken_away_costs_the_lease(self, files: FileLedger) -> None:
        """Also when somebody else has the same id and token in the new one."""
        lease = files.register(request("a", "x.py"))
        shutil.rmtree(files.state.root)
        with pytest.raises(LeaseLost):
            files.renew(lease)
        other = FileLedger(files.state.root)
        assert other.register(request("a", "x.py")).token == lease.token
        for call in (files.renew, lambda old: files.claim(old, [file("y.py")]), files.release):
            with pytest.raises(LeaseLost):
                call(lease)
        with pytest.raises(ResourceConflictError):
            files.register(request("b", "x.py"))

    def test_a_folder_that_is_removed_costs_nobody_its_place(self, state_root: Path, puppet: MakePuppet) -> None:
        ledger, waiter = FileLedger(state_root), puppet(TICK="0.05")
        lease = ledger.register(request("holder", "x.py"))
        waiter.begin("register", request("waiter", "x.py"), wait=True)
        wait_for(lambda: ledger.has_waiters())
        for _ in range(2):
            shutil.rmtree(state_root / "fenced")
            wait_for(lambda: (state_root / "fenced").is_dir())
        ledger.release(lease)
        assert waiter.result().token > lease.token

    def test_a_lease_is_only_lost_when_the_gate_says_so(
        self, state_root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where thousands stand, one listing can miss a record that is rewritten meanwhile: both of its names."""
        ledger = FileLedger(state_root)
        lease = ledger.register(request("a", "x.py"))
        ledger.claim(lease, [file("y.py")])
        lease.revision -= 1  # as this thread still has it, while another one claims
        listed = os.listdir

        def missing(path: str) -> list[str]:
            monkeypatch.setattr(os, "listdir", listed)
            return [name for name in listed(path) if not name.startswith("a.")]

        monkeypatch.setattr(os, "listdir", missing)
        ledger.renew(lease)
        assert lease.revision == 1

    def test_names_who_keeps_the_gate_shut(self, state_root: Path, puppet: MakePuppet) -> None:
        from filelock import FileLock

        FileLedger(state_root).release(FileLedger(state_root).register(request("a")))
        with FileLock(str(state_root / "lock"), is_singleton=False), pytest.raises(GateTimeout) as shut:
            FileLedger(state_root, patience=0.05).register(request("b"))
        assert shut.value.seconds == 0.05
        assert os.listdir(state_root / "tmp") == []

    def test_can_kill_whoever_falls_silent(self, state_root: Path, puppet: MakePuppet) -> None:
        one = puppet()
        one.do("register", request("silent", Claim.workspace("/w"), heartbeat_timeout=0.05))
        ledger = FileLedger(state_root, on_stale="kill")
        ledger.register(request("next", Claim.workspace("/w")), wait=True, timeout=10)

    def test_events_tell_what_happened(self, files: FileLedger, puppet: MakePuppet) -> None:
        from necrocode import journal

        one = puppet()
        one.do("register", request("a", "x.py", task_id="13"))
        with pytest.raises(ResourceConflictError):
            files.register(request("b", "x.py"))
        one.kill()
        files.release(files.register(request("b", "x.py")))
        told = [(event.kind, event.runner_id) for event in journal.read(files.state.events)]
        assert told == [
            ("lease.granted", "a"),
            ("lease.refused", "b"),
            ("lease.reaped", "a"),
            ("lease.granted", "b"),
            ("lease.released", "b"),
        ]

    def test_a_record_that_can_be_read_again_is_in_nobodys_way(self, files: FileLedger, state_root: Path) -> None:
        """As when somebody takes away the right to read it, and gives it back: no listing tells of that."""
        FileLedger(state_root).register(request("a", "a.py"))
        (record,) = (state_root / "runners").iterdir()
        before, aside = os.stat(state_root / "runners"), state_root / "tmp" / "aside"
        record.rename(aside)
        record.symlink_to(aside)
        thread = queued(files, "b", "b.py")
        assert files.view.unreadable == {"a"}
        aside.replace(record)
        os.utime(state_root / "runners", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert thread.result().claims == (file("b.py"),)
        check(state_root)


@pytest.mark.parametrize("how", ["removed", "damaged and its holder dead"])
def test_what_is_freed_by_hand_is_given_on_by_whoever_comes_next(
    files: FileLedger, state_root: Path, puppet: MakePuppet, how: str
) -> None:
    """Also by one who is refused itself: the watchman believes that what was seen in the gate was followed up."""
    holder, waiter = puppet(), puppet(ROUND="300", TICK="300")
    holder.do("register", request("holder", "a"))
    files.register(request("other", "b"))
    waiter.begin("register", request("waiter", "a"), wait=True)
    wait_for(files.has_waiters)
    time.sleep(0.2)  # it sleeps
    (record,) = (state_root / "runners").glob("holder.*")
    if how == "removed":
        record.unlink()
    else:
        (state_root / "live" / "holder").unlink()  # so that the watchman does not hear of its death
        holder.kill()
        record.write_text("{")
        files = FileLedger(state_root)  # for which the record is new
    with pytest.raises(ResourceConflictError):
        files.register(request("third", "b"))
    assert waiter.result(within=10).runner_id == "waiter"


def test_who_is_far_behind_does_not_read_the_line_at_every_tick(
    files: FileLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands each would read thousands; but it does when the one ahead of it is gone, and is served in turn."""
    monkeypatch.setattr(waiting, "_FAR", 1)
    monkeypatch.setattr(waiting, "_TICK", 0.02)
    read: Counter[str] = Counter()
    follow = waiting.Wait._follow_predecessor
    monkeypatch.setattr(
        waiting.Wait, "_follow_predecessor", lambda wait, line: (read.update([wait._runner_id]), follow(wait, line))
    )
    holder = files.register(request("holder", "a"))
    near, gone, far = (queued(files, name, "a") for name in ("near", "gone", "far"))
    wait_for(lambda: read["near"] >= 24)
    assert read["far"] < 8
    assert files.withdraw("gone")
    seen = read["far"]
    wait_for(lambda: read["far"] > seen)
    files.release(holder)
    files.release(near.result())
    assert far.result().runner_id == "far"
    assert not gone.over or gone.error


def test_quotas_set_at_one_moment_are_all_there(state_root: Path, puppet: MakePuppet) -> None:
    """Each is changed inside the gate, beside whatever the others have said meanwhile."""
    parties = [puppet() for _ in range(4)]
    for turn in range(10):
        for at, party in enumerate(parties):
            party.begin("configure", quota={f"spec:s{turn}-{at}": turn + 1})
        for party in parties:
            party.result()
    assert len(FileLedger(state_root).snapshot().quotas) == 40


def _release_in_a_child(root: str) -> list[str]:
    ledger = FileLedger(root)
    lease = ledger.register(request("a", "x.py"))
    ours, theirs = os.pipe()
    if os.fork() == 0:
        for call in (ledger.renew, lambda held: ledger.claim(held, [file("y.py")]), ledger.release):
            try:
                call(lease)
                os.write(theirs, b"allowed ")
            except NecrocodeError as error:
                os.write(theirs, type(error).__name__.encode() + b" ")
        os._exit(0)
    os.wait()
    ledger.renew(lease)
    assert lifeline.is_held(ledger.state.live / "a")
    ledger.release(lease)
    return os.read(ours, 999).decode().split()


class TestReading:
    def test_a_snapshot_says_who_holds_and_who_waits_for_what(self, files: FileLedger) -> None:
        holder = files.register(request("holder", "x.py", limit=2))
        threads = [queued(files, "w1", "x.py"), queued(files, "w2", "x.py"), queued(files, "w3", limit=1)]
        seen = files.snapshot()
        assert seen.consistent and seen.live == 1 and not seen.undone
        assert [(s.record.runner_id, s.token, s.state, s.liveness) for s in seen.runners] == [
            ("holder", holder.token, "running", "alive")
        ]
        waiting = [(w.record.runner_id, w.position, w.reason, [b.runner_id for b in w.blockers]) for w in seen.waiting]
        assert waiting == [("w1", 1, "file", ["holder"]), ("w2", 2, "file", ["holder"]), ("w3", 3, "limit", ["holder"])]
        files.release(holder)
        for thread in threads:
            files.release(thread.result())

    def test_it_counts_neither_the_dead_nor_the_silent_and_repairs_nothing(
        self, files: FileLedger, puppet: MakePuppet
    ) -> None:
        files.register(request("silent", heartbeat_timeout=0.01))
        one = puppet()
        one.do("register", request("dead"))
        one.kill()
        wait_for(lambda: files.snapshot().live == 0)
        seen = files.snapshot()
        assert {s.record.runner_id: s.liveness for s in seen.runners} == {"silent": "silent", "dead": "dead"}
        assert seen.undone and len(os.listdir(files.state.runners)) == 2

    def test_it_needs_no_gate(self, files: FileLedger) -> None:
        from filelock import FileLock

        files.register(request("a"))
        with FileLock(str(files.state.lock), is_singleton=False):
            assert files.snapshot().live == 1

    def test_watching_tells_of_each_change(self, files: FileLedger) -> None:
        watch = files.watch(every=0.01)
        assert next(watch).live == 0
        lease = files.register(request("a"))
        assert next(watch).live == 1
        files.release(lease)
        assert next(watch).live == 0


def test_what_is_granted_at_once_leaves_no_bell_behind(state_root: Path) -> None:
    """Registering with wait, again and again, without ever having to wait."""
    ledger = FileLedger(state_root)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        ledger.release(ledger.register(Request("again"), wait=True))
    assert os.listdir(ledger.state.tmp) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 3
