"""Many processes at once on one directory, some of them killed at any moment, while somebody looks on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from necrocode.testing.children import Died, forked
from necrocode.testing.everywhere import nothing


def storm(
    work: Callable[[Path, random.Random], object],
    place: Path,
    *,
    seconds: float = 3.0,
    workers: int = 8,
    seed: int = 0,
    kills_per_second: float = 50.0,
    done: Callable[[Path], bool] = lambda place: False,
    look: Callable[[Path], object] = nothing,
) -> Counter[str]:
    """`workers` processes call `work(place, chance)` again and again until `seconds` are over or `done(place)`;
    every now and then one is killed -9, and another one begins. `look(place)` is called all the while, and once more
    when all have ended; it and work raise AssertionError (or anything) when something is wrong, which ends the storm
    and is raised as Died.

    Counts `rounds` of work that ended, `killed`, and `looks`. `chance` is each worker's own, drawn from the seed:
    which processes are killed when is the same then, what the machine makes of it is not. Only in a process without
    threads."""
    chance, trouble = random.Random(seed), place.with_name(f"{place.name}.trouble")
    counts: Counter[str] = Counter(rounds=0, killed=0, looks=0)
    heard, told = os.pipe()
    os.set_blocking(heard, False)
    until, living = time.monotonic() + seconds, set[int]()
    try:
        next_kill = time.monotonic() + _pause(chance, kills_per_second)
        while time.monotonic() < until and not done(place):
            while len(living) < workers:
                living.add(forked(partial(_work, work, place, chance.randrange(1 << 30), told, until), trouble))
            time.sleep(0.002)
            _buried(living, trouble)
            if time.monotonic() > next_kill and living:
                counts["killed"] += _kill(chance.choice(sorted(living)))
                next_kill += _pause(chance, kills_per_second)
            counts["rounds"] += _heard(heard)
            look(place)
            counts["looks"] += 1
    finally:
        _end(living)
        counts["rounds"] += _heard(heard)
        os.close(heard)
        os.close(told)
    look(place)
    return counts


def _pause(chance: random.Random, rate: float) -> float:
    return chance.expovariate(rate) if rate > 0 else float("inf")


def _work(work: Callable[[Path, random.Random], object], place: Path, seed: int, told: int, until: float) -> None:
    chance = random.Random(seed)
    while time.monotonic() < until:
        work(place, chance)
        os.write(told, b"!")  # one byte: a lock could be held by one that is killed


def _heard(pipe: int) -> int:
    try:
        return len(os.read(pipe, 1 << 16))
    except BlockingIOError:
        return 0


def _buried(living: set[int], trouble: Path) -> None:
    for child in sorted(living):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            living.discard(child)
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, -signal.SIGKILL):
                raise Died(trouble.read_text() if trouble.exists() else f"a worker ended with {code}")


def _kill(child: int) -> int:
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _end(children: set[int]) -> None:
    for child in children:
        _kill(child)
    for child in children:
        os.waitpid(child, 0)
