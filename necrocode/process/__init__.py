"""Processes: who one is (`identity`), starting one in a session of its own and keeping its output within bounds
(`run`), and ending everything it started, however it hid (`end_tree`).

What marks a tree is NECROCODE_LEASE in its environment; sessions and parents are the second means. Nothing is
ever ended that shows none of these. Not caught: what other daemons start on a tree's behalf (containers, `at`,
a terminal multiplexer that ran before), and a process that cleared its environment, left its session and lost its
parent between two looks, unless `run(adopt=True)` was told that every orphan belongs to it.
"""

from __future__ import annotations

from necrocode.process.capture import sanitised
from necrocode.process.child import Ended, Limits, run, warm
from necrocode.process.foreground import Halt, foreground, signals_held
from necrocode.process.sample import Sampler
from necrocode.process.stop import Stop
from necrocode.process.tree import MARKER, end_tree, marked
from necrocode.process.who import boot_id, identity, is_gone, kill_holder, locker

__all__ = [
    "MARKER",
    "Ended",
    "Halt",
    "Limits",
    "Sampler",
    "Stop",
    "boot_id",
    "end_tree",
    "foreground",
    "identity",
    "is_gone",
    "kill_holder",
    "locker",
    "marked",
    "run",
    "sanitised",
    "signals_held",
    "warm",
]
