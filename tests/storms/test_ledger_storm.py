"""Many processes against one state directory: what one may have, one has; nobody is forgotten; nothing is left over.

An oracle of kernel locks that knows nothing of the ledger watches, the checker looks on without taking the gate, and
both are shown to see a ledger fail that is broken on purpose."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import ledger_storm
import pytest
from actors import Puppet, run_clean

from necrocode.claim import Claim
from necrocode.errors import LeaseLost, ResourceConflictError
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.testing import check, wait_for

MakePuppet = Callable[..., Puppet]


@pytest.mark.parametrize(
    ("claims", "limit", "winners"),
    [
        pytest.param((), 3, 3, id="a limit"),
        pytest.param((Claim.workspace("/w/one"),), None, 1, id="a workspace"),
        pytest.param((Claim.branch("feature/one"),), None, 1, id="a branch"),
        pytest.param((Claim.file("src/**"), Claim.branch("fix")), 3, 1, id="files and a branch within a limit"),
    ],
)
def test_eight_race_two_hundred_times(
    state_root: Path, claims: tuple[Claim, ...], limit: int | None, winners: int
) -> None:
    """As the original lost count of its limit and let one branch be held twice: in each round exactly so many win."""
    moments = run_clean(ledger_storm.race, str(state_root / "state"), claims, limit, winners, 8, 200)
    assert moments > 0
    assert check(state_root / "state")


def test_three_hundred_at_one_gate(state_root: Path) -> None:
    assert run_clean(ledger_storm.crowd, str(state_root / "state"), 300, 4) > 200


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_any_moment(state_root: Path, seed: int) -> None:
    """Also of whoever writes a record, as the original left some that nobody could read."""
    counts = run_clean(ledger_storm.havoc, str(state_root / "state"), 4.0, seed)
    assert counts["violation"] == 0, (state_root / "state" / "trouble").read_text()
    assert counts["left"] == counts["lost"] == 0
    assert counts["granted"] > 20 and counts["killed"] > 10 and counts["moments"] > 5


def test_what_is_believed_is_what_lies_there(state_root: Path) -> None:
    """Whoever comes in believes the ring, or the listings when that cannot be believed: both say the same."""
    counts = run_clean(ledger_storm.compared_havoc, str(state_root / "state"), 4.0, 3)
    assert not (state_root / "state" / "trouble").exists(), (state_root / "state" / "trouble").read_text()
    assert counts["violation"] == counts["left"] == 0
    assert counts["granted"] > 20 and counts["killed"] > 10


def test_records_placed_and_removed_by_hand(state_root: Path) -> None:
    counts = run_clean(ledger_storm.meddle, str(state_root / "state"), 3.0, 1)
    assert counts["violation"] == counts["stale"] == 0
    assert counts["granted"] > 5 and counts["refused"] > 5 and counts["placed"] > 5


def test_the_revoked_do_nothing(state_root: Path) -> None:
    assert run_clean(ledger_storm.zombies, str(state_root / "state")) == {"refused": 20}


@pytest.mark.parametrize("how", ledger_storm.MUTANTS)
def test_a_broken_ledger_is_seen(state_root: Path, how: str) -> None:
    assert run_clean(ledger_storm.storm_of, how, str(state_root / "state"), 15.0, 3) > 0


class TestSleepers:
    def test_stopped_for_longer_than_the_heartbeat_allows_and_woken_again(
        self, state_root: Path, puppet: MakePuppet
    ) -> None:
        """Slot and files go on to the waiter, workspace and branch stay; the sleeper finds its lease lost."""
        sleeper, waiter = puppet(), puppet()
        place, branch = Claim.workspace("/w/1"), Claim.branch("fix")
        claims = (Claim.file("x.py"), place, branch)
        sleeper.do("register", Request("sleeper", claims, limit=1, heartbeat_timeout=5.0))
        sleeper.do("renew", "sleeper")
        sleeper.stop()
        granted = waiter.do("register", Request("waiter", (Claim.file("x.py"),), limit=1), wait=True, timeout=30)
        assert granted.waited_seconds > 0.1
        for sticky in (place, branch):
            with pytest.raises(ResourceConflictError) as refused:
                waiter.do("claim", "waiter", [sticky])
            assert refused.value.blockers[0].state == "fenced"
        sleeper.go()
        for what in (("renew", "sleeper"), ("claim", "sleeper", [Claim.file("y.py")]), ("drop", "sleeper", [branch])):
            with pytest.raises(LeaseLost):
                sleeper.do(*what)
        assert sleeper.do("publish", "sleeper") == "lost"
        with pytest.raises(LeaseLost):
            sleeper.do("release", "sleeper")
        waiter.do("claim", "waiter", [place, branch])
        assert check(state_root)

    def test_one_who_never_wakes_gives_the_rest_back_when_it_dies(self, state_root: Path, puppet: MakePuppet) -> None:
        sleeper, ledger = puppet(), FileLedger(state_root)
        sleeper.do("register", Request("sleeper", (Claim.workspace("/w/1"),), heartbeat_timeout=0.05))
        sleeper.stop()
        wait_for(lambda: ledger.sweep() == 1)
        with pytest.raises(ResourceConflictError):
            ledger.register(Request("next", (Claim.workspace("/w/1"),)))
        sleeper.kill()
        ledger.register(Request("next", (Claim.workspace("/w/1"),)))

    def test_a_waiter_that_sleeps_keeps_its_place_until_it_is_silent_with_the_slot(
        self, state_root: Path, puppet: MakePuppet
    ) -> None:
        ledger, sleeper, next_one = FileLedger(state_root), puppet(), puppet()
        holder = ledger.register(Request("holder", limit=1))
        sleeper.begin("register", Request("sleeper", limit=1, heartbeat_timeout=0.6), wait=True)
        wait_for(ledger.has_waiters)
        next_one.begin("register", Request("next", limit=1), wait=True)
        wait_for(lambda: len(os.listdir(state_root / "queue")) == 2)
        sleeper.stop()
        ledger.release(holder)
        assert next_one.result().runner_id == "next"
        sleeper.go()
        with pytest.raises(LeaseLost):
            sleeper.result()
        assert check(state_root)


def test_two_time_zones_see_each_other_right(state_root: Path, puppet: MakePuppet) -> None:
    east, west = puppet(TZ="Pacific/Kiritimati"), puppet(TZ="Pacific/Pago_Pago")  # 25 hours apart
    east.do("register", Request("east", (Claim.file("x.py"),), heartbeat_timeout=60))
    west.do("register", Request("west", heartbeat_timeout=60))
    for party in (east, west):
        seen = party.do("snapshot")
        assert {one.record.runner_id: one.liveness for one in seen.runners} == {"east": "alive", "west": "alive"}
        for one in seen.runners:
            for moment in (one.record.start_time, one.record.last_heartbeat):
                assert moment.tzinfo == UTC and abs((datetime.now(UTC) - moment).total_seconds()) < 60
        assert party.do("sweep") == 0
    with pytest.raises(ResourceConflictError):
        west.do("claim", "west", [Claim.file("x.py")])
    east.kill()
    west.do("claim", "west", [Claim.file("x.py")])


def test_holders_and_watchmen_killed_one_after_another(state_root: Path, puppet: MakePuppet) -> None:
    """Whoever is first in line watches over the holder; each is killed in its turn, the last is served."""
    parties = [puppet(TICK="300") for _ in range(5)]
    parties[0].do("register", Request("w0", limit=1))
    for at, party in enumerate(parties[1:], 1):
        party.begin("register", Request(f"w{at}", limit=1), wait=True)
        wait_for(lambda at=at: len(os.listdir(state_root / "queue")) == at)
    parties[1].kill()
    parties[0].kill()
    assert parties[2].result().runner_id == "w2"
    for one in (parties[2], parties[3]):
        one.signal(signal.SIGKILL)
    assert parties[4].result().runner_id == "w4"
    assert check(state_root)


def test_no_wake_ups_while_nothing_happens(state_root: Path, puppet: MakePuppet) -> None:
    """Waiters sleep in the kernel: between ticks they use no processor time at all."""
    FileLedger(state_root).register(Request("holder", limit=1))
    parties = [puppet(TICK="300") for _ in range(4)]
    for at, party in enumerate(parties):
        party.begin("register", Request(f"w{at}", limit=1), wait=True)
    wait_for(lambda: len(os.listdir(state_root / "queue")) == len(parties))

    def told(word: str) -> list[list[str]]:
        status = [Path(f"/proc/{party.pid}/status").read_text().splitlines() for party in parties]
        return [[line for line in lines if word in line] for lines in status]

    def switches() -> list[list[str]]:
        return told("ctxt_switches")

    def settled() -> bool:
        """They sleep: one that waits for a processor is not switched either."""
        before = switches()
        time.sleep(0.3)
        return all(line.split()[1] == "S" for (line,) in told("State:")) and before == switches()

    wait_for(settled)
    before = switches()
    time.sleep(1.0)
    assert switches() == before
