"""ParallelExecutionContext: registered inside, unregistered after, with a heartbeat of its own in between."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from types import TracebackType

from necrocode.agent_runner.parallel_coordinator import ParallelCoordinator
from necrocode.agent_runner.resources import named
from necrocode.agent_runner.strategy import OnConflict
from necrocode.errors import ConfigError, LeaseLost
from necrocode.git import StrPath
from necrocode.heartbeat import Heartbeat
from necrocode.lease import Lease

logger = logging.getLogger(__name__)


class ParallelExecutionContext:
    """`with ParallelExecutionContext(coordinator, id, task, spec, workspace) as context:` registers, or raises
    ResourceLimitError or ResourceConflictError (both RuntimeErrors) with nothing left behind.

    Inside, a thread gives a sign of life every `heartbeat_interval` seconds (at least three times per heartbeat
    timeout); when the registration is revoked all the same, `on_lost` is called from it, `lost` says how, and every
    further call raises LeaseLost. The other arguments are those of `ParallelCoordinator.acquire`. Raises ConfigError
    for an interval that cannot be meant."""

    def __init__(
        self,
        coordinator: ParallelCoordinator,
        runner_id: str,
        task_id: str,
        spec_name: str,
        workspace_path: StrPath,
        heartbeat_interval: float = 30.0,
        *,
        wait: bool = False,
        timeout: float | None = None,
        files: Iterable[str] = (),
        branches: Iterable[str] = (),
        priority: int = 0,
        on_conflict: OnConflict | None = None,
        on_lost: Callable[[LeaseLost], None] | None = None,
    ) -> None:
        self.coordinator, self.runner_id = coordinator, runner_id
        self.task_id, self.spec_name, self.workspace_path = task_id, spec_name, workspace_path
        self.heartbeat_interval = min(_checked(heartbeat_interval), coordinator.heartbeat_timeout_seconds / 3)
        self._wait, self._timeout, self._priority = wait, timeout, priority
        self._files, self._branches, self._on_conflict = named(files), named(branches), on_conflict
        self._on_lost = on_lost
        self._lease: Lease | None = None
        self._heartbeat: Heartbeat | None = None
        self._lost: LeaseLost | None = None
        self._last_beat = 0.0

    def __enter__(self) -> ParallelExecutionContext:
        lease = self.coordinator.acquire(
            self.runner_id, self.task_id, self.spec_name, self.workspace_path, self._files, self._branches,
            wait=self._wait, timeout=self._timeout, priority=self._priority, on_conflict=self._on_conflict,
        )  # fmt: skip
        heartbeat = Heartbeat(self.coordinator.ledger, lease, self.heartbeat_interval, on_lost=self._on_lost)
        try:
            heartbeat.__enter__()
        except BaseException:
            with suppress(LeaseLost):
                self.coordinator.ledger.release(lease)
            raise
        self._lease, self._heartbeat, self._lost = lease, heartbeat, None
        self._last_beat = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Frees everything. An exception of the body passes through; a body that ended well although its
        registration was lost on the way raises LeaseLost: somebody else may have worked there too."""
        lease, heartbeat, self._lease, self._heartbeat = self._lease, self._heartbeat, None, None
        if lease is None or heartbeat is None:
            return
        try:
            heartbeat.stop()
        finally:
            found = self._released(lease)
            self._lost = heartbeat.lost or found
        if self._lost and error is None:
            raise self._lost
        if self._lost:
            logger.warning("runner %s had lost its registration before: %s", self.runner_id, self._lost)

    def _released(self, lease: Lease) -> LeaseLost | None:
        """Give back this lease, never what the id may stand for by now. How it was lost, which may not have been
        noticed before: a beat tells only at its time."""
        if lease.pid != os.getpid():
            return None  # a forked child leaves the block: the registration is its parent's
        try:
            self.coordinator.ledger.release(lease)
        except LeaseLost as lost:
            return lost
        return None

    @property
    def lost(self) -> LeaseLost | None:
        """How the registration was lost, None while it stands; after the block, how it was lost inside, if it was."""
        return self._heartbeat.lost if self._heartbeat else self._lost

    @property
    def lease(self) -> Lease:
        """The registration. Raises LeaseLost outside the `with` block."""
        if self._lease is None:
            raise LeaseLost(self.runner_id, ours=None)
        return self._lease

    @property
    def token(self) -> int:
        """The fencing token: grows with every grant in this directory."""
        return self.lease.token or 0

    @property
    def waited(self) -> float:
        """Seconds between asking and being admitted."""
        return self.lease.record.waited_seconds

    def update_heartbeat_if_needed(self) -> None:
        """A sign of life when the last one from here is older than the interval. Not needed: a thread gives them.

        Raises LeaseLost when the registration was revoked."""
        if self._heartbeat:
            self._heartbeat.check()
        if time.monotonic() - self._last_beat >= self.heartbeat_interval:
            self.coordinator.ledger.renew(self.lease)
            self._last_beat = time.monotonic()

    def update_resources(self, files: Iterable[str] | None = None, branches: Iterable[str] | None = None) -> None:
        """See `ParallelCoordinator.update_resources`."""
        self.coordinator.ledger.renew(self.lease)  # the id may stand for another registration by now
        self.coordinator.update_resources(self.runner_id, files, branches)

    def publishing(self) -> AbstractContextManager[int]:
        """See `ParallelCoordinator.publishing`."""
        return self.coordinator.ledger.publishing(self.lease)


def _checked(interval: float) -> float:
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
        raise ConfigError(f"a heartbeat interval of {interval!r} is not possible", hint="give seconds > 0")
    return interval
