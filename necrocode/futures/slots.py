"""Slots of the whole machine: each attempt of an engine with a ledger holds one lease for as long as it works."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from necrocode.errors import LeaseLost, NecrocodeError, ResourceLimitError
from necrocode.futures.workload import Work
from necrocode.heartbeat import Heartbeat
from necrocode.lease import PRIORITIES, Lease, Request
from necrocode.ledger.operations import Operations

PATIENCE = 10.0
"""Seconds of one wait in the ledger's queue; after each it is asked whether the attempt is still wanted."""


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
    ) -> None:
        """Tell `granted` or `failed` in due time, and `lost` should the lease go while the attempt works. Nothing is
        told of an attempt that was closed meanwhile; a grant that comes too late is given back."""
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
            except NecrocodeError as error:
                failed(error)
                return
            if held:
                granted(held)

        threading.Thread(target=wait, name=f"slot-{request.runner_id}", daemon=True).start()

    def _wait(self, work: Work, request: Request, lost: Callable[[LeaseLost], None]) -> Held | None:
        while not work.context.is_stopped:
            try:
                lease = self._ledger.register(request, wait=True, timeout=PATIENCE)
            except ResourceLimitError:
                continue  # still full; asked again at the end of the queue
            beat = Heartbeat(self._ledger, lease, min(5.0, self._timeout / 3), on_lost=lost)
            beat.__enter__()
            return Held(lease, beat)
        return None

    def give_back(self, held: Held) -> None:
        """End the lease; nothing when it was lost before."""
        held.heartbeat.stop()
        with suppress(LeaseLost):
            self._ledger.release(held.lease)
