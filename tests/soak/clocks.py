"""Time that lies: clocks that jump, process numbers that come back, boots that were not, processes put to sleep."""

from __future__ import annotations

import ctypes
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from necrocode import process
from necrocode.claim import Claim
from necrocode.errors import LeaseLost, Refused
from necrocode.lease import Identity, Lease, Request
from necrocode.ledger.files import FileLedger
from necrocode.process import who
from necrocode.testing import check, forked, result_of, wait_for
from tests.soak.grounds import bind, lacking_root, mount, own_mounts
from tests.soak.history import History
from tests.soak.part import Part, Soak

JUMPS, REUSES, BOOTS, STOPS = "clock jumps", "process numbers used again", "boot ids changed", "stopped runners"
SHARES = {JUMPS: 1000, REUSES: 500, BOOTS: 200, STOPS: 500}
_FULL = sum(SHARES.values())
_FAKER = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
_ROOT = Path(__file__).resolve().parents[2]
_LEAPS = (3600, -3600, 7200, -7200, 86_400, -86_400, 400, -400, 315_360_000, -315_360_000, 61, 0.5)
"""Seconds from the true time: summer time, a day, a timeout, ten years, and small ones."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def play(soak: Soak) -> None:
    for what, count in SHARES.items():
        wanted, place = max(1, round(count * soak.wanted / _FULL)), soak.place / what.replace(" ", "-")
        place.mkdir(mode=0o700)
        scene = {JUMPS: _in_false_time, REUSES: _in_own_numbers, BOOTS: _other_boots, STOPS: _stopped}[what]
        scene(place, soak.history, wanted, soak.seed)
        shutil.rmtree(place)


def _lacking() -> str:
    return lacking_root() or ("" if _FAKER.exists() else "libfaketime (apt install faketime)")


def _ended(child: int, trouble: Path, history: History, within: float = 600.0) -> None:
    try:
        result_of(child, trouble, within=within)
    except AssertionError as error:
        history.broken(str(error))


# -- clocks that jump


def _in_false_time(place: Path, history: History, wanted: int, seed: int) -> None:
    """In a program of its own: time is false only for programs that begin so."""
    env = {
        **os.environ, "LD_PRELOAD": str(_FAKER), "FAKETIME_TIMESTAMP_FILE": str(_told_time(place, 0)),
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
    }  # fmt: skip
    argv = [sys.executable, "-m", "tests.soak.clocks", str(place), str(history.path), str(wanted), str(seed)]
    done = subprocess.run(argv, env=env, cwd=_ROOT, check=False, timeout=1200, capture_output=True, text=True)
    if done.returncode:
        history.broken(f"the jumps ended with {done.returncode}: {done.stderr[-2000:]}")


def _told_time(place: Path, leap: float) -> Path:
    """Whole or not at all: half a time would be none."""
    path, draft = place / "time", place / "time.new"
    draft.write_text(f"{leap:+.3f}s\n")
    os.rename(draft, path)
    return path


def _jumps(place: Path, history: History, wanted: int, chance: random.Random) -> None:
    """A holder that renews, one that is silent, and one that waits, while the clock jumps."""
    ledger = FileLedger(place / "state")
    steady = forked(partial(_steady, place), place / "trouble")
    wait_for(lambda: os.listdir(ledger.state.runners))
    try:
        for at in range(wanted):
            if not at % 20:
                _silent_expires_in_time(ledger, at, lambda: _told_time(place, chance.choice(_LEAPS)))
            leap = chance.choice(_LEAPS)
            _told_time(place, leap)
            assert abs(time.time() - leap - _true_time()) < 5, f"the clock did not jump by {leap}"
            _look(ledger, place, at)
            history.injected(JUMPS)
    finally:
        os.kill(steady, signal.SIGKILL)
        os.waitpid(steady, 0)


def _true_time() -> float:
    """By files, whose times the kernel makes."""
    with open("/proc/uptime") as uptime, open("/proc/stat") as boot:
        since = next(int(line.split()[1]) for line in boot if line.startswith("btime"))
        return since + float(uptime.read().split()[0])


def _steady(place: Path) -> None:
    ledger = FileLedger(place / "state")
    lease = ledger.register(Request("steady", (Claim.file("src/**"),), heartbeat_timeout=30.0))
    while True:
        ledger.renew(lease)
        time.sleep(0.02)


def _look(ledger: FileLedger, place: Path, at: int) -> None:
    assert ledger.sweep() == 0, "a holder that renews was ended by a jump"
    assert check(place / "state")
    (seen,) = [one for one in ledger.snapshot().runners if one.record.runner_id == "steady"]
    assert (seen.liveness, seen.state) == ("alive", "running"), seen
    began = time.monotonic()
    try:
        ledger.register(Request(f"late{at}", (Claim.file("src/a"),)), wait=True, timeout=0.004)
    except Refused:
        pass
    else:
        raise AssertionError("what is held was given to another")
    waited = time.monotonic() - began
    assert 0.004 <= waited < 20.0, f"waited {waited} s instead of 0.004"


def _silent_expires_in_time(ledger: FileLedger, at: int, jump: Callable[[], object]) -> None:
    """Neither earlier nor later than it would have been."""
    lease = ledger.register(Request(f"silent{at}", (Claim.file("doc"),), heartbeat_timeout=0.15))
    ledger.renew(lease)
    began = time.monotonic()
    jump()
    assert ledger.sweep() == 0 or time.monotonic() - began >= 0.15, "revoked too early"
    wait_for(lambda: ledger.sweep() or not _stands(ledger, lease), 20.0)
    assert 0.14 <= time.monotonic() - began < 20.0, "revoked at a wrong time"
    try:
        ledger.release(lease)
    except LeaseLost:
        return
    raise AssertionError("it did not learn of its loss")


def _stands(ledger: FileLedger, lease: Lease) -> bool:
    return any(name.startswith(f"{lease.runner_id}.") for name in os.listdir(ledger.state.runners))


# -- process numbers that come back


def _in_own_numbers(place: Path, history: History, wanted: int, seed: int) -> None:
    """In a namespace whose first process we are, so that no number is anybody else's."""

    def outside() -> int:
        own_mounts(pids=True)
        first = forked(inside, place / "trouble")
        return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])

    def inside() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # the namespace ends with the part
        mount("proc", "/proc", "proc")
        who._ours = None
        for at in range(wanted):
            _reused(place, at)
            history.injected(REUSES)

    _ended(forked(outside, place / "trouble"), place / "trouble", history)


def _reused(place: Path, at: int) -> None:
    ledger, claims = FileLedger(place / "state"), (Claim.workspace("/w/1"), Claim.file("src/**"))
    first = forked(partial(_hold, place, claims), place / "died")
    name = wait_for(lambda: next(iter(os.listdir(ledger.state.runners)), ""), told=lambda: _text(place / "died"))
    old = wait_for(lambda: next((one.record.holder for one in ledger.snapshot().runners), None))
    assert old and old.pid == first, (old, name)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    second = _born_as(first, old, place)
    try:
        assert process.is_gone(old), "another process of the same number is taken for the holder"
        assert not process.kill_holder(old) and who.stat(second), "another process of that number was killed"
        lease = ledger.register(Request("next", claims, limit=1))
        assert check(place / "state")
        ledger.release(lease)
    finally:
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)


def _hold(place: Path, claims: tuple[Claim, ...]) -> None:
    FileLedger(place / "state").register(Request("held", claims, limit=1))
    while True:
        time.sleep(1)


def _born_as(number: int, old: Identity, place: Path) -> int:
    """Another process of that number; as in life, not within the same hundredth of a second."""
    wait_for(lambda: who.ticks_now() > old.start_ticks + 1)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
    born = forked(lambda: time.sleep(60), place / "died")
    assert born == number, f"wanted {number}, got {born}"
    return born


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# -- boots


def _other_boots(place: Path, history: History, wanted: int, seed: int) -> None:
    """What lay on the disk when the machine went down, seen after it came up again. That the processes of before have
    numbers that live here, too, makes no difference."""
    before, claims = place / "before", (Claim.workspace("/w/1"), Claim.file("src/**"))
    ledger = FileLedger(before)
    held = ledger.register(Request("held", claims, limit=2))
    ledger.register(Request("other", limit=2))
    waiter = forked(lambda: ledger_waits(before), place / "died")
    wait_for(lambda: os.listdir(before / "queue"), told=lambda: _text(place / "died"))
    chance = random.Random(seed)
    try:
        for at in range(wanted):
            after = place / f"after{at}"
            shutil.copytree(before, after, ignore=shutil.ignore_patterns("bells"))
            name = f"{chance.getrandbits(32):08x}-0000-4000-8000-{at:012x}\n"
            child = forked(partial(_after_boot, place, after, name, claims, held.token or 0), place / "trouble")
            _ended(child, place / "trouble", history, 20.0)
            shutil.rmtree(after)
            history.injected(BOOTS)
    finally:
        os.kill(waiter, signal.SIGKILL)
        os.waitpid(waiter, 0)


def ledger_waits(root: Path) -> None:
    FileLedger(root).register(Request("waits", limit=2), wait=True)


def _after_boot(place: Path, root: Path, boot: str, claims: tuple[Claim, ...], token: int) -> None:
    own_mounts()
    (place / "boot_id").write_text(boot)
    bind(place / "boot_id", _BOOT_ID)
    who._boot, who._ours = "", None
    assert process.boot_id() == boot.strip()
    ledger = FileLedger(root)
    for seen in ledger.snapshot().runners:
        assert seen.record.holder and process.is_gone(seen.record.holder), seen
    leases = [ledger.register(Request("next", claims, limit=2)), ledger.register(Request("held", limit=2))]
    assert all(lease.token and lease.token >> 32 > token >> 32 for lease in leases), "a token of the boot before"
    assert check(root)
    assert not os.listdir(root / "queue"), "who waited before the boot still waits"
    for lease in leases:
        ledger.release(lease)
    ledger.sweep()
    left = {folder: os.listdir(root / folder) for folder in ("runners", "queue", "fenced", "live", "quarantine")}
    assert not any(left.values()), left


# -- runners that are put to sleep

_AT_ONCE, _SILENCE = 50, 1.0


def _stopped(place: Path, history: History, wanted: int, seed: int) -> None:
    for at in range(0, wanted, _AT_ONCE):
        count = min(_AT_ONCE, wanted - at)
        root = place / str(at)
        sleepers = [forked(partial(_sleeper, root, number), root.with_suffix(".trouble")) for number in range(count)]
        try:
            _put_to_sleep(root, sleepers)
        except AssertionError as error:
            history.broken(f"stopped: {error}")
        finally:
            for child in sleepers:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        shutil.rmtree(root)
        history.injected(STOPS, count)


def _put_to_sleep(root: Path, sleepers: list[int]) -> None:
    count, trouble = len(sleepers), root.with_suffix(".trouble")
    wait_for(lambda: len(list(root.glob("ready.*"))) == count, 60.0, told=lambda: _text(trouble))
    ledger = FileLedger(root)
    for child in sleepers:
        os.kill(child, signal.SIGSTOP)
    for child in sleepers:
        os.waitid(os.P_PID, child, os.WSTOPPED)
    wait_for(lambda: ledger.sweep() * 0 + len(os.listdir(root / "fenced")) == count, 60.0)
    assert check(root)
    others = ledger.register(Request("others", tuple(Claim.file(f"src/{n}") for n in range(count)), limit=1))
    for number in range(count):
        try:
            ledger.register(Request(f"next{number}", (Claim.workspace(f"/w/{number}"),), slot=False))
        except Refused:
            continue
        raise AssertionError("the workspace of one that lives was given to another")
    (root / "go").touch()
    for child in sleepers:
        os.kill(child, signal.SIGCONT)
    wait_for(lambda: len(list(root.glob("lost.*"))) == count, 60.0, told=lambda: _text(trouble))
    assert not trouble.exists(), _text(trouble)
    assert not list(root.glob("published.*")), "a runner published after its lease was revoked"
    for child in sleepers:
        os.kill(child, signal.SIGKILL)
    for child in sleepers:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    ledger.claim(others, [Claim.workspace(f"/w/{number}") for number in range(count)])
    assert check(root)
    ledger.release(others)


def _sleeper(root: Path, number: int) -> None:
    """Publishes as often as it may, once it is told to; and then lives on."""
    ledger = FileLedger(root)
    claims = (Claim.workspace(f"/w/{number}"), Claim.file(f"src/{number}"))
    lease = ledger.register(Request(f"s{number}", claims, heartbeat_timeout=_SILENCE))
    (root / f"ready.{number}").touch()
    with suppress(LeaseLost):  # stopped between the look and the renewal
        while not (root / "go").exists():
            ledger.renew(lease)
            time.sleep(0.02)
    assert (root / "go").exists(), "lost before it was stopped"
    try:
        with ledger.publishing(lease):
            (root / f"published.{number}").touch()
    except LeaseLost:
        (root / f"lost.{number}").touch()
    while True:
        time.sleep(1)


PART = Part(
    goal="clocks that jump, process numbers used again, other boots, runners stopped for longer than their timeout: "
    "no claim ends or lasts by it, nobody is taken for another, and what was revoked publishes nothing",
    counts="lies about time",
    full=_FULL,
    play=play,
    lacking=_lacking,
)

if __name__ == "__main__":
    # libfaketime (0.9.10) answers EINVAL to a sleep until a moment of the monotonic clock, which is how Python sleeps.
    time.sleep = lambda seconds: select.select([], [], [], seconds) and None
    _jumps(Path(sys.argv[1]), History(Path(sys.argv[2])), int(sys.argv[3]), random.Random(int(sys.argv[4])))
