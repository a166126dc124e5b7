"""Peers in turn, A B C A B C ..., and a table of medians and of ratios to the first."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from necrocode.mounts import filesystem


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleaved(peers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each peer once to warm up, then all of them in turn, `rounds` times. A peer returns its seconds."""
    samples: dict[str, list[float]] = {name: [] for name in peers}
    for peer in peers.values():
        peer()
    for _ in range(rounds):
        for name, peer in peers.items():
            samples[name].append(peer())
    return samples


def told(title: str, samples: Mapping[str, list[float]], unit: str = "us") -> None:
    """One line a peer: median, 95th of 100, and how many times the first one's median."""
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
    first = statistics.median(next(iter(samples.values())))
    print(f"\n{title}")
    for name, seconds in samples.items():
        ordered = sorted(seconds)
        middle, late = statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        figures = f"p50 {middle * scale:>10.1f} {unit}   p95 {late * scale:>10.1f} {unit}"
        print(f"  {name:<34} {figures}   {middle / first:>6.2f}x")
    sys.stdout.flush()


def place() -> Path:
    """Where benchmarks write: BENCH_DIR, or memory where there is one. The file system is told, since it decides."""
    return Path(os.environ.get("BENCH_DIR") or ("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"))


def machine() -> str:
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    return f"{os.cpu_count()} cores, {system}, {place()} on {filesystem(place())}"
