"""ParallelExecutionContext: registered inside, unregistered after, with a heartbeat of its own in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType

from necrocode.agent_runner.parallel_coordinator import ParallelCoordinator
from necrocode.agent_runner.resources import named
from necrocode.agent_runner.strategy import OnConflict
from necrocode.errors import LeaseLost
from necrocode.git import StrPath
from necrocode.heartbeat import Heartbeat
from necrocode.lease import Lease


class ParallelExecutionContext:
    """`with ParallelExecutionContext(coordinator, id, task, spec, workspace) as context:` registers, or raises
    ResourceLimitError or ResourceConflictError (both RuntimeErrors) with nothing left behind.

    Inside, a thread gives a sign of life every `heartbeat_interval` seconds (at least three times per heartbeat
    timeout); when the registration is revoked all the same, `on_lost` is called from it, `lost` says how, and every
    further call raises LeaseLost. The other arguments are those of `ParallelCoordinator.acquire`."""

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
        self.heartbeat_interval = min(heartbeat_interval, coordinator.heartbeat_timeout_seconds / 3)
        self._wait, self._timeout, self._priority = wait, timeout, priority
        self._files, self._branches, self._on_conflict = named(files), named(branches), on_conflict
        self._on_lost = on_lost
        self._lease: Lease | None = None
        self._heartbeat: Heartbeat | None = None
        self._last_beat = 0.0

    def __enter__(self) -> ParallelExecutionContext:
        self._lease = self.coordinator.acquire(
            self.runner_id, self.task_id, self.spec_name, self.workspace_path, self._files, self._branches,
            wait=self._wait, timeout=self._timeout, priority=self._priority, on_conflict=self._on_conflict,
        )  # fmt: skip
        try:
            self._heartbeat = Heartbeat(
                self.coordinator.ledger, self._lease, self.heartbeat_interval, on_lost=self._on_lost
            )
            self._heartbeat.__enter__()
        except BaseException:
            self.coordinator.unregister_runner(self.runner_id)
            raise
        self._last_beat = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Frees everything. An exception of the body passes through; a body that ended well although its
        registration was lost on the way raises LeaseLost: somebody else may have worked there too."""
        heartbeat, self._heartbeat, self._lease = self._heartbeat, None, None
        try:
            if heartbeat:
                heartbeat.stop()
        finally:
            self.coordinator.unregister_runner(self.runner_id)
        if error is None and heartbeat:
            heartbeat.check()

    @property
    def lost(self) -> LeaseLost | None:
        """How the registration was lost, None while it stands."""
        return self._heartbeat.lost if self._heartbeat else None

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
        self.coordinator.update_resources(self.runner_id, files, branches)

    def publishing(self) -> AbstractContextManager[int]:
        """See `ParallelCoordinator.publishing`."""
        return self.coordinator.publishing(self.runner_id)
