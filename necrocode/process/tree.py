"""Everything a started program started in turn: found by mark, session and parents, and ended, all of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from necrocode import clock
from necrocode.lease import Identity
from necrocode.process import who
from necrocode.process.who import Stat

MARKER = "NECROCODE_LEASE"
"""The environment variable that every process of a tree inherits; its value names the tree."""

KILL_WAIT = 10.0
"""Seconds after the first SIGKILL in which the rest must be gone; what is left then cannot be killed."""

_LINUX = sys.platform == "linux"
_WALL = 0x40000000  # children of every kind, see waitpid(2)


class View(NamedTuple):
    """The process table at one moment: all by pid, those that each started, and the pids nobody who ends a tree may
    end: this process and those it descends from."""

    seen: dict[int, Stat]
    children: dict[int, list[Stat]]
    spared: set[int]

    @classmethod
    def now(cls) -> View:
        seen = table()
        children: dict[int, list[Stat]] = {}
        for process in seen.values():
            children.setdefault(process.parent, []).append(process)
        spared, pid = set(), os.getpid()
        while pid and pid not in spared:
            spared.add(pid)
            pid = seen[pid].parent if pid in seen else 0
        return cls(seen, children, spared)


leaders: dict[int, str] = {}
"""The trees that this process carries just now: the pid of each leader, and its marker."""


class Begun(NamedTuple):
    """A child of ours, started not before `ticks`. It is met when the tree is first looked at: to ask for a process
    that is just being started is to wait for it."""

    pid: int
    ticks: int


class Tree:
    """The processes of one marker. `leader` is the one that was started, in a session of its own.

    With `below` only processes that descend from this one are looked at: right when this process adopts orphans,
    so that nothing can leave from below it. `adopt` then takes every orphan of other sessions for the tree's own."""

    def __init__(self, marker: str, leader: Stat | Begun | None, *, below: bool = False, adopt: bool = False) -> None:
        self.cpu_seconds = 0.0  # of the orphans reaped so far
        self.groups: frozenset[int] = frozenset()
        self.stirring = False  # whether something ended since the look before
        self._marker, self._below, self._adopt = marker, below, adopt
        self._leader: Stat | None = None
        self._unmet: Begun | None = None
        self._known: dict[int, int] = {}
        self._sessions: dict[int, int] = {}
        self._spared: set[int] = set()
        self._ended: set[tuple[int, int]] = set()
        if isinstance(leader, Begun):
            self._unmet = leader
        elif leader:
            self._lead(leader)

    def _lead(self, leader: Stat) -> None:
        self._leader = leader
        self._add(leader, {leader.pid: leader})

    def _meet(self) -> None:
        if self._unmet:
            found = who.stat(self._unmet.pid)
            if found is None or found.parent != os.getpid():
                return self.parted()
            self._unmet = None
            self._lead(found)

    def parted(self) -> None:
        """The leader has ended and its status was taken: its number says nothing any more, but for its session."""
        if self._unmet:
            (pid, ticks), self._unmet = self._unmet, None
            self._leader = Stat(pid, "X", os.getpid(), pid, pid, 1, ticks)
            self._sessions[pid] = -1

    def gone_for_sure(self) -> bool:
        """Whether this process provably has no children left at all, and so no tree below it: one system call."""
        if not self._below:
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
        except ChildProcessError:
            return True
        return False

    def look(self) -> list[Stat]:
        """The tree's living processes as of now. Remembers them, and reaps those of them that were adopted.

        `groups` are from then on the process groups that hold nothing but processes of this tree."""
        self._meet()
        view = View.now()
        self._spared = view.spared
        self._forget(view.seen)
        first = view.children.get(os.getpid(), []) if self._below else list(view.seen.values())
        found: dict[int, Stat] = {}
        self._gather([process for process in first if self._belongs(process)], view, found)
        # Again: the members found first may have made sessions known by which others are found.
        self._gather([process for process in first if process.session in self._sessions], view, found)
        if self._below:
            self._reap(first)
        alive = [process for process in found.values() if not process.ended]
        theirs = {view.seen[pid].group for pid in view.spared if pid in view.seen}
        self.groups = frozenset(it.group for it in alive if it.session in self._sessions and it.group not in theirs)
        return alive

    def kill(self, members: list[Stat]) -> None:
        """SIGKILL to the groups seen last, which no group can outrun by forking, and to each of these members."""
        for group in self.groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        for process in members:
            who.send(process.pid, process.ticks, signal.SIGKILL)

    def strike(self) -> None:
        """SIGKILL to each member as soon as it is seen, newest first: hits what goes on by forking and ending,
        always in a new group, and is gone by the time that a whole look is over."""
        for pid in sorted(_pids(), reverse=True) if who.proc_is_ours() else ():
            process = None if self._others(pid) or pid in self._spared else who.stat(pid)
            near = process and not process.ended and (process.parent == os.getpid() or not self._below)
            if process and near and self._belongs(process):
                who.send(pid, process.ticks, signal.SIGKILL)

    def _gather(self, todo: list[Stat], view: View, found: dict[int, Stat]) -> None:
        """Add these and all that descend from them."""
        while todo:
            process = todo.pop()
            if process.pid not in found and process.pid not in view.spared and not self._others(process.pid):
                found[process.pid] = process
                self._add(process, view.seen)
                todo += view.children.get(process.pid, [])

    def _belongs(self, process: Stat) -> bool:
        if self._known.get(process.pid) == process.ticks or process.session in self._sessions:
            return True
        if process.ended or (self._leader and process.ticks < self._leader.ticks):
            return False
        if self._adopt and process.session != os.getsid(0):
            others = [marker for marker in tuple(leaders.values()) if marker != self._marker]
            return not any(carries(process.pid, marker) for marker in others)
        return carries(process.pid, self._marker)

    def _others(self, pid: int) -> bool:
        """Whether it is the leader of another tree that this process carries."""
        return leaders.get(pid, self._marker) != self._marker

    def _add(self, process: Stat, seen: dict[int, Stat]) -> None:
        self._known[process.pid] = process.ticks
        # Below us, a session that is not ours was begun by something of this tree, which may have ended since.
        # Anywhere else only a session whose first process is a member is the tree's own.
        if process.session == process.pid or (self._below and process.session != os.getsid(0)):
            first = seen.get(process.session)
            self._sessions.setdefault(process.session, first.ticks if first else -1)

    def _forget(self, seen: dict[int, Stat]) -> None:
        """Drop the numbers that have ended, or that others have now."""
        for pid, ticks in list(self._known.items()):
            if pid not in seen or seen[pid].ticks != ticks:
                del self._known[pid]
        for session, ticks in list(self._sessions.items()):
            if session in seen and seen[session].ticks != ticks:
                del self._sessions[session]

    def _reap(self, children: list[Stat]) -> None:
        """Take the statuses of ended orphans, and of nothing that this program itself may be waiting for."""
        ended = {
            (it.pid, it.ticks): it
            for it in children
            if it.ended and it.session != os.getsid(0) and it.pid not in leaders
        }
        self.stirring = not ended.keys() <= self._ended
        self._ended = set(ended)
        for process in ended.values():
            if self._adopted(process):
                try:
                    _, _, usage = os.wait4(process.pid, os.WNOHANG | _WALL)
                except ChildProcessError:
                    continue
                self.cpu_seconds += usage.ru_utime + usage.ru_stime

    def _adopted(self, process: Stat) -> bool:
        if self._leader is None or process.ticks < self._leader.ticks:
            return False
        if self._adopt or self._known.get(process.pid) == process.ticks or process.session in self._sessions:
            return True
        # In another's session without being its first: somebody in between began that session. Not forked by us.
        return process.session != process.pid


class Ending:
    """The end of a tree, step by step: nothing until `quiet` (for what is ending by itself), SIGTERM, after
    `grace` seconds SIGKILL, again and again until nothing is left. Times are those of `clock.monotonic()`."""

    def __init__(self, tree: Tree, grace: float, quiet: float = 0.0) -> None:
        self.survivors: tuple[int, ...] = ()
        self._tree, self._quiet = tree, quiet
        self._kill = max(clock.monotonic(), quiet) + grace
        self._asked: set[tuple[int, int]] = set()
        self._asked_at = 0
        self._pause = 0.001
        self._empty = 0
        self._last: list[Stat] = []

    def step(self, now: float) -> float | None:
        """Do what is due; seconds until the next step, or None when nothing is left or nothing more can be done."""
        if self._tree.gone_for_sure():
            return None
        left = self._tree.look()
        # Empty twice, since one look can miss what just starts; and nothing may have ended in between, since what
        # forks and ends all the time is rarely seen alive.
        self._empty = 0 if left or self._tree.stirring else self._empty + 1
        self._last = left or self._last
        if self._empty > 1:
            return None
        if now > self._kill + KILL_WAIT:
            self.survivors = tuple(sorted(process.pid for process in self._last))
            return None
        if now >= self._quiet:
            self._ask(left)
        if now >= self._kill:
            self._tree.kill(left)
            self._tree.strike()
        return self._next(now)

    def _ask(self, left: list[Stat]) -> None:
        # Once each, and not what was started after: those are commands that clean up.
        first = self._asked_at == 0
        self._asked_at = self._asked_at or who.ticks_now()
        for process in left:
            key = (process.pid, process.ticks)
            if key not in self._asked and (first or process.ticks < self._asked_at):
                self._asked.add(key)
                self._pause = 0.001  # most end at once
                # A stopped process acts on its SIGTERM only when it goes on.
                who.send(*key, signal.SIGTERM, signal.SIGCONT)

    def _next(self, now: float) -> float:
        self._pause = min(self._pause * 1.5, 0.1 if now < self._kill else 0.005)
        due = [at - now for at in (self._quiet, self._kill) if at > now]
        return min([self._pause, *due])


def end_tree(marker: str, leader: Identity | None = None, grace: float = 10.0) -> tuple[int, ...]:
    """End every process that carries the marker, or descends from `leader` or from such a one, whoever started
    it; from any process of the same user. The caller and its ancestors are spared.

    Returns the pids of what could not be ended, after at most `grace` and 10 seconds."""
    ending = Ending(Tree(marker, alive(leader)), grace)
    while (pause := ending.step(clock.monotonic())) is not None:
        time.sleep(pause)
    return ending.survivors


def marked(marker: str) -> list[int]:
    """The pids of living processes that carry the marker, as far as this user may see."""
    return sorted(pid for pid, seen in table().items() if not seen.ended and carries(pid, marker))


def alive(leader: Identity | None) -> Stat | None:
    """How that process stands in the table; None when it has ended."""
    seen = None if leader is None or who.is_gone(leader) else who.stat(leader.pid)
    return seen if seen and leader and seen.ticks == leader.start_ticks else None


def table() -> dict[int, Stat]:
    """Every process that can be seen, by pid; empty when the numbers seen are not those of our namespace."""
    if not who.proc_is_ours():
        return {}
    return {pid: seen for pid in _pids() if (seen := who.stat(pid)) is not None}


def _pids() -> Iterator[int]:
    if _LINUX:
        return (int(name) for name in os.listdir("/proc") if name.isdigit())
    import psutil

    return iter(psutil.pids())


def carries(pid: int, marker: str) -> bool:
    """Whether that process's environment has the marker, as far as this user may see it."""
    return f"{MARKER}={marker}".encode() in _environment(pid)


def _environment(pid: int) -> list[bytes]:
    if not _LINUX:
        import psutil

        try:
            return [f"{name}={value}".encode() for name, value in psutil.Process(pid).environ().items()]
        except psutil.Error:
            return []
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []
