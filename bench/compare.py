"""Peers in turn, A B C A B C ..., and a table of medians and of ratios to the first; every table is kept."""

from __future__ import annotations

import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from necrocode.mounts import filesystem

QUICK = "BENCH_QUICK"
"""Set in the environment: fewer rounds and smaller loads, to see that it works. Its figures are worth nothing."""


class Row(NamedTuple):
    """One peer: medians and the 95th of 100 in seconds, how many samples, and how many times the first one's median
    it takes."""

    name: str
    p50: float
    p95: float
    samples: int
    ratio: float


class Table(NamedTuple):
    """What was compared once; `bench` is the module that did it."""

    bench: str
    title: str
    unit: str
    rows: tuple[Row, ...]


TABLES: list[Table] = []
"""All that was told in this process, for curves and results."""


def play(name: str, tell: Connection) -> None:
    """Run one benchmark here, and tell its tables."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    import_module(f"bench.{name}").main()
    tell.send(TABLES)
    tell.close()


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleaved(peers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each peer once to warm up, then all of them in turn, `rounds` times. A peer returns its seconds."""
    samples: dict[str, list[float]] = {name: [] for name in peers}
    for peer in peers.values():
        peer()
    for _ in range(less(rounds)):
        for name, peer in peers.items():
            samples[name].append(peer())
    return samples


def less(number: int) -> int:
    """The number itself, or a tenth of it (at least 2) when it is to be quick."""
    return max(2, number // 10) if os.environ.get(QUICK) else number


def told(title: str, samples: Mapping[str, list[float]], unit: str = "us") -> None:
    """One line a peer: median, 95th of 100, and how many times the first one's median."""
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
    first = statistics.median(next(iter(samples.values())))
    rows = [_row(name, seconds, first) for name, seconds in samples.items()]
    TABLES.append(Table(sys._getframe(1).f_globals["__name__"].removeprefix("bench."), title, unit, tuple(rows)))
    print(f"\n{title}")
    for row in rows:
        figures = f"p50 {row.p50 * scale:>10.1f} {unit}   p95 {row.p95 * scale:>10.1f} {unit}"
        print(f"  {row.name:<34} {figures}   {row.ratio:>6.2f}x")
    sys.stdout.flush()


def _row(name: str, seconds: list[float], first: float) -> Row:
    ordered = sorted(seconds)
    middle, late = statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return Row(name, middle, late, len(ordered), middle / first if first else 0.0)


def place() -> Path:
    """Where benchmarks write: BENCH_DIR, or memory where there is one. The file system is told, since it decides."""
    return Path(os.environ.get("BENCH_DIR") or ("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"))


def machine() -> str:
    """What the figures were taken on, and how much else went on there."""
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    load = f"load {os.getloadavg()[0]:.1f}" + (f", nice {nice}" if (nice := os.nice(0)) else "")
    return f"{os.cpu_count()} cores ({load}), {system}, {place()} on {filesystem(place())}"
