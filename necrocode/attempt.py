"""One attempt at a task: register (or wait), prepare the workspace, work, verify, commit, keep the artifacts, release.

Each phase is an event, and the whole is one Outcome.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from necrocode import artifacts, git, journal, process, scratch, workspace
from necrocode.claim import Claim
from necrocode.environment import environment
from necrocode.errors import (
    GitFailed,
    LandingConflict,
    LeaseLost,
    NecrocodeError,
    Refused,
    StateUnusable,
    TaskFailed,
    WorkspaceKept,
    advised,
)
from necrocode.event import Event
from necrocode.heartbeat import Heartbeat
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger
from necrocode.order import Order, write_result
from necrocode.outcome import Outcome, Status
from necrocode.statedir import mark, told
from necrocode.work import Place, StopSign, Work, Worker, run_command, verify, worker_for

_MAY_TAKE_LONG = ("work", "verify")

Told = Callable[..., None]
"""Hears each phase as it begins: its name, and a detail."""


def carry(
    order: Order,
    ledger: FileLedger,
    *,
    work: Worker | None = None,
    stop: StopSign | None = None,
    told: Told | None = None,
) -> Outcome:
    """Carry one attempt to its outcome; every failure of the work is an outcome, never an exception.

    `work` does the work instead of what the task names; `stop` ends it; `told` hears each phase as it begins:
    waiting (with what it waits for), granted, prepare, work, verify, commit, artifacts. When this returns or raises,
    the lease is released and nothing of the attempt runs any more.

    Raises StateUnusable when the state directory cannot be worked with."""
    return Attempt(order, ledger, work, stop or threading.Event(), told).run()


class Attempt:
    """One attempt under way."""

    def __init__(
        self, order: Order, ledger: FileLedger, work: Worker | None, stop: StopSign, told: Told | None
    ) -> None:
        self.order, self.ledger, self._work, self._stop = order, ledger, work, stop
        self._told = told or (lambda phase, detail="": None)
        self._folder = Path(order.folder)
        self._phases: dict[str, float] = {}
        self._usage: dict[str, float] = {}
        self._started = time.time()
        self._workspace: workspace.Workspace | None = None
        self._lease: Lease | None = None
        self._heartbeat: Heartbeat | None = None
        self._concurrent = 1
        self._last_phase = "register"
        self._commit: str | None = None
        self._runner_id = order.runner_id
        self._mark = mark(ledger.state.root, self._runner_id)
        self._sampler: process.Sampler | None = None
        self._events: list[Event] = []
        own = order.alone
        self._scratch = scratch.place_of_process(process.identity()) if own else scratch.place_of(self._folder)

    def run(self) -> Outcome:
        try:
            self._worker = self._work or worker_for(self.order.task, self.order.agent, self.order.result_mark)
            self._lease = self._register()
        except Refused as refused:
            return self._outcome(Work(Status.FAILED, str(refused), refused.reason))
        except StateUnusable:
            raise
        except NecrocodeError as error:
            return self._outcome(Work(Status.FAILED, advised(error), "register"))
        try:
            return self._hold(self._lease)
        finally:
            self._flush()
            (scratch.empty if self.order.alone else scratch.remove)(self._scratch)
            with suppress(LeaseLost):
                self.ledger.release(self._lease)

    def _register(self) -> Lease:
        order = self.order
        claims = [*order.claims, *([Claim.workspace(order.path)] if order.mode != "none" else [])]
        if order.repository and order.branch and order.mode != "none":
            claims.append(git.branch_claim(git.open_repository(order.repository), order.branch))
        request = Request(
            self._runner_id, tuple(claims), order.task.id, order.task.spec or order.run_id, order.path, order.limit,
            order.task.priority, order.heartbeat_timeout, tree=True,
            details={"run_id": order.run_id, "branch": order.branch, "folder": order.folder},
        )  # fmt: skip
        return self.ledger.register(
            request,
            wait=order.wait,
            timeout=order.patience,
            on_wait=lambda refused: self._told("waiting", _for_what(refused)),
        )

    def _hold(self, lease: Lease) -> Outcome:
        # Those that hold a slot, and itself, which may go without.
        self._concurrent = max(1, self.ledger.view.live + (not lease.record.slot))
        stop_on_loss = lambda lost: self._stop.set()  # noqa: E731
        with Heartbeat(
            self.ledger, lease, self.order.heartbeat_interval, on_lost=stop_on_loss, on_beat=self._sample
        ) as heartbeat:
            self._heartbeat = heartbeat
            self._told("granted")
            about = {"attempt": self.order.attempt, "workspace": self.order.path, "branch": self.order.branch}
            self._tell("attempt.started", **about)
            outcome = self._published(lease, self._outcome(self._pass_through(lease)))
        self._retire(outcome)
        about = {"attempt": outcome.attempt, "status": str(outcome.status), "error": outcome.error}
        self._tell("attempt.finished", **about, seconds=outcome.seconds)
        return outcome

    def _pass_through(self, lease: Lease) -> Work:
        """The phases in order; the first that fails is the verdict."""
        try:
            if (self._folder / "result.json").exists():
                return Work(Status.LOST, "this attempt was given up before it began", "lost")
            with self._phase("prepare"):
                place = self._prepare(lease)
            with self._phase("work"):
                work = self._called(self._work, place) if self._work else self._worker(place)
            self._use(work)
            if work.ok and self.order.task.verify:
                with self._phase("verify"):
                    verdict = verify(place, self.order.task.verify)
                self._use(verdict)
                work = work if verdict.ok else verdict
            if work.ok and place.workspace.mode != "none":
                with self._phase("commit"):
                    self._commit_work(lease, place)
            return self._unless_lost(work)
        except LeaseLost as lost:
            return Work(Status.LOST, str(lost), "lost")
        except TaskFailed as failed:
            return self._unless_lost(Work(Status.FAILED, str(failed), "work"))
        except LandingConflict as conflict:
            return self._unless_lost(Work(Status.FAILED, advised(conflict), "needs_attention"))
        except NecrocodeError as error:
            return self._unless_lost(Work(Status.FAILED, advised(error), self._last_phase))

    def _called(self, work: Worker, place: Place) -> Work:
        """What somebody's own function makes of it. Whatever it raises is its failure, not that of the engine."""
        try:
            return work(place)
        except NecrocodeError:
            raise
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything; the traceback is kept
            import traceback

            with (self._folder / "stderr.log").open("a", errors="backslashreplace") as log:
                traceback.print_exc(file=log)
            return Work(Status.FAILED, f"{type(error).__name__}: {error}", "work")

    def _unless_lost(self, work: Work) -> Work:
        """A lease that went away in the middle is the reason for whatever else went wrong."""
        lost = self._heartbeat.lost if self._heartbeat else None
        return Work(Status.LOST, str(lost), "lost") if lost else work

    # ---- phases

    def _prepare(self, lease: Lease) -> Place:
        order, began = self.order, time.monotonic()
        with told(self._folder):
            if not os.path.isdir(self._folder):
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
            scratch.make(self._scratch)
        repository = git.open_repository(order.repository) if order.repository and order.mode != "none" else None
        self._workspace = workspace.prepare(
            repository, state_root=self.ledger.state.root, path=order.path, branch=order.branch, base=order.base,
            mode=order.mode, holder=self._runner_id, join=order.join,
        )  # fmt: skip
        deadline = None if order.task.timeout is None else time.monotonic() + order.task.timeout
        self._tell_saved(self._workspace, self._workspace.saved)
        env = environment(order, lease, deadline, self.ledger.state.root, self._scratch)
        place = Place(
            self._workspace, self._folder, order.task, env, self._stop,
            self._mark, deadline,
            (lease.lifeline,) if lease.lifeline is not None else (), order.grace, alone=order.alone,
        )  # fmt: skip
        for number, argv in enumerate(order.setup, 1):
            if not (work := run_command(place, argv, log=f"setup-{number}.")).ok:
                raise TaskFailed(f"setting up the workspace failed: {work.error}", task_id=order.task.id)
        facts = {"path": order.path, "branch": order.branch, "base": self._workspace.base}
        self._tell("workspace.prepared", **facts, seconds=time.monotonic() - began)
        return place

    def _commit_work(self, lease: Lease, place: Place) -> None:
        task = self.order.task
        title = task.title or (task.prompt.strip().splitlines() or [task.id])[0][:72]
        facts = {"Task": task.id, "Runner": self._runner_id, "Token": lease.token}
        trailers = "\n".join(f"Necrocode-{key}: {value}" for key, value in facts.items())
        with self.ledger.publishing(lease):
            self._commit = workspace.commit(place.workspace, f"{title}\n\n{trailers}\n")

    def _retire(self, outcome: Outcome) -> None:
        """The workspace goes when its work is on its branch; what failed stays to be looked at."""
        place = self._workspace
        if place is None or place.mode in ("none", "given") or self.order.keep_workspace:
            return None
        try:
            if not outcome.ok:
                raise WorkspaceKept(str(place.path), f"the attempt {outcome.status}")
            self._tell_saved(place, workspace.retire(place, landed=True))
        except (WorkspaceKept, GitFailed, OSError) as kept:
            return self._tell("workspace.kept", path=str(place.path), reason=str(kept))
        self._tell("workspace.removed", path=str(place.path))

    def _tell_saved(self, place: workspace.Workspace, refs: Iterable[str]) -> None:
        for ref in refs:
            self._tell("snapshot.taken", ref=ref, commit=git.rev_parse(ref, cwd=place.repo.common_dir))

    # ---- the outcome

    def _outcome(self, work: Work) -> Outcome:
        order, place, lease = self.order, self._workspace, self._lease
        facts: dict[str, Any] = {}
        if place is not None and place.repository is not None:
            with self._phase("artifacts"):
                facts = self._artifacts(place)
        return Outcome(
            order.task.id, work.status, order.attempt, work.error, work.kind, work.exit_code, self._runner_id,
            lease.token if lease else None, order.path, order.branch if place else "", place.base if place else "",
            started=self._started, ended=time.time(), waited=lease.record.waited_seconds if lease else 0.0,
            concurrent=self._concurrent, phases=dict(self._phases), usage=dict(self._usage), **facts,
        )  # fmt: skip

    def _artifacts(self, place: workspace.Workspace) -> dict[str, Any]:
        try:
            facts = artifacts.kept(place, self._folder)
        except (GitFailed, OSError) as error:  # the work is on its branch all the same
            self._tell("error.recorded", error=f"the changes could not be recorded: {error}")
            return {}
        if facts:
            lines = {key: facts[key] for key in ("lines_added", "lines_removed")}
            self._tell("work.recorded", files_changed=len(facts["files_changed"]), **lines)
        return facts

    def _published(self, lease: Lease, outcome: Outcome) -> Outcome:
        """The result, durable, once. A lost lease still tells of its loss, which publishes nothing."""
        try:
            with self.ledger.publishing(lease) if outcome.status is not Status.LOST else nullcontext():
                write_result(self._folder, outcome)
        except LeaseLost as lost:
            outcome = outcome._replace(status=Status.LOST, error=str(lost), error_kind="lost")
            write_result(self._folder, outcome)
        return outcome

    # ---- telling

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self._last_phase = name
        self._told(name)
        self._tell("phase.started", phase=name)
        if name in _MAY_TAKE_LONG:
            self._flush()
        ok = False
        try:
            yield
            ok = True
        finally:
            self._phases[name] = time.monotonic() - began
            self._tell("phase.finished", phase=name, seconds=self._phases[name], ok=ok)

    def _use(self, work: Work) -> None:
        for key, value in work.usage.items():
            known = self._usage.get(key, 0.0)
            self._usage[key] = max(known, value) if key.startswith("max_") else known + value

    def _sample(self) -> None:
        try:
            self._sampler = self._sampler or process.Sampler(self._mark)
            sample = self._sampler.look()
        except OSError:
            return  # out of descriptors: no reason to stop beating
        self._usage["max_memory_mb"] = max(self._usage.get("max_memory_mb", 0.0), sample.memory_mb)
        self._tell("resources.sampled", cpu_percent=sample.cpu_percent, memory_mb=sample.memory_mb)
        self._flush()

    def _tell(self, kind: str, **facts: Any) -> None:
        task = self.order.task
        whom = {"task_id": task.id, "spec_name": task.spec, "run_id": self.order.run_id}
        self._events.append(journal.make(kind, runner_id=self._runner_id, **whom, **facts))

    def _flush(self) -> None:
        """Write down what was told: before whatever may take long, and at the end."""
        events, self._events = self._events, []
        journal.append(self.ledger.state.events, events)


def _for_what(refused: Refused) -> str:
    """What is waited for, without the word refused: it is not."""
    return "; ".join(map(str, refused.blockers[:3])) if refused.reason != "limit" else str(refused).partition(": ")[2]
