"""Work that can go to another process: functions of a module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from necrocode.concurrency import check_timeout


def double(x):
    return x * 2


def pid():
    return os.getpid()


def fail(text="no"):
    raise ValueError(text)


def sleep(seconds):
    time.sleep(seconds)
    return "slept"


def session():
    return os.getpid(), os.getsid(0)


def die(code=3):
    os._exit(code)


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_with_a_child(place):
    """Starts a program that would sleep for long, says its pid, and sleeps itself."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    with open(place, "w") as file:
        file.write(f"{child.pid} {os.getpid()}")
    time.sleep(300)


def fork_and_sleep(place):
    """The same with a mere fork, which carries no mark of its own."""
    child = os.fork()
    if not child:
        time.sleep(300)
        os._exit(0)
    with open(place, "w") as file:
        file.write(f"{child} {os.getpid()}")
    time.sleep(300)


def checks():
    """Listens: comes back soon after its limit."""
    while True:
        check_timeout()
        time.sleep(0.002)


class OneWay(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


def raise_one_way():
    raise OneWay(1, 2)


def raise_unpicklable():
    error = ValueError("holds a lambda")
    error.held = lambda: None
    raise error


def return_unpicklable():
    return lambda: None


async def coroutine():
    return 1


def exit_python():
    raise SystemExit(7)
