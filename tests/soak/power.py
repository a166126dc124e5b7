"""Power cuts: a file system on a loop device is told to forget all that it has not flushed, and mounted again.

A child works on a state directory there and says of each thing that is promised when it is done; only what it said
before the cut counts. The next child finds itself in another boot, looks for all of it, and goes on.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import git, journal, workspace
from necrocode.claim import Claim
from necrocode.fleet import Fleet
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.ledger.terms import read_terms
from necrocode.order import Order, read_result, take, taken_by, write_result
from necrocode.outcome import Outcome, Status
from necrocode.process import who
from necrocode.runs import Plan, attempt_folder, attempts_of_all, runs
from necrocode.statedir import put, to_json
from necrocode.task import Task
from necrocode.testing import check
from tests.soak.grounds import bind, cut_power, flush, lacking_loop, make_image, mount_image, own_mounts, unmount
from tests.soak.part import Part, Soak

KINDS = {"ext4": 2 / 3, "xfs": 1 / 3}
_LONGEST = 0.01
"""Seconds that a child may work until the cut; one that also commits with git has more."""
_GIT_EVERY, _GIT_TAKES = 40, 40
_FLEET_EVERY, _FLEET_TAKES = 150, 50
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SUBREAPER = 36
_CLEAR_EVERY, _CLEAR_GIT_EVERY = 20, 10 * _GIT_EVERY
"""Lives after which everything has been looked at often enough."""
_WHO = ("-c", "user.name=a", "-c", "user.email=a@example.org")


class Promised(NamedTuple):
    """What was answered for: the largest token, the largest limit, what each result says, by
    folder, the runs whose plans are there, and the commits of branches."""

    token: int = 0
    limit: int = 0
    results: dict[str, int] = {}
    plans: tuple[str, ...] = ()
    commits: dict[str, str] = {}


Say = Callable[[str], None]


def play(soak: Soak) -> None:
    own_mounts()
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # whoever outlives a child of ours is ours to end
    boot = soak.place / "boot_id"
    boot.touch()
    bind(boot, _BOOT_ID)
    chance, place = soak.chance(), soak.place / "disk"
    place.mkdir()
    for kind, share in KINDS.items():
        if not shutil.which(f"mkfs.{kind}"):
            soak.history.note(f"no mkfs.{kind} here")
            continue
        image = soak.place / f"{kind}.img"
        make_image(image, kind)
        mount_image(image, place, kind)
        try:
            _cuts(soak, kind, max(1, round(soak.wanted * share)), image, place, chance)
        finally:
            unmount(place)
            image.unlink()


def _cuts(soak: Soak, kind: str, count: int, image: Path, place: Path, chance: random.Random) -> None:
    promised, acks = Promised(), 0
    _furnish(place)
    for at in range(count + 1):
        (soak.place / "boot_id").write_text(f"{at:08x}-0000-4000-8000-{os.getpid():012x}\n")
        life = Life(place, promised, at, chance.randrange(1 << 30))
        for why in (news := life.until_ready()):
            soak.history.broken(f"{kind}, cut {at}: {why}")
        if news or at == count:
            life.end()
            break
        if life.cleared:
            promised = Promised(promised.token, promised.limit, commits=promised.commits)
        if at % _CLEAR_GIT_EVERY == _CLEAR_GIT_EVERY - 1:
            promised = promised._replace(commits={})
        time.sleep(chance.uniform(0.0, _LONGEST) * _times(at))
        said = life.cut()
        acks += len(said)
        promised = _with(promised, said)
        unmount(place)
        mount_image(image, place, kind)
        soak.history.injected(kind)
    soak.history.note(f"{kind}: {acks} acknowledged changes")


def _times(at: int) -> int:
    return _FLEET_TAKES if at % _FLEET_EVERY == 1 else _GIT_TAKES if at % _GIT_EVERY == 0 else 1


def _furnish(place: Path) -> None:
    """What was there long before any cut."""
    repository = place / "repository"
    for argv in (["init", "-q", "-b", "main", str(repository)], ["-C", str(repository), "commit", "-q", "--allow-empty",
                 "-m", "first"]):  # fmt: skip
        subprocess.run(["git", *_WHO, *argv], check=True)
    FileLedger(place / "state")
    flush(place)


class Life:
    """One child, from boot to cut."""

    def __init__(self, place: Path, promised: Promised, at: int, seed: int) -> None:
        self._place = os.open(place, os.O_RDONLY)
        self._heard, told = os.pipe()
        self._rest = b""
        self.cleared = False
        self._child = os.fork()
        if self._child == 0:
            try:
                os.close(self._place)  # nothing of it may keep the disk
                _live(place, promised, at, random.Random(seed), lambda line: _write(told, line))
            finally:
                os._exit(1)
        os.close(told)
        os.set_blocking(self._heard, False)

    def until_ready(self) -> list[str]:
        """What it found wrong."""
        wrong, until = list[str](), time.monotonic() + 60
        while time.monotonic() < until:
            select.select([self._heard], [], [], 1.0)
            for line in self._lines():
                if line == "ready":
                    return wrong
                if line == "cleared":
                    self.cleared = True
                    continue
                wrong.append(line.replace("\\n", "\n"))
            if wrong or os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return wrong or ["the next one died before it could look"]
        return ["the next one hung"]

    def cut(self) -> list[str]:
        said = self._lines()  # before the cut: what is told while it happens is no promise
        cut_power(self._place)
        self.end()
        return said

    def end(self) -> None:
        """Whatever lived on that machine."""
        while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            for child in map(int, children):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        os.close(self._heard)
        os.close(self._place)

    def _lines(self) -> list[str]:
        with suppress(BlockingIOError):
            while chunk := os.read(self._heard, 1 << 16):
                self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode() for line in lines]


def _write(told: int, line: str) -> None:
    os.write(told, line.replace("\n", "\\n").encode() + b"\n")


def _with(promised: Promised, said: list[str]) -> Promised:
    results, commits = dict(promised.results), dict(promised.commits)
    for line in said:
        what, *words = line.split(" ")
        if what == "token":
            promised = promised._replace(token=max(promised.token, int(words[0])))
        elif what == "limit":
            promised = promised._replace(limit=int(words[0]))
        elif what == "result":
            results[words[0]] = int(words[1])
        elif what == "plan":
            promised = promised._replace(plans=(*promised.plans, words[0]))
        elif what == "commit":
            commits[words[0]] = words[1]
        else:
            raise AssertionError(f"said: {line}")
    return promised._replace(results=results, commits=commits)


# -- the child


def _live(place: Path, promised: Promised, at: int, chance: random.Random, say: Say) -> None:
    who._boot, who._ours = "", None
    try:
        _look(place, promised)
        if (at - 1) % _GIT_EVERY == 0:
            _look_at_commits(place, promised)
        if (at - 1) % _FLEET_EVERY == 1:
            _resume(place, promised)
        if at % _CLEAR_EVERY == _CLEAR_EVERY - 1:
            _clear(place / "state")
            say("cleared")
        if at % _CLEAR_GIT_EVERY == _CLEAR_GIT_EVERY - 1:
            for name in ("repository", "work"):
                shutil.rmtree(place / name, ignore_errors=True)
            _furnish(place)
    except BaseException:
        say(traceback.format_exc(limit=-6, chain=False))
        raise
    say("ready")
    works = _works(place, at, chance, say)
    while True:
        next(works)


def _look(place: Path, promised: Promised) -> None:
    """Raises AssertionError, or what a broken state directory makes necrocode raise."""
    ledger = FileLedger(place / "state")
    state = ledger.state
    ledger.sweep()
    assert check(state.root)
    lease = ledger.register(Request("after", (Claim.file("src/**"),), slot=False))
    assert lease.token and lease.token > promised.token, f"token {lease.token} after {promised.token}"
    ledger.release(lease)
    limit = read_terms(state.root / "config.json")[0] or 0
    assert promised.limit <= limit, f"limit {limit} after {promised.limit}"
    for folder, code in promised.results.items():
        outcome = read_result(Path(folder))
        assert outcome and outcome.exit_code == code, f"{folder}: {outcome}"
    for run_id in promised.plans:
        assert len(Plan.load(state, run_id).tasks) >= 2
    for run_id in runs(state):
        Plan.load(state, run_id)
        for folders in attempts_of_all(state, run_id).values():
            for _, folder in folders:
                read_result(folder)
                taken_by(folder)
    list(journal.read(state.events))
    _look_at_quarantine(state.root / "quarantine")
    for fresh in place.glob("fresh-*"):
        other = FileLedger(fresh)
        other.release(other.register(Request("first")))
        shutil.rmtree(fresh)


def _resume(place: Path, promised: Promised) -> None:
    """What the machine was in the middle of when it went down is gone on with; what was done is not done again."""
    ledger = FileLedger(place / "state")
    for run_id in [one for one in runs(ledger.state) if one.startswith("f")]:
        told = {Path(folder).name for folder in promised.results if Path(folder).parent.name == run_id}
        before = set(os.listdir(ledger.state.runs / run_id))
        outcomes = Fleet(Plan.load(ledger.state, run_id), ledger).run()
        assert all(outcome.ok for outcome in outcomes.values()), outcomes
        again = {name.partition(".")[0] for name in set(os.listdir(ledger.state.runs / run_id)) - before}
        assert not again & {name.partition(".")[0] for name in told}, f"{again} were done again, {told} were done"


def _look_at_quarantine(folder: Path) -> None:
    """Leases are not flushed, since they end with the boot: of them, and of nothing else, something may be torn."""
    for name in os.listdir(folder):
        assert not {"config.json", "plan.json", "result.json", "runner.json"} & {name.rpartition(".")[0]}, name
        (folder / name).unlink()


def _look_at_commits(place: Path, promised: Promised) -> None:
    home = place / "repository"
    for branch, commit in promised.commits.items():
        assert git.is_ancestor(commit, f"refs/heads/{branch}", cwd=home), f"{branch} is not at {commit}"
        git.run("rev-list", "--objects", commit, cwd=home)
    workspace.list_leftovers(git.open_repository(home), place / "state")  # as every run does
    git.run("fsck", "--connectivity-only", cwd=home)


def _clear(state: Path) -> None:
    for folder in ("runs", "events", "quarantine"):
        shutil.rmtree(state / folder)
        (state / folder).mkdir(mode=0o700)


def _works(place: Path, at: int, chance: random.Random, say: Say) -> Iterator[None]:
    ledger, count = FileLedger(place / "state"), 0
    kinds = [_run, _run, _lease, _limit, _fresh]
    if at % _FLEET_EVERY == 1:
        yield _fleet(place, at, ledger, say)
    if at % _GIT_EVERY == 0:
        yield _git(place, at, ledger, say)
    while True:
        count += 1
        yield chance.choice(kinds)(place, f"{at}x{count}", ledger, say)


def _lease(place: Path, name: str, ledger: FileLedger, say: Say) -> None:
    lease = ledger.register(Request(f"r{name}", (Claim.file(f"src/{name}"),), slot=False))
    say(f"token {lease.token}")
    ledger.claim(lease, [Claim.file(f"more/{name}")])
    if int(name.rpartition("x")[2]) % 2:
        ledger.release(lease)


def _limit(place: Path, name: str, ledger: FileLedger, say: Say) -> None:
    limit = (read_terms(ledger.state.root / "config.json")[0] or 0) + 1
    ledger.configure(limit=limit)
    say(f"limit {limit}")


def _run(place: Path, name: str, ledger: FileLedger, say: Say) -> None:
    """A run of two tasks, as its launcher and its runner leave it."""
    state, run_id = ledger.state, f"n{name}"
    tasks = (Task("a", command=("true",)), Task("b", command=("true",)))
    (state.runs / run_id).mkdir(mode=0o700)
    Plan(run_id, tasks, {task.id: () for task in tasks}, 2, mode="none").save(state)
    say(f"plan {run_id}")
    for number, task in enumerate(tasks):
        folder = attempt_folder(state, run_id, task.id, 1)
        folder.mkdir(mode=0o700)
        put(folder / "task.json", to_json(Order(run_id, task, 1, str(folder), str(place)).to_dict()))
        take(folder)
        with ledger.publishing(lease := ledger.register(Request(f"{run_id}.{task.id}.1", slot=False))):
            write_result(folder, Outcome(task.id, Status.DONE, exit_code=number))
            say(f"result {folder} {number}")
        ledger.release(lease)


def _fresh(place: Path, name: str, ledger: FileLedger, say: Say) -> None:
    """A state directory that is made just now."""
    FileLedger(place / f"fresh-{name}")


def _fleet(place: Path, at: int, ledger: FileLedger, say: Say) -> None:
    """A run with runners of its own."""
    state, run_id = ledger.state, f"f{at}"
    tasks = tuple(Task(f"t{number}", command=("true",)) for number in range(150))
    (state.runs / run_id).mkdir(mode=0o700)
    plan = Plan(run_id, tasks, {task.id: () for task in tasks}, 4, mode="none")
    plan.save(state)
    say(f"plan {run_id}")

    def heard(task_id: str, what: str, facts: dict[str, Any]) -> None:
        if what == "finished" and facts["status"] == "done":
            say(f"result {attempt_folder(state, run_id, task_id, facts['attempt'])} 0")

    Fleet(plan, ledger, listener=heard).run()


def _git(place: Path, at: int, ledger: FileLedger, say: Say) -> None:
    """An attempt that commits its work, and whose result then tells of it."""
    home = git.open_repository(place / "repository")
    branch, mode = f"{workspace.OURS}run/t{at}", "clone" if at % (2 * _GIT_EVERY) else "worktree"
    made = workspace.prepare(home, state_root=ledger.state.root, path=place / "work" / "t", branch=branch, base="main",
                             holder="r", mode=mode)  # type: ignore[arg-type]  # fmt: skip
    for number in range(1 + at % 30):
        (made.path / f"new{number}").write_text(f"{at} {number}\n" * 500)
    if at // _GIT_EVERY % 4 > 1:  # the agent commits by itself, and leaves its objects to the system
        for argv in (["add", "."], [*_WHO, "commit", "-qm", "agent"]):
            subprocess.run(["git", *argv], cwd=made.path, check=True)
    commit = workspace.commit(made, "work") or workspace.collect(made)
    folder = ledger.state.runs / f"g{at}" / "t.1"
    folder.mkdir(parents=True, mode=0o700)
    write_result(folder, Outcome("t", Status.DONE, branch=branch, commits=(str(commit),), exit_code=3))
    say(f"commit {branch} {commit}")
    say(f"result {folder} 3")


PART = Part(
    goal="power cuts on ext4 and XFS: nothing that was answered for is lost, no file unreadable, no token given twice, "
    "and it goes on",
    counts="power cuts",
    full=15_000,
    play=play,
    lacking=lambda: lacking_loop() or ("" if shutil.which("mkfs.ext4") else "mkfs.ext4 (e2fsprogs)"),
)
