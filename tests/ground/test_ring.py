"""The ring of recent changes: whoever is in step lists no folder, and nothing that happens outside it is overlooked."""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from actors import run_clean

from necrocode.claim import Claim
from necrocode.errors import LeaseLost, ResourceConflictError
from necrocode.lease import Lease, Request
from necrocode.ledger import book, ring
from necrocode.ledger.files import FileLedger
from necrocode.ledger.ring import CAPACITY, START, Header
from necrocode.testing import check


def request(runner_id: str, *paths: str) -> Request:
    return Request(runner_id, tuple(map(Claim.file, paths)))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed on the way into the gate."""
    names: list[str] = []

    class Os:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def listdir(self, path: str) -> list[str]:
            names.append(os.path.basename(path))
            return os.listdir(path)

    monkeypatch.setattr(book, "os", Os())
    monkeypatch.setattr(ring, "_EVERY", 1000.0)
    return names


@pytest.fixture
def pair(state_root: Path, listed: list[str]) -> Iterator[tuple[FileLedger, FileLedger]]:
    """Two who are in step: each has seen everything, and has said so in the ring."""
    ours, theirs = FileLedger(state_root), FileLedger(state_root)
    for ledger in (ours, theirs, ours):
        ledger.sweep()
    listed.clear()
    yield ours, theirs
    check(state_root, lowered=True)


Pair = tuple[FileLedger, FileLedger]


def record_of(lease: Lease) -> str:
    return f"runners/{lease.runner_id}.{lease.token}.{lease.revision}.json"


def header(ledger: FileLedger) -> Header:
    found = Header.parse(ledger.state.lock.read_bytes()[START - ring.WIDTH : START])
    assert found
    return found


def place_by_hand(root: Path, runner_id: str, path: str) -> int:
    """A record of somebody who lives, as nobody wrote it: its lifeline."""
    import fcntl

    life = os.open(root / "live" / runner_id, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(life, fcntl.LOCK_EX)
    os.write(life, f"{time.monotonic():017.6f} - {0:017.6f}\n".encode())
    (root / "runners" / f"{runner_id}.1.0.json").write_text(record_text(runner_id, path))
    return life


def record_text(runner_id: str, path: str) -> str:
    value = {
        "schema": 1, "runner_id": runner_id, "task_id": "", "spec_name": "", "workspace_path": "",
        "start_time": "2026-01-01T00:00:00+00:00", "last_heartbeat": "2026-01-01T00:00:00+00:00",
        "claims": [["file:", path, "exclusive"]], "slot": False,
    }  # fmt: skip
    return json.dumps(value)


class TestInStep:
    def test_nothing_is_listed(self, pair: Pair, listed: list[str]) -> None:
        for turn in range(20):
            ledger = pair[turn % 2]
            lease = ledger.register(request(f"r{turn}", f"{turn}.py"))
            ledger.claim(lease, [Claim.file("more.py")])
            ledger.drop(lease, [Claim.file("more.py")])
            ledger.release(lease)
        assert listed == []

    def test_what_the_other_did_is_known(self, pair: Pair, listed: list[str]) -> None:
        ours, theirs = pair
        lease = ours.register(request("a", "a.py"))
        ours.claim(lease, [Claim.file("b.py")])
        for path in ("a.py", "b.py"):
            with pytest.raises(ResourceConflictError):
                theirs.register(request("b", path))
        ours.drop(lease, [Claim.file("a.py")])
        theirs.release(theirs.register(request("b", "a.py")))
        ours.release(lease)
        theirs.register(request("c", "b.py"))
        assert listed == [] and [*theirs.view.standing] == ["c"]

    def test_so_is_who_was_fenced_and_who_waits(self, pair: Pair, listed: list[str]) -> None:
        ours, theirs = pair
        ours.register(Request("a", (Claim.workspace("/w"), Claim.file("x.py"))))
        ours.fence("a")
        theirs.register(request("b", "x.py"))
        with pytest.raises(ResourceConflictError) as refused:
            theirs.register(Request("c", (Claim.workspace("/w"),)))
        assert refused.value.blockers[0].state == "fenced"
        assert listed == []

    def test_a_newcomer_lists_once(self, pair: Pair, listed: list[str]) -> None:
        lease = pair[0].register(request("a", "a.py"))
        late = FileLedger(pair[0].state.root)
        with pytest.raises(ResourceConflictError):
            late.register(request("b", "a.py"))
        assert listed == ["runners", "fenced", "queue"]
        pair[1].register(request("c", "c.py"))
        pair[0].release(lease)
        late.register(request("b", "a.py"))
        assert len(listed) == 3

    def test_people_can_read_it(self, pair: Pair) -> None:
        lease = pair[0].register(request("a", "a.py"))
        lines = pair[0].state.lock.read_text().splitlines()
        assert lines[1].startswith("free ") and lines[2].startswith("ring ")
        assert lines[-1] == f"{len(lines) - 3} + {record_of(lease)}"


class TestTheListingIsTheTruth:
    """Whoever was in step notices what has not gone through the gate, at once."""

    def test_a_record_removed_by_hand(self, pair: Pair) -> None:
        ours, theirs = pair
        lease = ours.register(request("a", "x.py"))
        theirs.sweep()
        (ours.state.root / record_of(lease)).unlink()
        theirs.register(request("b", "x.py"))
        with pytest.raises(LeaseLost):
            ours.claim(lease, [Claim.file("y.py")])

    def test_a_record_placed_by_hand(self, pair: Pair) -> None:
        ours, theirs = pair
        life = place_by_hand(ours.state.root, "foreign", "x.py")
        for ledger in (ours, theirs):
            with pytest.raises(ResourceConflictError) as refused:
                ledger.register(request("b", "x.py"))
            assert refused.value.blockers[0].runner_id == "foreign"
        os.close(life)
        theirs.register(request("b", "x.py"))

    def test_on_a_kernel_whose_clock_stands_still_for_some_ms(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All changes within one tick leave one time: also those of a pass and of a hand right after it."""
        now = time.time_ns()

        class Os:
            """Every change of a folder is of now; only who sets a time sets another."""

            def __getattr__(self, name: str) -> object:
                return getattr(os, name)

            def stat(self, path: str) -> os.stat_result:
                if os.stat(path).st_mtime_ns not in own:
                    os.utime(path, ns=(now, now))
                return os.stat(path)

            def utime(self, path: str, *, ns: tuple[int, int]) -> None:
                own.add(ns[1])
                os.utime(path, ns=ns)

        own = {now}
        monkeypatch.setattr(ring, "os", Os())
        ours, theirs = pair
        lease = ours.register(request("a", "x.py"))
        (ours.state.root / record_of(lease)).unlink()
        theirs.register(request("b", "x.py"))
        life = place_by_hand(ours.state.root, "foreign", "y.py")
        for ledger in (ours, theirs):
            with pytest.raises(ResourceConflictError):
                ledger.register(request("c", "y.py"))
        os.close(life)

    def test_a_folder_of_somebody_else_whose_time_cannot_be_set(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch, listed: list[str]
    ) -> None:
        def refuse(path: str, *, ns: tuple[int, int]) -> None:
            raise PermissionError(errno.EPERM, "not yours")

        monkeypatch.setattr(ring.os, "utime", refuse)
        lease = pair[0].register(request("a", "x.py"))
        (pair[0].state.root / record_of(lease)).unlink()
        pair[1].register(request("b", "x.py"))
        assert listed

    @pytest.mark.parametrize("how", ["it died inside", "an earlier version", "another boot"])
    def test_a_pass_that_did_not_write_into_the_ring(self, pair: Pair, how: str) -> None:
        """Even if the folders bear the same times as before."""
        ours, theirs = pair
        lease = ours.register(request("a", "x.py"))
        theirs.sweep()
        runners = ours.state.root / "runners"
        before, lock = os.stat(runners), ours.state.lock.read_bytes()
        (ours.state.root / record_of(lease)).unlink()
        os.utime(runners, ns=(before.st_atime_ns, before.st_mtime_ns))
        generation = int(lock[64:160].split()[1])
        with ours.state.lock.open("r+b") as file:
            file.seek(64)
            if how == "it died inside":
                file.write(f"held {generation + 1} pid=1 op=release mono=1.0".ljust(95).encode() + b"\n")
            elif how == "an earlier version":
                file.write(f"free {generation + 1}".ljust(95).encode() + b"\n")
            else:
                file.seek(21)
                file.write(b"another-boot".ljust(42))
        theirs.register(request("b", "x.py"))

    @pytest.mark.parametrize("damage", [b"", b"\0" * 500, b"x" * 5000, "lines", "header", "cut"])
    def test_a_damaged_lock_file(self, pair: Pair, damage: bytes | str) -> None:
        ours, theirs = pair
        lease = ours.register(request("a", "x.py"))
        other = ours.register(request("o", "o.py"))
        text = bytearray(ours.state.lock.read_bytes())
        if damage == "lines":
            text[START:] = b"\0" * (len(text) - START)
        elif damage == "header":
            text[200:210] = b"0123456789"
        elif damage == "cut":
            del text[-20:]
        elif isinstance(damage, bytes):
            text = bytearray(damage)
        ours.state.lock.write_bytes(text)
        with pytest.raises(ResourceConflictError):
            theirs.register(request("b", "x.py"))
        ours.release(lease)
        theirs.register(request("b", "x.py"))
        ours.release(other)

    def test_a_lock_file_of_an_earlier_version(self, pair: Pair) -> None:
        ours, theirs = pair
        ours.register(request("a", "x.py"))
        os.truncate(ours.state.lock, 160)
        with pytest.raises(ResourceConflictError):
            theirs.register(request("b", "x.py"))

    def test_a_change_by_hand_in_the_moment_of_a_pass_is_noticed_within_a_second(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The pass changes the folder, too, and leaves its own time there."""
        ours, theirs = pair
        monkeypatch.setattr(ring, "_EVERY", 0.2)
        schedule, life = ours._schedule, []
        ours._schedule = lambda: (life.append(place_by_hand(ours.state.root, "foreign", "x.py")), schedule())  # type: ignore[method-assign]
        lease = ours.register(request("a", "a.py"))
        ours.release(lease)
        ours._schedule = schedule  # type: ignore[method-assign]
        time.sleep(0.25)  # not awaited: the time after which it has to be known
        for ledger in (theirs, ours):
            with pytest.raises(ResourceConflictError):
                ledger.register(request("b", "x.py"))
        for descriptor in life:
            os.close(descriptor)

    def test_names_that_are_none_are_set_aside_for_everybody(self, pair: Pair) -> None:
        ours, theirs = pair
        for name in ("a b\n.1.0.json", "é.1.0.json", "nonsense", "x\nfree 9"):
            (ours.state.root / "runners" / name).write_text("{}")
        for ledger in (theirs, ours, theirs):
            ledger.release(ledger.register(request("b", "x.py")))
        assert os.listdir(ours.state.root / "runners") == []
        assert len(os.listdir(ours.state.root / "quarantine")) == 4


def test_two_thousand_leases_cost_as_many_calls_as_ten(tmp_path: Path, listed: list[str]) -> None:
    """Counted, not timed: nothing on the way to a grant, a claim or a release looks at every lease."""
    few, many = (_calls_beside(tmp_path / str(live), live) for live in (10, 2_000))
    assert many <= few * 1.05 and few > 100


def _calls_beside(root: Path, live: int) -> int:
    ours, theirs = FileLedger(root), FileLedger(root)
    for at in range(live):
        record = record_text(f"r{at}", f"src/{at}.py")
        (root / "runners" / f"r{at}.{at + 1}.0.json").write_text(record)
    for ledger in (ours, theirs, ours):
        ledger.release(ledger.register(request("warm", "x.py")))
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # finalizers of whatever are no calls of ours
    sys.setprofile(count)
    try:
        for ledger, other in ((ours, theirs), (theirs, ours)):
            lease = ledger.register(request("bench", "x.py"))
            other.claim(lease, [Claim.file("y.py")])
            ledger.drop(lease, [Claim.file("x.py")])
            other.release(lease)
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


class TestTheEndOfTheRing:
    def test_who_is_far_behind_lists(self, pair: Pair, listed: list[str]) -> None:
        ours, theirs = pair
        kept = ours.register(request("kept", "kept.py"))
        for turn in range(CAPACITY // 30):
            ours.release(ours.register(request(f"r{turn}", "x.py")))
        assert len(ours.state.lock.read_bytes()) <= START + CAPACITY
        assert header(ours).first > 2
        assert listed == []
        with pytest.raises(ResourceConflictError):
            theirs.register(request("late", "kept.py"))
        assert listed == ["runners", "fenced", "queue"]
        ours.release(kept)

    def test_who_comes_often_enough_never_does(self, pair: Pair, listed: list[str]) -> None:
        ours, theirs = pair
        for turn in range(CAPACITY // 30):
            lease = ours.register(request(f"r{turn}", "x.py"))
            if turn % 40 == 0:
                with pytest.raises(ResourceConflictError):
                    theirs.register(request("late", "x.py"))
            ours.release(lease)
        assert listed == []

    def test_more_at_once_than_it_holds(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ring, "CAPACITY", 400)
        ours, theirs = pair
        leases = [ours.register(request(f"r{at}", f"{at}.py")) for at in range(30)]
        theirs.sweep()
        for lease in leases:
            os.close(lease.lifeline or -1)
            lease.lifeline = None
        assert ours.sweep() == 30
        assert [*theirs.register(request("x")).claims] == [] and [*theirs.view.standing] == ["x"]

    def test_a_full_disk_keeps_nobody_from_releasing(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = pair
        lease = ours.register(request("a", "x.py"))
        theirs.sweep()

        class Full:
            def __getattr__(self, name: str) -> object:
                return getattr(os, name)

            def pwrite(self, descriptor: int, data: bytes, at: int) -> int:
                raise OSError(errno.ENOSPC, "no space left")

        monkeypatch.setattr(ring, "os", Full())
        ours.release(lease)
        theirs.register(request("b", "x.py"))


def test_an_old_revision_that_cannot_be_removed_is_seen_by_everybody(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    lease = ours.register(request("a", "x.py"))
    theirs.sweep()
    old = record_of(lease)
    monkeypatch.setattr(FileLedger, "_unlink", lambda self, *paths: False)
    ours.claim(lease, [Claim.file("y.py")])
    monkeypatch.undo()
    assert (ours.state.root / old).exists()
    theirs.sweep()
    assert not (ours.state.root / old).exists()
    with pytest.raises(ResourceConflictError):
        theirs.register(request("b", "y.py"))


def test_a_forked_child_begins_anew(state_root: Path) -> None:
    assert run_clean(_fork_in_step, str(state_root)) == "refused"


def _fork_in_step(root: str) -> str:
    ledger = FileLedger(root)
    ledger.register(request("a", "x.py"))
    ours, theirs = os.pipe()
    if os.fork() == 0:
        try:
            ledger.register(request("b", "x.py"))
            os.write(theirs, b"granted")
        except ResourceConflictError:
            os.write(theirs, b"refused")
        os._exit(0)
    os.wait()
    return os.read(ours, 99).decode()
