"""An agent that does not want to end: READY TRAIT..., and then whatever its traits are. Ends by itself after 300 s."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

LONG = 300


def _daemon() -> None:
    """Fork twice, so that nobody's child is left; the first one goes on, too."""
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)


def _orphan() -> None:
    if os.fork():
        os._exit(0)


def _session() -> None:
    if os.fork() == 0:
        os.setsid()


def _group() -> None:
    if os.fork() == 0:
        os.setpgid(0, 0)


def _deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def _masked() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())


def _again() -> None:
    """Answer SIGTERM with a child of its own."""
    signal.signal(signal.SIGTERM, lambda *_: os.fork() or os.setsid())


def _storm() -> None:
    """A bounded fork storm: 200 processes."""
    for _ in range(199):
        if os.fork() == 0:
            return


def _tree() -> None:
    for generation in range(5):
        if os.fork() == 0 and generation % 2:
            os.setsid()


def _stopped() -> None:
    """A child that stops itself at once."""
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)


def _stops_all() -> None:
    """The whole group of a child."""
    if os.fork() == 0:
        os.setsid()
        os.fork()
        os.kill(0, signal.SIGSTOP)


def _closed() -> None:
    os.closerange(0, 1024)


def _cleared() -> None:
    """Exec with an empty environment, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        os.execve("/bin/sleep", ["sleep", f"{LONG}", "0", sys.argv[1]], {})


def _forged() -> None:
    """Carry the mark of another lease."""
    if os.fork() == 0:
        os.setsid()
        os.execve("/bin/sleep", ["sleep", f"{LONG}", "0", sys.argv[1]], {"NECROCODE_LEASE": "other.1@00000000"})


def _renamed() -> None:
    ctypes.CDLL(None).prctl(15, b"kworker/0:1) S 1 1", 0, 0, 0)


def _adopts() -> None:
    """Take orphans for itself, as runners do."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def _elsewhere() -> None:
    os.chdir("/")
    os.umask(0)


def _loud() -> None:
    if os.fork() == 0:
        while True:
            os.write(1, b"\xff\x00\x1b[31m" * 4096)
            time.sleep(0.005)


def _shell() -> None:
    subprocess.Popen(["sh", "-c", f"trap '' TERM; nohup setsid sleep {LONG} 0 {sys.argv[1]} & wait"])


TRAITS = {name[1:]: value for name, value in list(globals().items()) if name.startswith("_") and name[1:2].isalpha()}

if __name__ == "__main__":
    for trait in sys.argv[2:]:
        TRAITS[trait]()
    with open(f"{sys.argv[1]}.{os.getpid()}", "w"):
        pass
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(1)
