"""Leases for the tasks of one event loop: asking, waiting and releasing happen in threads, so that the loop goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import aio
from necrocode.errors import LeaseLost, NecrocodeError, Refused
from necrocode.heartbeat import Heartbeat
from necrocode.lease import Lease, Request
from necrocode.ledger.operations import Operations
from necrocode.task_calls.models import InvalidTaskCall

BEAT = 1.0
"""Seconds between heartbeats."""


class Withdrawn(NecrocodeError):
    """What was waited for is not wanted any more."""


class Held(NamedTuple):
    """A granted lease and its heartbeat."""

    lease: Lease
    heartbeat: Heartbeat


def ledger_of(coordinator: Any) -> Operations:
    """The ledger that a coordinator asks, or is, or that lies in this directory. Raises InvalidTaskCall."""
    if isinstance(coordinator, str | os.PathLike):
        from necrocode.ledger.files import FileLedger

        return FileLedger(Path(coordinator))
    ledger = coordinator if isinstance(coordinator, Operations) else getattr(coordinator, "ledger", None)
    if not isinstance(ledger, Operations):
        raise InvalidTaskCall(
            f"coordinator {coordinator!r} has no ledger", hint="give a ParallelCoordinator, a ledger or a directory"
        )
    return ledger


class Locks:
    """Takes and gives back leases of one ledger."""

    def __init__(self, ledger: Operations, threads: aio.Threads) -> None:
        self._ledger, self._threads = ledger, threads
        self._loop = asyncio.get_running_loop()

    async def take(
        self,
        request: Request,
        patience: float | None,
        blocked: Callable[[Refused], None],
        lost: Callable[[LeaseLost], None],
        beat: Callable[[], None],
    ) -> Held:
        """All that the request claims, once it is free; `blocked` is told on the loop when that has to be waited for,
        `lost` when it goes later. Raises Refused after `patience` seconds, and what a ledger raises."""
        given_up: list[bool] = []

        def told(refused: Refused) -> None:
            if given_up:
                raise Withdrawn("the wait was given up")
            self._loop.call_soon_threadsafe(blocked, refused)

        def withdraw() -> None:
            given_up.append(True)
            with suppress(NecrocodeError):  # when the gate stays shut, the thread gives the grant back
                self._ledger.withdraw(request.runner_id)

        future = self._threads.start(
            lambda: self._ledger.register(request, wait=True, timeout=patience, on_wait=told), "task-lease"
        )
        try:
            lease: Lease = await aio.to_the_end(future, withdraw)
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                await self._release(future.result())
            raise
        interval = min(BEAT, request.heartbeat_timeout / 3)
        heartbeat = Heartbeat(
            self._ledger, lease, interval, on_lost=lambda error: self._from_thread(lost, error), on_beat=beat
        )
        heartbeat.__enter__()
        return Held(lease, heartbeat)

    async def give_back(self, held: Held) -> None:
        """End the lease; nothing when it was lost before."""
        held.heartbeat.stop()
        await self._release(held.lease)

    async def _release(self, lease: Lease) -> None:
        with suppress(LeaseLost):
            await aio.to_the_end(self._threads.start(lambda: self._ledger.release(lease), "task-release"))

    def _from_thread(self, call: Callable[[LeaseLost], None], error: LeaseLost) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, error)
