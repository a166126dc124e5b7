"""One operation of the ledger, cut short at each of its system calls in turn: by kill -9, or by an error.

Each case runs in a state directory of its own: `before` prepares it, a forked child (the victim) makes ready and
does the operation, and afterwards the others must be able to go on. Only for a process without threads.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from necrocode.claim import Claim
from necrocode.errors import NecrocodeError, Refused
from necrocode.lease import Lease, Request
from necrocode.ledger import files as ledger_files
from necrocode.ledger import waiting, watchman
from necrocode.ledger.files import FileLedger
from necrocode.statedir import StateDir
from necrocode.testing import ERRORS, KILL, SHORT, Fault, Injection, check, forked, injected, is_alive

LIMIT = 3
TROUBLE = (SHORT, Fault("short", lasting=True), *ERRORS)
_ALWAYS = Fault("ENOSPC", lasting=True)
"""What happens to people."""
Arm = Callable[[], AbstractContextManager[Injection]]
NEVER = 300.0
"""Seconds between two ticks: whoever needs one to be served is not served."""
SLOW = 20.0


def file(path: str) -> Claim:
    return Claim.file(path)


OWN, WORKSPACE, MORE = file("own.py"), Claim.workspace("/w/v"), (file("n/1"), file("n/2"))
ALL = (OWN, WORKSPACE, *MORE, file("dead.py"))
"""What a victim may have held."""


class Stage:
    """The state directory of one case, and who acts on it besides the victim."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = StateDir(root)
        self.trouble = root / "trouble"
        self.ledger = FileLedger(self.state)
        self.kept: list[Lease] = []
        self.children: list[int] = []
        self.on_entry: Callable[[], None] | None = None

    def keep(self, runner_id: str, *claims: Claim, **terms: Any) -> Lease:
        self.kept.append(self.ledger.register(Request(runner_id, claims, limit=LIMIT, **terms)))
        return self.kept[-1]

    def fall_silent(self, runner_id: str) -> None:
        """As if it had not renewed for 2000 s."""
        lease = self._kept(runner_id)
        assert lease.lifeline is not None
        os.pwrite(lease.lifeline, f"{time.monotonic() - 2000:017.6f}".encode(), 0)

    def _kept(self, runner_id: str) -> Lease:
        return next(lease for lease in self.kept if lease.runner_id == runner_id)

    def release(self, runner_id: str) -> None:
        lease = self._kept(runner_id)
        self.kept.remove(lease)
        self.ledger.release(lease)

    def die_with(self, *requests: Request, wait: bool = False) -> None:
        """A process that registers all of these and is killed (while it waits for the last one, if `wait`)."""

        def play() -> None:
            ledger = FileLedger(self.state)
            for request in requests:
                ledger.register(request, wait=wait)

        entries = len(os.listdir(self.state.queue))
        child = forked(play, self.trouble, hang=True)
        while len(os.listdir(self.state.queue if wait else self.state.runners)) <= entries * wait and is_alive(child):
            time.sleep(0.0005)
        self.settle(child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def settle(self, child: int) -> None:
        """Until that child is not inside the gate, and has had the time to leave it."""
        while f"pid={child} ".encode() in (self.root / "lock").read_bytes():
            time.sleep(0.0005)

    def wait_in_line(self, runner_id: str, *claims: Claim) -> None:
        """A process that waits, is served, and releases."""

        def play() -> None:
            ledger = FileLedger(self.state)
            ledger.release(ledger.register(Request(runner_id, claims, limit=LIMIT), wait=True, timeout=SLOW))

        self._in_line(forked(play, self.trouble))

    def wait_for_more(self, runner_id: str, claim: Claim) -> None:
        """A process that has a lease, waits for one more claim, gets it and releases."""

        def play() -> None:
            ledger = FileLedger(self.state)
            lease = ledger.register(Request(runner_id, limit=LIMIT))
            ledger.claim(lease, [claim], wait=True, timeout=SLOW)
            assert claim in lease.claims
            ledger.release(lease)

        self._in_line(forked(play, self.trouble))

    def _in_line(self, child: int) -> None:
        self.children.append(child)
        while len(os.listdir(self.state.queue)) < len(self.children):
            assert is_alive(child)
            time.sleep(0.0005)
        self.settle(child)


class Operation(NamedTuple):
    """What to prepare, what the victim does first, and what it is cut short in."""

    act: Callable[[FileLedger, Any], object]
    ready: Callable[[FileLedger], Any] = lambda ledger: None
    before: Callable[[Stage], None] = lambda stage: None


def _own(ledger: FileLedger) -> Lease:
    return ledger.register(Request("v", (OWN, WORKSPACE), limit=LIMIT))


def _full(stage: Stage) -> None:
    for at in range(LIMIT):
        stage.keep(f"s{at}", file(f"s/{at}"))


def _full_until_asked(stage: Stage) -> None:
    _full(stage)
    stage.on_entry = lambda: stage.release("s1")


def _wanted_until_asked(stage: Stage) -> None:
    stage.keep("s", MORE[0])
    stage.on_entry = lambda: stage.release("s")


def _dead_blocker(stage: Stage) -> None:
    stage.die_with(Request("dead", (file("dead.py"),), limit=LIMIT))


def _dead_self(stage: Stage) -> None:
    stage.die_with(Request("v", (OWN,), limit=LIMIT))


def _waiters_for_own(stage: Stage) -> None:
    for at in range(LIMIT - 1):
        stage.keep(f"s{at}", file(f"s/{at}"))


def _mess(stage: Stage) -> None:
    stage.die_with(Request("d1", (file("m/1"),), limit=LIMIT))
    stage.keep("s", file("s"))
    stage.die_with(Request("d2", (file("s"),), limit=LIMIT), wait=True)
    (stage.root / "tmp" / "junk").touch()
    (stage.root / "live" / "orphan").touch()
    os.mkfifo(stage.root / "bells" / "orphan")
    (stage.root / "runners" / "broken.7.0.json").write_bytes(b"{")
    (stage.root / "queue" / "nonsense").touch()


def _silent(stage: Stage) -> None:
    stage.keep("silent", file("dead.py"), Claim.workspace("/w/silent"), heartbeat_timeout=1000)
    for at in range(LIMIT - 1):
        stage.keep(f"s{at}", file(f"s/{at}"))


def _publish(ledger: FileLedger, lease: Lease) -> None:
    with ledger.publishing(lease):
        pass


def _renew(ledger: FileLedger, lease: Lease) -> None:
    ledger.renew(lease)


def _damage(ledger: FileLedger) -> Lease:
    lease = _own(ledger)
    ledger.renew(lease)
    with open(ledger.state.runners / f"v.{lease.token}.0.json", "r+b") as record:
        record.truncate(10)
    return lease


OPERATIONS: dict[str, Operation] = {
    "register": Operation(lambda ledger, _: _own(ledger)),
    "register over a dead blocker": Operation(
        lambda ledger, _: ledger.register(Request("v", (file("dead.py"),), limit=LIMIT)), before=_dead_blocker
    ),
    "register over a dead self": Operation(lambda ledger, _: _own(ledger), before=_dead_self),
    "enqueue and give up": Operation(
        lambda ledger, _: ledger.register(Request("v", (OWN,), limit=LIMIT), wait=True, timeout=0.004), before=_full
    ),
    "enqueue and take over": Operation(
        lambda ledger, _: ledger.register(Request("v", (OWN,), limit=LIMIT), wait=True), before=_full_until_asked
    ),
    "release": Operation(lambda ledger, lease: ledger.release(lease), _own),
    "release with waiters": Operation(
        lambda ledger, lease: ledger.release(lease), _own, _waiters_for_own
    ),
    "release with one who waits for more": Operation(lambda ledger, lease: ledger.release(lease), _own),
    "claim": Operation(lambda ledger, lease: ledger.claim(lease, MORE), _own),
    "claim and wait": Operation(
        lambda ledger, lease: ledger.claim(lease, MORE, wait=True), _own, _wanted_until_asked
    ),
    "drop": Operation(lambda ledger, lease: ledger.drop(lease, [OWN]), _own),
    "publish": Operation(_publish, _own),
    "renew a damaged record": Operation(_renew, _damage),
    "fence": Operation(lambda ledger, _: ledger.sweep(), before=_silent),
    "sweep": Operation(lambda ledger, _: ledger.sweep(), before=_mess),
    "make a state directory": Operation(lambda ledger, _: FileLedger(ledger.state.root / "new")),
    "configure": Operation(lambda ledger, _: ledger.configure(limit=LIMIT + 1), before=_full),
}  # fmt: skip
WAITERS: dict[str, Callable[[Stage], None]] = {
    "release with waiters": lambda stage: (stage.wait_in_line("w0", OWN), stage.wait_in_line("w1", file("other"))),
    "release with one who waits for more": lambda stage: stage.wait_for_more("w0", OWN),
    "fence": lambda stage: (stage.wait_in_line("w0", file("dead.py")), stage.fall_silent("silent")),
}
"""Who waits for what the victim is about to free; they begin once the victim is ready."""


DAMAGED = ("sweep", "renew a damaged record")


class Report(NamedTuple):
    """How many cases ended how, and what went wrong, case by case."""

    cut: int
    past: int
    wrong: list[str]
    slowest: float


def kill_everywhere(name: str, base: str) -> Report:
    """Kill -9 before each system call, and after the last; after any other is before the next."""
    report = _everywhere(name, base, KILL)
    last = _everywhere(name, base, KILL, after=True, first=max(1, report.cut))
    return Report(report.cut + last.cut, last.past, report.wrong + last.wrong, max(report.slowest, last.slowest))


def fail_everywhere(name: str, base: str, faults: Sequence[Fault] = TROUBLE) -> Report:
    """Each of these faults at each system call that it can come from."""
    cut, past, wrong, slowest = 0, 0, list[str](), 0.0
    for fault in faults:
        report = _everywhere(name, base, fault)
        cut, past, slowest = cut + report.cut, past + report.past, max(slowest, report.slowest)
        wrong += report.wrong
        if len(wrong) > 3:
            break
    return Report(cut, past, wrong, slowest)


def some_of(name: str) -> tuple[Fault, ...]:
    """A part of TROUBLE for each operation, so that operations beside each other see all of it; less where others
    wait, which takes longest."""
    at, others = list(OPERATIONS).index(name), [fault for fault in TROUBLE if fault != _ALWAYS]
    step = 28 if name in WAITERS or "wait" in name else 14 if "enqueue" in name or name in DAMAGED else 7
    return (_ALWAYS, *others[at % step :: step])


def _everywhere(name: str, base: str, fault: Fault, *, after: bool = False, first: int = 1) -> Report:
    cut, past, wrong, slowest = 0, 0, [], 0.0
    ledger_files._LITTER_AGE = -1.0  # what is left over is found at once
    watchman._ROUND = waiting._TICK = NEVER
    for at in range(first, 400):
        ended, root = False, Path(tempfile.mkdtemp(dir=base))
        try:
            was_cut, seconds = _case(root, name, partial(injected, fault, at, after=after), fault == KILL)
            cut, past, ended, slowest = cut + was_cut, past + (not was_cut), not was_cut, max(slowest, seconds)
        except (NecrocodeError, AssertionError, OSError):
            how = "after" if after else "at"
            wrong.append(f"{name}, {fault} {how} call {at}:\n{traceback.format_exc(limit=-3, chain=False)}")
        finally:
            shutil.rmtree(root, ignore_errors=True)
        if ended or len(wrong) > 3:
            return Report(cut, past, wrong, slowest)
    raise AssertionError(f"{name} makes no end of system calls")


def _case(root: Path, name: str, arm: Arm, kills: bool) -> tuple[bool, float]:
    """Whether the operation was cut short, and the seconds until all waiters were served."""
    operation, stage = OPERATIONS[name], Stage(root)
    operation.before(stage)
    ready, victim = _victim(stage, operation, arm, go=name in WAITERS)
    try:
        if name in WAITERS:
            ready.wait()
            WAITERS[name](stage)
            ready.go()
        cut = _end_of(victim, stage, kills)
        began = time.monotonic()
        if name == "fence":
            stage.ledger.sweep()  # nothing else wakes anybody when the one who looked has died
        assert check(root, damaged=name in DAMAGED), "no quiet moment to check in"
        _all_served(stage)
        served = time.monotonic() - began
        _all_is_well(stage, kills)
    finally:
        ready.close(ready.said, ready.tells)
        for child in [victim, *stage.children]:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    return cut, served


def _end_of(victim: int, stage: Stage, kills: bool) -> bool:
    deadline = time.monotonic() + 20
    while True:
        pid, status = os.waitpid(victim, os.WNOHANG)
        if pid:
            break
        assert time.monotonic() < deadline, "the victim hangs"
        if stage.on_entry and os.listdir(stage.state.queue):
            on_entry, stage.on_entry = stage.on_entry, None
            on_entry()
        time.sleep(0.0003)
    if stage.on_entry:
        stage.on_entry()
    if os.WIFSIGNALED(status):
        assert kills, f"the victim died of signal {os.WTERMSIG(status)}"
        return True
    code = os.WEXITSTATUS(status)
    assert code in (0, 7), stage.trouble.read_text() if stage.trouble.exists() else code
    return code == 0


def _all_served(stage: Stage) -> None:
    for child in stage.children:
        deadline = time.monotonic() + SLOW
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            assert time.monotonic() < deadline, "nobody woke the waiter"
            time.sleep(0.0003)
        assert status == 0, stage.trouble.read_text()
    stage.children.clear()


def _all_is_well(stage: Stage, kills: bool) -> None:
    """Everything the victim could hold is free, nothing is left of it, and all slots are there."""
    for ledger in (stage.ledger, FileLedger(stage.root)):
        lease = ledger.register(Request("after", tuple(c for c in ALL if "silent" not in str(c)), slot=False))
        assert check(stage.root)
        ledger.release(lease)
    for place in filter(os.path.exists, [stage.root / "new"]):
        other = FileLedger(place)
        other.release(other.register(Request("after")))
    for lease in stage.kept:
        with suppress(NecrocodeError):  # the silent one was fenced
            stage.ledger.release(lease)
    stage.ledger.sweep()
    assert not stage.trouble.exists(), stage.trouble.read_text()
    left = {
        folder: os.listdir(stage.root / folder) for folder in ("runners", "queue", "fenced", "live", "bells", "tmp")
    }
    assert not any(left.values()), f"left over: {left}"
    leases = [stage.ledger.register(Request(f"z{at}", limit=LIMIT)) for at in range(LIMIT)]
    assert check(stage.root)
    for lease in leases:
        stage.ledger.release(lease)


class _Ready:
    """The victim says that it is ready, and begins when it is told."""

    def __init__(self) -> None:
        self.said, self.says = os.pipe()
        self.told, self.tells = os.pipe()

    def wait(self) -> None:
        assert os.read(self.said, 1)

    def go(self) -> None:
        os.write(self.tells, b"!")

    def close(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            os.close(descriptor)


def _victim(stage: Stage, operation: Operation, arm: Arm, *, go: bool) -> tuple[_Ready, int]:
    ready = _Ready()

    def play() -> int:
        ledger = FileLedger(stage.root)
        context = operation.ready(ledger)
        os.write(ready.says, b"!")
        if go:
            os.read(ready.told, 1)
        with arm() as told, suppress(Refused):
            try:
                operation.act(ledger, context)
            except NecrocodeError as error:
                if isinstance(error, Refused):
                    raise
                assert told.hits, f"not asked for: {error!r}"
                assert len(str(error)) > 20 and os.sep in str(error), f"names no place: {error!r}"
        if told.hits:
            # The same object goes on; what it half did is undone or complete.
            if operation.act is _renew:
                ledger.renew(context)
            ledger.release(ledger.register(Request("probe", (file("probe"),), slot=False)))
            assert check(stage.root, damaged=True)
        return 0 if told.hits else 7

    victim = forked(play, stage.trouble)
    ready.close(ready.says, ready.told)
    return ready, victim
