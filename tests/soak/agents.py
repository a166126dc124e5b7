"""Agents that do not want to end, of any mixture of traits, cancelled; and tasks by the thousand, after which there is
no more than before of anything: descriptors, processes, files, temporary folders."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from necrocode.fleet import Fleet
from necrocode.ledger.files import FileLedger
from necrocode.outcome import Status
from necrocode.runs import Plan, new_run, run_folder
from necrocode.task import Task
from necrocode.testing import check
from tests.faults import hostile_agent
from tests.soak.history import History
from tests.soak.part import Part, Soak

_AT_ONCE, _GRACE = 20, 0.3
_PATIENCE = 60.0
"""Seconds in which all agents of a round must have begun."""
_TASKS_EACH, _ROUND, _JOBS = 10, 500, 4
_CALM = sorted(set(hostile_agent.TRAITS) - {"storm", "tree"})
"""Traits of which any number may come together; of the others, each makes hundreds of processes by itself."""


def play(soak: Soak) -> None:
    temporary = soak.place / "tmp"
    temporary.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    ledger, chance, before = FileLedger(soak.place / "state"), soak.chance(), Counter[str]()
    for first in range(0, soak.wanted, _AT_ONCE):
        count = min(_AT_ONCE, soak.wanted - first)
        _hostile(soak, ledger, chance, first, count)
        left = _survivors(str(soak.place))
        for pid, argv in left.items():
            soak.history.broken(f"agents from {first} on: {argv} is left")
            os.kill(pid, signal.SIGKILL)
        before = _compared(soak, before, f"agents from {first} on")
        soak.history.injected("agents", count)
    _many_tasks(soak, ledger, before)


def _hostile(soak: Soak, ledger: FileLedger, chance: random.Random, first: int, count: int) -> None:
    ready = soak.place / "ready"
    ready.mkdir()
    agents = {f"h{at}": _traits(chance, at) for at in range(count)}
    program = [sys.executable, "-I", "-S", hostile_agent.__file__]
    tasks = [Task(name, command=(*program, str(ready / name), *traits)) for name, traits in agents.items()]
    fleet, outcomes = _fleet(ledger, tasks, count), {}
    alarm = _Alarm(fleet, ready, set(agents))
    try:
        outcomes = fleet.run()
    finally:
        alarm.off()
    if alarm.late:
        soak.history.broken(f"agents from {first} on: of {agents}, only {sorted(os.listdir(ready))} came")
    open_ones = {name: str(one.status) for name, one in outcomes.items() if not one.status.is_final}
    if open_ones or len(outcomes) < count or os.listdir(ledger.state.runners):
        soak.history.broken(f"agents from {first} on: not ended: {open_ones}, {os.listdir(ledger.state.runners)}")
    assert check(ledger.state.root)
    shutil.rmtree(ready)


def _traits(chance: random.Random, at: int) -> list[str]:
    if at % _AT_ONCE == 0:
        return [chance.choice(["deaf", "masked", "closed"]), "storm"]
    if at % _AT_ONCE == 1:
        return [chance.choice(["deaf", "masked", "elsewhere", "adopts"]), "tree"]
    return chance.sample(_CALM, chance.randint(1, 4))


class _Alarm:
    """Cancels the run as soon as all agents are there, from a signal: this process has no threads, since it forks."""

    def __init__(self, fleet: Fleet, ready: Path, names: set[str]) -> None:
        self._fleet, self._ready, self._names = fleet, ready, names
        self._until, self.late = time.monotonic() + _PATIENCE, False
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    def _look(self, number: int, frame: FrameType | None) -> None:
        there = {name.partition(".")[0] for name in os.listdir(self._ready)}
        self.late = time.monotonic() > self._until
        if self._names <= there or self.late:
            self.off()
            self._fleet.interrupt(2)

    def off(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _fleet(ledger: FileLedger, tasks: list[Task], jobs: int) -> Fleet:
    run_id = new_run(ledger.state)
    plan = Plan(run_id, tuple(tasks), {task.id: () for task in tasks}, jobs, mode="none", grace=_GRACE)
    plan.save(ledger.state)
    return Fleet(plan, ledger)


def _survivors(token: str) -> dict[int, str]:
    """Whoever bears the token in the command line, is no zombie, and is not of the proof itself."""
    found, spared = {}, {os.getpid(), os.getppid()}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if token.encode() in argv and pid not in spared and state not in "ZX":
            found[pid] = argv.replace(b"\0", b" ").decode(errors="replace")
    return found


# -- what must not grow


def _many_tasks(soak: Soak, ledger: FileLedger, before: Counter[str]) -> None:
    tasks, done = soak.wanted * _TASKS_EACH, 0
    while done < tasks:
        count = min(_ROUND, tasks - done)
        fleet = _fleet(ledger, [Task(f"t{at}", command=("true",)) for at in range(count)], _JOBS)
        outcomes = fleet.run()
        assert sum(one.status is Status.DONE for one in outcomes.values()) == count, "not all were done"
        shutil.rmtree(run_folder(ledger.state, fleet.plan.run_id))
        done += count
        before = _compared(soak, before, f"{done} tasks")
    soak.history.note(f"{done} tasks: {dict(before)}")


def _compared(soak: Soak, before: Counter[str], when: str) -> Counter[str]:
    """Whatever there is more of than after the first round."""
    ledger_files = [path for path in (soak.place / "state").rglob("*") if path.parent.name not in ("events", "runs")]
    runs = soak.place / "state" / "runs"
    for folder in runs.iterdir():
        shutil.rmtree(folder)
    now = Counter(
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        children=len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        temporary=len(list((soak.place / "tmp").rglob("*"))),
        files=sum(not path.is_relative_to(runs) for path in ledger_files),
        processes=len(_survivors(str(soak.place))),
    )
    grown = {what: f"{before[what]} -> {many}" for what, many in now.items() if before and many > before[what]}
    if grown:
        _told(soak.history, when, grown, ledger_files)
    return before or now


def _told(history: History, when: str, grown: dict[str, str], files: list[Path]) -> None:
    opened = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.exists(
              f"/proc/self/fd/{name}")]  # fmt: skip
    history.broken(f"more after {when}: {grown}; open: {opened}; files: {sorted(map(str, files))[:40]}")


PART = Part(
    goal="agents of any mixture of bad traits, cancelled: none is left; after ten times as many tasks no descriptor, "
    "process or file is left either",
    counts="agents",
    full=1_000,
    play=play,
    lacking=lambda: "" if sys.platform == "linux" else "/proc",
)
