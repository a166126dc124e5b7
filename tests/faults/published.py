"""Fifty tasks, done by whoever comes: each process takes one under a lease, does it and publishes it once."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from necrocode import admission
from necrocode.claim import Claim
from necrocode.errors import LeaseLost, Refused
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.order import read_result, write_result
from necrocode.outcome import Outcome, Status
from necrocode.statedir import put
from necrocode.testing import check, storm

LIMIT = 6


def folder_of(place: Path, task: int) -> Path:
    return place / "done" / f"t{task}"


def one_task(tasks: int, place: Path, chance: random.Random) -> None:
    """Take a task that has no result, do it, and publish; every published copy bears the token of its lease."""
    ledger = FileLedger(place / "state")
    todo = [task for task in range(tasks) if read_result(folder_of(place, task)) is None]
    if not todo:
        return
    task = chance.choice(todo)
    name = f"p{os.getpid()}-{chance.randrange(1 << 30)}"
    with suppress(Refused, LeaseLost):
        claims = (Claim.workspace(f"/w/{task}"), Claim.file(f"src/{task % 7}/**", shared=True))
        lease = ledger.register(Request(name, claims, limit=LIMIT), wait=chance.random() < 0.5, timeout=0.2)
        try:
            if read_result(folder_of(place, task)) is None:
                time.sleep(chance.random() * 0.003)  # the work
                publish(ledger, lease, place, task)
        finally:
            ledger.release(lease)


def publish(ledger: FileLedger, lease, place: Path, task: int) -> None:
    with ledger.publishing(lease) as token:
        put(folder_of(place, task) / f"begun.{token}", b"", durable=False)
        write_result(folder_of(place, task), Outcome(f"t{task}", Status.DONE, token=token, runner_id=lease.runner_id))
        put(folder_of(place, task) / f"published.{token}", b"")


def play(root: str, tasks: int, kills: int, seed: int) -> Counter[str]:
    """A storm over the tasks, again from the start until there were so many kills; what was counted."""
    counts: Counter[str] = Counter()
    for turn in range(20):
        place = Path(root) / str(turn)
        for task in range(tasks):
            folder_of(place, task).mkdir(parents=True)
        FileLedger(place / "state")
        counts += storm(
            partial(one_task, tasks), place, seconds=30, workers=8, seed=seed + turn, kills_per_second=120,
            done=partial(_all_done, tasks), look=lambda place: check(place / "state", tries=1),
        )  # fmt: skip
        counts.update(_account(place, tasks))
        if counts["killed"] >= kills:
            break
    return counts


def _all_done(tasks: int, place: Path) -> bool:
    return all((folder_of(place, task) / "result.json").exists() for task in range(tasks))


def _account(place: Path, tasks: int) -> Counter[str]:
    """Nothing lost, nothing published twice, nothing left, and every slot free."""
    counts: Counter[str] = Counter()
    for task in range(tasks):
        result, names = read_result(folder_of(place, task)), os.listdir(folder_of(place, task))
        published = [name for name in names if name.startswith("published.")]
        counts["lost"] += result is None
        counts["twice"] += len(published) > 1 or any(
            name != f"published.{result and result.token}" for name in published
        )
        counts["published"] += result is not None
    ledger = FileLedger(place / "state")
    ledger.sweep()
    counts["left"] = sum(
        len(os.listdir(place / "state" / one)) for one in ("runners", "queue", "fenced", "live", "bells")
    )
    leases = [ledger.register(Request(f"z{at}", limit=LIMIT)) for at in range(LIMIT)]
    check(place / "state")
    for lease in leases:
        ledger.release(lease)
    return counts


def play_broken(root: str) -> Counter[str]:
    """The same on a ledger to which nothing is ever in the way."""
    admission.obstacle = lambda view, waiter: None
    return play(root, 4, 60, 1)
