"""ParallelCoordinator: the document's way to ask the ledger. Every call is a thin face on one ledger operation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from necrocode.agent_runner import questions, strategy
from necrocode.agent_runner.resources import named, place_of, real, unplaced, workspace_claim
from necrocode.agent_runner.strategy import OnConflict
from necrocode.claim import Claim
from necrocode.errors import LeaseLost, Refused, ResourceConflictError, StateUnusable
from necrocode.git import StrPath
from necrocode.lease import Holder, Lease, Request, RunnerInstance
from necrocode.ledger.files import FileLedger

if TYPE_CHECKING:
    from necrocode.agent_runner.context import ParallelExecutionContext as ParallelExecutionContext

logger = logging.getLogger(__name__)


class Registration(NamedTuple):
    """The answer to `try_register`, true when granted. `reason` is limit, quota, duplicate, workspace, branch or file,
    queue (others who wait come first), or unreadable (nobody knows what a live runner holds, its record being
    damaged); `holders` says who is in the way, with what, since when; `waited` is in seconds."""

    granted: bool
    token: int | None = None
    reason: str | None = None
    holders: tuple[Holder, ...] = ()
    waited: float = 0.0

    def __bool__(self) -> bool:
        return self.granted


class ParallelCoordinator:
    """Keeps the runners of one machine apart, over all processes that use the same directory.

    `coordination_dir` (default: NECROCODE_STATE_DIR, else one directory per user) is made when it is missing.
    `max_parallel_runners` is a hard limit, None for none; a runner is told `LeaseLost` when it gave no sign of life
    for `heartbeat_timeout_seconds`. Registrations belong to the process, not to this object; they end with it.
    Raises ConfigError for a limit or timeout that cannot be meant, StateUnusable for the directory."""

    def __init__(
        self,
        coordination_dir: StrPath | None = None,
        max_parallel_runners: int | None = None,
        heartbeat_timeout_seconds: float = 300.0,
        *,
        on_conflict: OnConflict | None = None,
    ) -> None:
        Request("none", limit=max_parallel_runners, heartbeat_timeout=heartbeat_timeout_seconds).checked()
        self.max_parallel_runners = max_parallel_runners
        self.heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self.on_conflict = strategy.checked(on_conflict)
        self.ledger = FileLedger(coordination_dir)
        self.coordination_dir = self.ledger.state.root

    # ---- registration

    def register_runner(
        self,
        runner_id: str,
        task_id: str,
        spec_name: str,
        workspace_path: StrPath,
        files: Iterable[str] = (),
        branches: Iterable[str] = (),
    ) -> bool:
        """Whether the runner is registered now, with all of this or nothing; `try_register` says why not."""
        return self.try_register(runner_id, task_id, spec_name, workspace_path, files, branches).granted

    def try_register(
        self,
        runner_id: str,
        task_id: str,
        spec_name: str,
        workspace_path: StrPath,
        files: Iterable[str] = (),
        branches: Iterable[str] = (),
        *,
        wait: bool = False,
        timeout: float | None = None,
        priority: int = 0,
        on_conflict: OnConflict | None = None,
    ) -> Registration:
        """Like `acquire`, with a refusal told as a value; one over a conflict is a warning in the log too."""
        try:
            lease = self.acquire(
                runner_id, task_id, spec_name, workspace_path, files, branches,
                wait=wait, timeout=timeout, priority=priority, on_conflict=on_conflict,
            )  # fmt: skip
        except Refused as refusal:
            if isinstance(refusal, ResourceConflictError):
                logger.warning("%s", refusal)
            return Registration(False, None, refusal.reason, refusal.blockers, refusal.waited)
        return Registration(True, lease.token, waited=lease.record.waited_seconds)

    def acquire(
        self,
        runner_id: str,
        task_id: str,
        spec_name: str,
        workspace_path: StrPath,
        files: Iterable[str] = (),
        branches: Iterable[str] = (),
        *,
        wait: bool = False,
        timeout: float | None = None,
        priority: int = 0,
        on_conflict: OnConflict | None = None,
    ) -> Lease:
        """One slot, the work space, and these files and branches, all or none, checked and claimed in one step.

        With `wait` it queues for whatever is missing, at most `timeout` seconds, those of higher `priority` (-50 to
        49) first. `on_conflict` says otherwise about the conflicts there are when it asks: refuse them even then, wait
        for them even without `wait`, or warn and go on without the claim. Raises ResourceLimitError or
        ResourceConflictError (both RuntimeErrors), ConfigError for an id, path or branch that cannot be."""
        claims = (workspace_claim(workspace_path), *_claims(workspace_path, files, branches))
        request = Request(
            runner_id, claims, task_id, spec_name, real(workspace_path),
            limit=self.max_parallel_runners, priority=priority, heartbeat_timeout=self.heartbeat_timeout_seconds,
        ).checked()  # fmt: skip
        chosen = strategy.checked(on_conflict or self.on_conflict)
        try:
            return self._register(request, chosen, wait=wait, timeout=timeout)
        except ResourceConflictError as refusal:
            if refusal.reason != "duplicate" or not self._close_lost(runner_id):
                raise
        return self._register(request, chosen, wait=wait, timeout=timeout)

    def _register(
        self, request: Request, on_conflict: OnConflict | None, *, wait: bool, timeout: float | None
    ) -> Lease:
        return strategy.enter(self.ledger, self.ledger.register, request, on_conflict, wait=wait, timeout=timeout)

    def _close_lost(self, runner_id: str) -> bool:
        """Whether this id was taken only by a lease of this process that it has lost; that one is closed then."""
        lease = self.ledger.find(runner_id)
        if lease is None:
            return False
        seen = questions.look(self.ledger).runners
        if any(one.record.runner_id == runner_id and one.state == "running" for one in seen):
            return False
        with suppress(LeaseLost):
            self.ledger.release(lease)
        return True

    def unregister_runner(self, runner_id: str) -> None:
        """Free everything this runner has; those who wait for it are served at once. Unknown ids are only logged."""
        lease = self.ledger.find(runner_id)
        if lease is None:
            logger.warning("runner %s is not registered by this process: nothing to unregister", runner_id)
            return
        try:
            self.ledger.release(lease)
        except LeaseLost as lost:
            logger.warning("runner %s had lost its registration before: %s", runner_id, lost)

    # ---- while running

    def update_heartbeat(self, runner_id: str) -> None:
        """A sign of life, some microseconds. Raises LeaseLost when this runner's registration was revoked: it must
        not write any more. Unknown ids are only logged."""
        lease = self.ledger.find(runner_id)
        if lease is None:
            logger.warning("runner %s is not registered by this process: no heartbeat", runner_id)
            return
        try:
            self.ledger.renew(lease)
        except StateUnusable as trouble:
            # A disk that cannot be asked proves nothing; the next beat asks again.
            logger.warning("runner %s: heartbeat not written: %s", runner_id, trouble)

    def update_resources(
        self,
        runner_id: str,
        files: Iterable[str] | None = None,
        branches: Iterable[str] | None = None,
        *,
        timeout: float | None = None,
        on_conflict: OnConflict | None = None,
    ) -> None:
        """Replace what this runner holds of each given kind, keep the other, and give a sign of life: in one step.

        Raises ResourceConflictError, changing nothing, when somebody else holds some of it (see `on_conflict`;
        `timeout` bounds a wait), Deadlock for a wait that could never end (two who wait for what the other would give
        back only then, too), LeaseLost when not registered."""
        lease = self.lease(runner_id)
        wanted = _claims(lease.record.workspace_path, files or (), branches or ())
        given = {family for family, names in (("file", files), ("branch", branches)) if names is not None}
        chosen = strategy.checked(on_conflict or self.on_conflict)

        def replaced(claim: Claim) -> bool:
            return claim.family in given and claim not in wanted

        strategy.extend(self.ledger, lease, wanted, chosen, drop=replaced, timeout=timeout)
        self.ledger.renew(lease)

    @contextmanager
    def publishing(self, runner_id: str) -> Iterator[int]:
        """A window for pushing, moving refs and writing results in which the registration cannot be revoked (60 s at
        most); the value is its token. Raises LeaseLost instead of opening."""
        with self.ledger.publishing(self.lease(runner_id)) as token:
            yield token

    def lease(self, runner_id: str) -> Lease:
        """The registration that this process holds under that id. Raises LeaseLost when there is none."""
        lease = self.ledger.find(runner_id)
        if lease is None:
            raise LeaseLost(runner_id, ours=None)
        return lease

    # ---- questions

    def detect_conflicts(
        self,
        runner_id: str,
        files: Iterable[str] | None = None,
        branches: Iterable[str] | None = None,
        *,
        workspace_path: StrPath | None = None,
    ) -> list[str]:
        """Who else holds any of this: one line for each runner and kind, [] when nobody does. Claims nothing.

        Names are taken as in the runner's own work space, or in `workspace_path`; for a runner that is not
        registered and gives none they are compared with those of every repository."""
        files, branches = _texts(files), _texts(branches)
        snapshot = questions.look(self.ledger)
        known = [seen.record.workspace_path for seen in snapshot.runners if seen.record.runner_id == runner_id]
        where = workspace_path if workspace_path is not None else next(iter(known), None)
        wanted = unplaced(files, branches) if where is None else _claims(where, files, branches)
        if workspace_path is not None:
            wanted = (workspace_claim(workspace_path), *wanted)
        found = questions.conflicts(snapshot, runner_id, wanted, anywhere=where is None)
        for conflict in found:
            logger.warning("%s: %s", runner_id, conflict)
            strategy.tell_conflict(self.ledger, runner_id, conflict.claims, [conflict.runner_id])
        return [str(conflict) for conflict in found]

    def get_concurrent_count(self) -> int:
        """How many runners hold a slot, dead and silent ones not counted."""
        return questions.look(self.ledger).live

    def get_wait_time(self) -> float:
        """Seconds until a newcomer would have a slot: 0.0 below the limit, at it an estimate from how long runners
        have taken so far, `math.inf` when that is not known."""
        snapshot = questions.look(self.ledger)
        return questions.wait_seconds(self.ledger.state, snapshot, self._limit(snapshot.limit))

    def get_status(self) -> dict[str, Any]:
        """`active_runners`, `max_parallel_runners` (the lower of ours and the host's), `runners` (id, task, spec,
        elapsed seconds, work space, files, branches, token, pid), and who waits, was fenced, or needs no slot."""
        snapshot = questions.look(self.ledger)
        return questions.status(snapshot, self._limit(snapshot.limit))

    def get_runners(self) -> list[RunnerInstance]:
        """The live runners as they lie on disk, with their last heartbeat."""
        return [seen.record for seen in questions.look(self.ledger).runners if seen.counts]

    def _limit(self, host: int | None) -> int | None:
        return questions.effective_limit(self.max_parallel_runners, host)


def _claims(workspace_path: StrPath, files: Iterable[str], branches: Iterable[str]) -> tuple[Claim, ...]:
    if not files and not branches:
        return ()  # the repository is asked for only when there are names to place in it
    place = place_of(workspace_path)
    return tuple(dict.fromkeys((*place.files(files), *place.branches(branches))))


def _texts(names: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(map(os.fspath, named(() if names is None else names)))


def __getattr__(name: str) -> Any:
    if name == "ParallelExecutionContext":  # the document names it in this module too
        from necrocode.agent_runner.context import ParallelExecutionContext

        return ParallelExecutionContext
    raise AttributeError(name)
