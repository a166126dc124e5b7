"""kill -9 of workers at any moment: each takes a task under a lease, does it, and publishes it once.

Turn by turn on a fresh state directory, with 8, 16, 32 and 64 workers: up to a quarter of them (half of 8) are killed
at a moment, others are born, and the state is read without the gate. When a turn's kills are done, what is left of
its tasks is done in peace; then nothing may be lost, published twice or left over, and every slot must be free."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from necrocode.claim import Claim
from necrocode.errors import LeaseLost, Refused
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.order import read_result
from necrocode.testing import Broken, check, forked
from tests.faults.published import folder_of, publish
from tests.soak.history import History
from tests.soak.part import Part, Soak

WORKERS = (8, 16, 32, 64)
LIMIT = 6
TURN = 1000
"""Kills on one state directory."""
FINISHERS = 4
"""Workers that do in peace what a turn has left."""
PAUSE = 0.004
"""Seconds between two bursts, on average: about as long as a task takes."""
DRAINED = 120.0
"""Seconds within which the rest of a turn's tasks has to be done."""


def play(soak: Soak) -> None:
    chance, done, turn = soak.chance(), 0, 0
    gc.freeze()
    while done < soak.wanted:
        place = soak.place / f"turn{turn}"
        crowd = Crowd(place, soak.history, random.Random(chance.randrange(1 << 30)), WORKERS[turn % len(WORKERS)])
        try:
            done += crowd.killed(min(TURN, soak.wanted - done))
            crowd.drained()
        finally:
            crowd.end(sorted(crowd.workers))
        crowd.account()
        turn += 1


class Crowd:
    """Workers on one state directory, and whoever kills them."""

    def __init__(self, place: Path, history: History, chance: random.Random, workers: int) -> None:
        self.place, self.history, self.chance, self.wanted = place, history, chance, workers
        self.name, self.trouble = place.name, place.with_name(f"{place.name}.trouble")
        (place / "open").mkdir(parents=True)
        self.ledger = FileLedger(place / "state")
        self.workers: dict[int, str] = {}
        self.born = self.tasks = 0
        self.burst = max(4, workers // 4)
        history.limit(f"{self.name} slot", LIMIT)

    def killed(self, kills: int) -> int:
        """Kill so many, with a look after each burst."""
        done = 0
        self.more_workers()
        while done < kills:
            self.more_tasks()
            time.sleep(self.chance.expovariate(1 / PAUSE))
            victims = self.chance.sample(sorted(self.workers), self.chance.randint(1, min(self.burst, kills - done)))
            self.end(victims, meanwhile=self.more_workers)
            self.look()
            self.history.injected("kill -9", len(victims))
            done += len(victims)
        return done

    def more_tasks(self) -> None:
        """As many open ones as there are workers."""
        for _ in range(len(os.listdir(self.place / "open")), self.wanted):
            folder_of(self.place, self.tasks).mkdir(parents=True)
            (self.place / "open" / str(self.tasks)).touch()
            self.history.acked(f"{self.name} t{self.tasks}")
            self.tasks += 1

    def more_workers(self) -> None:
        while len(self.workers) < self.wanted:
            self.born += 1
            who = f"{self.name} w{self.born}"
            worker = Worker(self.place, self.history, random.Random(self.chance.randrange(1 << 30)), who)
            self.workers[forked(worker.run, self.trouble)] = who

    def buried(self, worker: int, who: str) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if code != -signal.SIGKILL:
            why = self.trouble.read_text() if self.trouble.exists() else ""
            self.history.broken(f"{who} ended with {code}: {why}")

    def look(self) -> None:
        seen = self.ledger.snapshot()
        if seen.unreadable:
            self.history.broken(f"{self.name}: unreadable: {', '.join(seen.unreadable)}")
        try:
            check(self.place / "state", tries=1)
        except Broken as error:
            self.history.broken(f"{self.name}: {error}")

    def drained(self) -> None:
        """No more kills but of those who are too many, until nothing is left to do."""
        self.end(sorted(self.workers)[FINISHERS:])
        deadline = time.monotonic() + DRAINED
        while left := os.listdir(self.place / "open"):
            if time.monotonic() > deadline:
                self.history.broken(f"{self.name}: {len(left)} tasks are not done within {DRAINED:g} s")
                return
            time.sleep(0.002)

    def end(self, workers: Sequence[int], meanwhile: Callable[[], None] = lambda: None) -> None:
        ended = {worker: self.workers.pop(worker) for worker in workers}
        for worker, who in ended.items():
            self.history.dying(who)
            os.kill(worker, signal.SIGKILL)
        meanwhile()
        for worker, who in ended.items():
            self.buried(worker, who)

    def account(self) -> None:
        """What was published stands there, once; nothing else is left, and every slot is free."""
        for task in range(self.tasks):
            self._account_of(task)
        self.ledger.sweep()
        for folder in ("runners", "queue", "fenced", "live", "bells"):
            if left := os.listdir(self.place / "state" / folder):
                self.history.broken(f"{self.name}: left in {folder}: {left}")
        try:
            leases = [self.ledger.register(Request(f"after{at}", limit=LIMIT)) for at in range(LIMIT)]
            check(self.place / "state")
        except (Refused, Broken) as error:
            self.history.broken(f"{self.name}: afterwards: {error}")
            return
        for lease in leases:
            self.ledger.release(lease)

    def _account_of(self, task: int) -> None:
        folder = folder_of(self.place, task)
        result = read_result(folder)
        tokens = {name for name in os.listdir(folder) if name.startswith("published.")}
        if result:
            self.history.found(f"{self.name} t{task}")
            self.history.found(f"{self.name} t{task} published.{result.token}")
            tokens.add(f"published.{result.token}")
        for token in sorted(tokens):
            self.history.published(f"{self.name} t{task}", token)


class Worker:
    """Takes open tasks, one after the other, until it is killed."""

    def __init__(self, place: Path, history: History, chance: random.Random, who: str) -> None:
        self.place, self.history, self.chance, self.who = place, history, chance, who
        self.slot = f"{place.name} slot"

    def run(self) -> None:
        os.nice(10)  # the killer comes first: so it kills when it wants, not when the workers rest
        ledger, number, killer = FileLedger(self.place / "state"), 0, os.getppid()
        while os.getppid() == killer:
            number += 1
            if tasks := os.listdir(self.place / "open"):
                with suppress(Refused, LeaseLost):
                    self.take(ledger, int(self.chance.choice(sorted(tasks))), number)
            else:
                time.sleep(0.002)

    def take(self, ledger: FileLedger, task: int, number: int) -> None:
        claims = (Claim.workspace(f"/w/{task}"), Claim.file(f"src/{task % 7}/**", shared=True))
        request = Request(f"{self.who.replace(' ', '-')}-{number}", claims, limit=LIMIT)
        key, wait = f"{self.place.name} /w/{task}", self.chance.random() < 0.5
        lease = ledger.register(request, wait=wait, timeout=0.2)
        for one in (key, self.slot):
            self.history.granted(one, self.who)
        try:
            self.do(ledger, lease, task)
        finally:
            for one in (key, self.slot):
                self.history.ended(one, self.who)
            ledger.release(lease)

    def do(self, ledger: FileLedger, lease, task: int) -> None:
        if read_result(folder_of(self.place, task)) is None:
            time.sleep(self.chance.random() * 0.003)  # the work
            publish(ledger, lease, self.place, task)
            self.history.acked(f"{self.place.name} t{task} published.{lease.token}")
        with suppress(FileNotFoundError):
            os.unlink(self.place / "open" / str(task))


PART = Part(
    "workers killed at any moment, 8 to 64 at once: every task is done, none is published twice, the state can be "
    "read after every kill, no slot stays taken",
    "kill -9",
    100_000,
    play,
)
