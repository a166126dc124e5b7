"""Who a process is, for everybody who looks, now and after its number was given to another."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from necrocode.lease import Identity

_LINUX = sys.platform == "linux"
_LOCKS = re.compile(r"^\d+: FLOCK +\w+ +WRITE +(\d+) [^ ]+:(\d+) ", re.MULTILINE)
"""In /proc/locks: `1: FLOCK  ADVISORY  WRITE 4711 00:1b:5077132 0 EOF`; who waits has an arrow before FLOCK."""
_ours: Identity | None = None
_boot = ""


class Stat(NamedTuple):
    """One line of the process table. `ticks` is the start time in the kernel's ticks since boot."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    threads: int
    ticks: int

    @property
    def ended(self) -> bool:
        # A main thread that has ended while others run on shows as a zombie too.
        return self.state in "ZX" and self.threads <= 1


def boot_id() -> str:
    """What names this boot of this kernel; the same in every process and container, another after a reboot."""
    global _boot
    if not _boot:
        _boot = _read("/proc/sys/kernel/random/boot_id") if _LINUX else _boot_elsewhere()
    return _boot


def identity() -> Identity:
    """This process, also in a forked child of one that asked before."""
    global _ours
    if _ours is None or _ours.pid != os.getpid():
        _ours = _identity()
    return _ours


def _identity() -> Identity:
    pid = os.getpid()
    if _LINUX:
        text = _read("/proc/self/stat")  # not /proc/<pid>: /proc may be that of another pid namespace
        ticks = parsed(pid, text).ticks
    else:
        ticks = _ticks_elsewhere(pid) or 0
    return Identity(pid, ticks, boot_id(), _namespace("pid"), _namespace("time"), os.uname().nodename, _user())


def is_gone(who: Identity) -> bool:
    """Whether that process has provably ended; False whenever this cannot be known from here.

    Proof is another boot of the same host, or, in the same pid namespace: no process of that number, one that was
    started at another time, or a zombie."""
    ours = identity()
    if who.boot_id != ours.boot_id:
        return who.host == ours.host
    if who.pid_namespace != ours.pid_namespace or not proc_is_ours():
        return False
    seen = stat(who.pid)
    if seen is None:
        # Other users' processes may be hidden from /proc, but not from kill(2).
        return not _exists(who.pid)
    # Start times count from the boot as the reader's time namespace has it.
    same_clock = who.time_namespace == ours.time_namespace
    return seen.ended or (same_clock and seen.ticks != who.start_ticks)


def locker(path: str | os.PathLike[str]) -> Identity | None:
    """The process that has locked this file, as flock does, where the system tells."""
    try:
        inode = str(os.stat(path).st_ino)
        held = Path("/proc/locks").read_text() if proc_is_ours() else ""
    except OSError:
        return None
    pids = [int(pid) for pid, of in _LOCKS.findall(held) if of == inode and _has_open(int(pid), path)]
    seen = stat(pids[0]) if pids else None
    return identity()._replace(pid=seen.pid, start_ticks=seen.ticks) if seen else None


def _has_open(pid: int, path: str | os.PathLike[str]) -> bool:
    """The devices in the table of locks are not always those that files tell; what a process has open is."""
    fds = f"/proc/{pid}/fd"
    with suppress(OSError):
        return any(os.path.samefile(f"{fds}/{fd}", path) for fd in os.listdir(fds) if os.path.exists(f"{fds}/{fd}"))
    return False


def kill_holder(who: Identity) -> bool:
    """Send SIGKILL to exactly that process; False when it is gone, out of sight or not ours to kill."""
    ours = identity()
    if (who.boot_id, who.pid_namespace, who.time_namespace) != (ours.boot_id, ours.pid_namespace, ours.time_namespace):
        return False
    return proc_is_ours() and send(who.pid, who.start_ticks, signal.SIGKILL)


def send(pid: int, ticks: int, *signals: signal.Signals) -> bool:
    """Send the signals to the process of that number and start time, and to no other; False when they could not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # another system, or out of descriptors
        return _send_without(pid, ticks, signals)
    try:
        # The number is looked at after the descriptor was opened: if it fits now, the descriptor is that process.
        seen = stat(pid)
        if seen is None or seen.ticks != ticks:
            return False
        for number in signals:
            signal.pidfd_send_signal(fd, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)


def stat(pid: int) -> Stat | None:
    """That process's line of the table, or None when there is no such process to be seen."""
    if not _LINUX:
        return _stat_elsewhere(pid)
    try:
        return parsed(pid, _read(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def ticks_now() -> int:
    """This moment, as start times are told."""
    if not _LINUX:
        return int(time.time() * 100)
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def parsed(pid: int, text: str) -> Stat:
    # The name in parentheses may hold anything, even `) R 1`; what counts comes after the last one.
    fields = text[text.rindex(")") + 2 :].split(" ", 20)
    return Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[17]), int(fields[19]))


def proc_is_ours() -> bool:
    """Whether the process numbers that can be seen are those of this process's namespace."""
    return not _LINUX or os.readlink("/proc/self") == str(os.getpid())


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode("utf-8", "replace").strip()
    finally:
        os.close(fd)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _boot_elsewhere() -> str:
    import psutil

    return f"booted-{int(psutil.boot_time())}"


def _ticks_elsewhere(pid: int) -> int | None:
    seen = _stat_elsewhere(pid)
    return seen.ticks if seen else None


def _stat_elsewhere(pid: int) -> Stat | None:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "S"
            ticks = int(process.create_time() * 100)
            return Stat(pid, state, process.ppid(), os.getpgid(pid), os.getsid(pid), 1, ticks)
    except (psutil.Error, ProcessLookupError, PermissionError):
        return None


def _send_without(pid: int, ticks: int, signals: tuple[signal.Signals, ...]) -> bool:
    try:
        for number in signals:
            seen = stat(pid)
            if seen is None or seen.ticks != ticks:
                return False
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
