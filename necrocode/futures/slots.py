"""Slots of the whole machine: each attempt of an engine with a ledger holds one lease for as long as it works."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import NamedTuple

from necrocode.errors import LeaseLost, NecrocodeError, Refused
from necrocode.futures.workload import Work
from necrocode.heartbeat import Heartbeat
from necrocode.lease import PRIORITIES, Lease, Request
from necrocode.ledger.operations import Operations


class Held(NamedTuple):
    """A granted lease and its heartbeat."""

    lease: Lease
    heartbeat: Heartbeat


class Slots:
    """Asks a ledger for one slot per attempt, in threads of their own, since waiting blocks."""

    def __init__(
        self, ledger: Operations, name: str, limit: int | None = None, heartbeat_timeout: float = 300.0
    ) -> None:
        self._ledger, self._limit, self._timeout = ledger, limit, heartbeat_timeout
        self._name = f"{name}-{os.getpid()}-{os.urandom(3).hex()}"
        self._count = 0

    def ask(
        self,
        work: Work,
        granted: Callable[[Held], None],
        failed: Callable[[NecrocodeError], None],
        lost: Callable[[LeaseLost], None],
    ) -> Callable[[], None]:
        """Tell `granted` or `failed` in due time, and `lost` should the lease go while the attempt works. Nothing is
        told of an attempt that was stopped meanwhile, unless its grant came at the same moment.

        What is returned leaves the queue at once; to be called after the attempt was stopped."""
        self._count += 1
        entry = work.call.entry
        priority = min(max(entry.priority, PRIORITIES[0]), PRIORITIES[-1])
        request = Request(
            f"{self._name}-{self._count}", task_id=work.call.name or entry.id, limit=self._limit, priority=priority,
            heartbeat_timeout=self._timeout,
        )  # fmt: skip

        def wait() -> None:
            try:
                held = self._wait(work, request, lost)
            except CancelledError:
                return
            except NecrocodeError as error:
                failed(error)
                return
            granted(held)

        _aside(wait, f"slot-{request.runner_id}")
        return lambda: _aside(lambda: self._withdraw(request), f"slot-back-{request.runner_id}")

    def _wait(self, work: Work, request: Request, lost: Callable[[LeaseLost], None]) -> Held:
        def may_go_on(refused: Refused) -> None:
            # Asked each time after it went into the queue, so whoever withdraws it finds it there or is heard here.
            if work.context.is_stopped:
                raise CancelledError

        lease = self._ledger.register(request, wait=True, on_wait=may_go_on)
        beat = Heartbeat(self._ledger, lease, min(5.0, self._timeout / 3), on_lost=lost)
        beat.__enter__()
        return Held(lease, beat)

    def _withdraw(self, request: Request) -> None:
        with suppress(NecrocodeError):  # when the gate stays shut, a grant that comes later is given back
            self._ledger.withdraw(request.runner_id)

    def give_back(self, held: Held) -> None:
        """End the lease, aside: its heartbeat may be in the middle of a renewal, and a gate may be shut. Nothing when
        it was lost before."""

        def release() -> None:
            held.heartbeat.stop()
            with suppress(NecrocodeError):  # what could not be ended in order is like that of a dead one now
                self._ledger.release(held.lease)

        _aside(release, f"slot-back-{held.lease.runner_id}")


def _aside(call: Callable[[], None], name: str) -> None:
    threading.Thread(target=call, name=name, daemon=True).start()
