"""Claims on behalf of another process: a small process of ours holds the lease, and ends when that one does.

The one that was called forks the holder, waits for its word, and leaves. The holder keeps the lifeline and a
descriptor of the process it holds for, so one rule of liveness is enough: it may be killed at any moment, and so may
the other; what was claimed is free then. Linux only, as process descriptors are.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from necrocode.errors import ConfigError, LeaseLost, NecrocodeError, Refused, StateUnusable
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger
from necrocode.process.who import stat

KIND = "claim"
"""What the details of such a lease say of their kind."""
_BEAT = 10.0
_INSIST = 1.0
"""Seconds after which one that should have given up is told again."""
_LAUNCHERS = ("uv", "uvx")
"""Programs that only start us and end when we do; nothing can be held for them."""


class Owner(NamedTuple):
    """The process that something is held for: its number, start time, and a descriptor that is it and no other."""

    pid: int
    ticks: int
    descriptor: int

    @property
    def details(self) -> dict[str, str]:
        """What the record of the lease says of it."""
        return {"kind": KIND, "for_pid": str(self.pid), "for_ticks": str(self.ticks), "command": _command(self.pid)}


def owner(pid: int) -> Owner:
    """Take hold of that process. Raises ConfigError when there is none, or it has ended."""
    hint = "give the number of a running process, as in --pid $$"
    if not hasattr(os, "pidfd_open"):
        raise ConfigError("claims for another process need Linux", hint="necrocode exec --claim ... -- COMMAND")
    try:
        descriptor = os.pidfd_open(pid)
    except (OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            raise
        raise ConfigError(f"there is no process {pid} to hold something for", hint=hint) from error
    seen = stat(pid)  # looked at after the descriptor was opened: what is seen now is that process
    if seen is None or seen.ended:
        os.close(descriptor)
        raise ConfigError(f"process {pid} has ended", hint=hint)
    return Owner(pid, seen.ticks, descriptor)


def shell() -> int:
    """The number of the shell that called this process: a copy of itself that a shell forked for this one call, as
    in `id=$(necrocode claim ...)`, is skipped."""
    pid = os.getppid()
    while (seen := stat(pid)) and seen.parent > 0 and (_is_copy(pid, seen.parent) or _name(pid) in _LAUNCHERS):
        pid = seen.parent
    return pid


def _is_copy(pid: int, parent: int) -> bool:
    """Whether it was forked and has executed nothing since: then stack and arguments lie where its parent's do."""
    ours, theirs = _places(pid), _places(parent)
    return bool(ours) and any(place > 1 for place in ours) and ours == theirs


def _places(pid: int) -> list[int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [int(fields[at]) for at in (23, 25, 45)]  # startcode, startstack, arg_start; 0 or 1 where not ours to see


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200]
    return ""


class Wish(NamedTuple):
    """What is wanted and how: `timeout` in seconds (None: for ever); `on_wait` hears the refusal before a wait."""

    request: Request
    wait: bool = True
    timeout: float | None = None
    on_wait: Callable[[Refused], None] | None = None


def leave_holder(wish: Wish, owner: Owner, ledger: Callable[[], FileLedger]) -> dict[str, Any] | None:
    """Fork a holder and return what it holds; in the holder itself, None after the lease has ended.

    What `ledger()` and its `register` raise is raised in the holder alone; in the caller, SystemExit with the exit
    code that came of it."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _close_but({write_end, owner.descriptor})
        _hold(wish, owner, ledger, write_end)
        return None
    os.close(write_end)
    try:
        with open(read_end, "rb") as answer:
            said = answer.read()
        if said.endswith(b"\n"):
            facts: dict[str, Any] = json.loads(said)
            return facts
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException as error:
        os.waitpid(child, 0)  # the pipe is closed: nobody is left for whom it would hold anything
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None  # an interrupt reaches both, and the holder has told of it
        raise
    if code < 0:
        raise NecrocodeError(f"the holder was ended by signal {-code} before it held anything")
    raise SystemExit(code)


def _hold(wish: Wish, owner: Owner, open_ledger: Callable[[], FileLedger], answer: int) -> None:
    ledger = open_ledger()
    lease = _registered(ledger, wish, owner, answer)
    try:
        facts = {
            "runner_id": lease.runner_id, "token": lease.token, "claims": [str(claim) for claim in lease.claims],
            "pid": os.getpid(), "for_pid": owner.pid, "waited": lease.record.waited_seconds,
        }  # fmt: skip
        with suppress(KeyboardInterrupt):
            _detach()
        os.write(answer, json.dumps(facts).encode() + b"\n")
        os.close(answer)
        _stay(ledger, lease, owner)
    except BrokenPipeError:
        return  # who asked has gone meanwhile
    finally:
        with suppress(LeaseLost):
            ledger.release(lease)


def _registered(ledger: FileLedger, wish: Wish, owner: Owner, answer: int) -> Lease:
    """The lease; a wait for it ends with the process it is for, and with the one that asked."""
    over_read, over_write = os.pipe()
    told = list[int]()
    watchman = threading.Thread(target=_watch, args=(owner.descriptor, answer, over_read, told), daemon=True)

    def end(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def on_wait(refused: Refused) -> None:
        if not watchman.is_alive():
            watchman.start()
        if wish.on_wait:
            wish.on_wait(refused)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        return ledger.register(wish.request, wait=wish.wait, timeout=wish.timeout, on_wait=on_wait)
    finally:
        os.close(over_write)
        if watchman.is_alive():
            watchman.join()
        os.close(over_read)


def _watch(owner: int, answer: int, over: int, told: list[int]) -> None:
    poller, rest = select.poll(), select.poll()
    poller.register(owner, select.POLLIN)
    poller.register(answer, 0)  # POLLERR when nobody is left to read it
    for one in (poller, rest):
        one.register(over, 0)
    if any(descriptor == over for descriptor, _ in poller.poll()):
        return
    # Who has been told to end, as by a Ctrl-C that reaches all, is giving up what it waits for, and must not be cut
    # short in that; but what a signal raises can be lost, when it comes at an odd moment.
    main = threading.main_thread().ident or 0
    if not told:
        signal.pthread_kill(main, signal.SIGTERM)
    while not rest.poll(_INSIST * 1000):
        signal.pthread_kill(main, signal.SIGTERM)


def _detach() -> None:
    """No terminal, no streams, no directory of the caller's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def _stay(ledger: FileLedger, lease: Lease, owner: Owner) -> None:
    """Until the other process ends, the lease is lost, or SIGTERM raises SystemExit."""
    poller = select.poll()
    poller.register(owner.descriptor, select.POLLIN)
    while not poller.poll(_BEAT * 1000):
        try:
            ledger.renew(lease)
        except LeaseLost:
            return
        except StateUnusable:
            continue  # a disk that cannot be asked proves nothing


def _close_but(kept: Collection[int]) -> None:
    """What the caller had open is not ours to keep open: pipes whose end is waited for, locks of flock(1)."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))
