"""What a tree of processes uses: cpu and memory, look after look."""

from __future__ import annotations

from typing import NamedTuple

from necrocode import clock
from necrocode.lease import Identity
from necrocode.process.tree import Tree, alive


class Sample(NamedTuple):
    """One look at a tree: percent of one core since the look before, resident megabytes (2**20; what processes
    share counts for each), number of processes."""

    cpu_percent: float
    memory_mb: float
    processes: int


class Sampler:
    """Looks at what a tree uses, again and again. The first look has no time to compare with: its cpu is 0."""

    def __init__(self, marker: str, leader: Identity | None = None) -> None:
        self._tree = Tree(marker, alive(leader))
        self._spent: dict[tuple[int, int], float] | None = None
        self._at = clock.monotonic()

    def look(self) -> Sample:
        import psutil

        now, spent, memory = clock.monotonic(), {}, 0
        for seen in self._tree.look():
            try:
                process = psutil.Process(seen.pid)
                times, resident = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue
            spent[seen.pid, seen.ticks] = times.user + times.system
            memory += resident
        # A process that is new since the last look has spent all its time since then.
        before = spent if self._spent is None else self._spent
        used = sum(seconds - before.get(key, 0.0) for key, seconds in spent.items())
        percent = 100.0 * used / max(now - self._at, 1e-3)
        self._spent, self._at = spent, now
        return Sample(round(percent, 1), round(memory / 2**20, 1), len(spent))
