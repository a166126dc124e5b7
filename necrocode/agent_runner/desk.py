"""Where an orchestrator's runs register: the ledger as its configuration wants it asked, and what it orders there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from necrocode import aside, git
from necrocode.agent_runner import strategy
from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.models import TaskContext, folder_name
from necrocode.agent_runner.resources import Place, place_of, real, workspace_claim
from necrocode.errors import ConfigError, GateTimeout, Refused, StateUnreadable, StateUnusable
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger
from necrocode.order import Order
from necrocode.statedir import StateDir
from necrocode.task import Task
from necrocode.workspace import OURS, default_directory

logger = logging.getLogger(__name__)

Trouble = StateUnusable | StateUnreadable | GateTimeout
TROUBLE = (StateUnusable, StateUnreadable, GateTimeout)
"""What says of the coordination directory, and not of the work, that it cannot be used."""


class Desk(FileLedger):
    """A ledger that meets conflicts as the configuration says. Without `slot` it takes none: `degrade`.

    `alone` tells that nobody else sees it; `trouble` is what the state directory answered when it could not be
    used for a registration."""

    slot = True
    alone = False
    trouble: Trouble | None = None

    def __init__(self, state: StateDir | Path | None, on_conflict: strategy.OnConflict) -> None:
        super().__init__(state)
        self._on_conflict = on_conflict

    def register(
        self,
        request: Request,
        *,
        wait: bool = False,
        timeout: float | None = None,
        on_wait: Callable[[Refused], None] | None = None,
    ) -> Lease:
        """See FileLedger; conflicts as the strategy says."""
        request = request._replace(slot=self.slot)
        try:
            return strategy.enter(
                self, super().register, request, self._on_conflict, wait=wait, timeout=timeout, on_wait=on_wait
            )
        except TROUBLE as trouble:
            self.trouble = trouble
            raise


@contextmanager
def opened(config: RunnerConfig) -> Iterator[Desk]:
    """The desk in the coordination directory. When that cannot be used, and a limit was not asked for, or the
    caller would rather run than hold it, one that is this run's alone. Raises what it met otherwise."""
    try:
        desk = Desk(config.coordination_dir, config.on_conflict)
    except TROUBLE as trouble:
        if not may_go_alone(config):
            raise
        with alone(config, trouble) as desk:
            yield desk
    else:
        yield desk


def may_go_alone(config: RunnerConfig) -> bool:
    """Whether a run may go on when the coordination directory cannot be used: never past a limit unasked."""
    return config.degrade or config.max_parallel_runners is None


@contextmanager
def alone(config: RunnerConfig, trouble: Trouble) -> Iterator[Desk]:
    """A desk that nobody else sees, for one run without coordination; `trouble` says why."""
    logger.warning("running without coordination: %s", trouble)
    with aside.folder() as folder:
        desk = Desk(folder / "state", config.on_conflict)
        desk.alone = True
        yield desk


class Ordered(Order):
    """An order whose lease bears the orchestrator's own id."""

    __slots__ = ()

    @property
    def runner_id(self) -> str:
        return self.run_id


def order_for(config: RunnerConfig, context: TaskContext, runner_id: str, number: int, state: Path) -> Ordered:
    """The task as an order for the engine. Raises ConfigError for a place or branch that cannot be."""
    seconds = context.timeout_seconds or config.default_timeout_seconds
    task = Task(
        context.task_id, prompt=context.prompt, title=context.title, spec=context.spec_name, timeout=seconds,
        silent_timeout=config.silent_timeout_seconds, priority=context.priority,
    )  # fmt: skip
    order = Ordered(
        runner_id, task, number, str(state / "runs" / runner_id / f"{context.task_id}.{number}"), "",
        base=config.base_branch or "HEAD",
        patience=config.capacity_timeout_seconds,
        limit=config.max_parallel_runners,
        heartbeat_timeout=config.heartbeat_timeout_seconds,
        heartbeat_interval=min(config.heartbeat_interval_seconds, config.heartbeat_timeout_seconds / 3),
        grace=config.grace_seconds,
        keep_workspace=config.keep_workspace,
    )  # fmt: skip
    return _given(order, context) if context.slot_path is not None else _made(order, config, context)


def _given(order: Ordered, context: TaskContext) -> Ordered:
    assert context.slot_path is not None
    path = real(context.slot_path)
    place = place_of(path)
    order = order._replace(path=path, claims=place.files(context.files))
    if not place.in_repository:
        if context.branch_name:
            raise ConfigError(
                f"{path} is not in a git repository, so it has no branch {context.branch_name}",
                hint=f"git init {path}, or leave branch_name out",
            )
        return order._replace(mode="none", claims=(workspace_claim(path), *order.claims))
    branch = _branch(context)
    known = git.branch_exists(git.checked_branch(branch), cwd=path)
    # Work that goes on from a branch's tip is told from there, not from where the branch once began.
    base = f"refs/heads/{branch}" if known else order.base
    return order._replace(mode="given", repository=path, branch=branch, base=base)


def _made(order: Ordered, config: RunnerConfig, context: TaskContext) -> Ordered:
    repository = git.open_repository(config.repository_path or Path.cwd())
    place = Place(str(repository.root), repository)
    return order._replace(
        path=real(default_directory(repository) / f"{context.task_id}.{order.run_id}.{order.attempt}"),
        repository=str(repository.root),
        branch=_branch(context),
        claims=place.files(context.files),
    )


def _branch(context: TaskContext) -> str:
    if context.branch_name:
        return context.branch_name
    spec = f"{folder_name(context.spec_name).replace(' ', '-')}/" if context.spec_name else ""
    return f"{OURS}{spec}{context.task_id}"
