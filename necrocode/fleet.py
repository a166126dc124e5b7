"""The fleet: starts runners for the tasks of one run and follows them, obeying the schedule.

Runners are processes that outlive their launcher. The launcher keeps nothing that is not on the disk: killed, it
is taken up again from plan.json and the folders of the attempts, and what still lives is adopted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from necrocode import journal, process, scratch
from necrocode.crew import Crew, Running
from necrocode.errors import LandingConflict, NecrocodeError, StateUnreadable, StateUnusable, advised
from necrocode.launcher import alone
from necrocode.ledger.files import FileLedger
from necrocode.order import lost, put_aside, read_result, unheard, was_begun, write_result
from necrocode.outcome import FINAL_ERRORS, Outcome, Status
from necrocode.remains import clear_done, clear_scratch, ends_told
from necrocode.retry import Policy
from necrocode.runs import Plan, asked_anew, attempt_folder, attempts_of_all, run_folder
from necrocode.schedule import Behind, Entry, GiveUp, Schedule, Start, Stop
from necrocode.statedir import mark, put, to_json, told
from necrocode.task import Task
from necrocode.vigil import Vigil

_STILLBORN = 16
"""Runners in a row that may die without a word until the attempts they were given count as lost."""

Listener = Callable[[str, str, dict[str, Any]], None]
"""Hears of each change: task id, what happened (started, waiting, granted, a phase, finished, ...), and facts."""


class Fleet:
    """One run under way, on one ledger. `listener` hears of every change as it happens."""

    def __init__(
        self, plan: Plan, ledger: FileLedger, *, listener: Listener | None = None, retry_failed: bool = False
    ) -> None:
        self.plan, self._ledger, self._state = plan, ledger, ledger.state
        self._listener = listener or (lambda task_id, what, facts: None)
        self._retry_failed = retry_failed
        self.outcomes: dict[str, Outcome] = {}
        entries = (self._entry(task) for task in plan.tasks)
        self.schedule = Schedule(entries, plan.jobs, fail_fast=plan.fail_fast)
        self._tasks = {task.id: task for task in plan.tasks}
        self._numbers: dict[str, int] = {}
        self._blocked: set[str] = set()
        self._granted: dict[str, None] = {}
        self._crew = Crew(self._state, run_folder(self._state, plan.run_id) / "runners.log")
        self._vigil = Vigil(ledger, plan.heartbeat_timeout, max(plan.heartbeat_timeout, plan.grace))
        self._interrupts = self._obeyed = 0
        self._resumed, self._stillborn = False, 0

    def _entry(self, task: Task) -> Entry:
        # The runner keeps the attempt's clocks; the schedule is told what came of them.
        return Entry(
            task.id, task.priority, task.after, self.plan.claims[task.id], None, Policy(retries=task.retries), True
        )

    @property
    def interrupted(self) -> bool:
        return self._interrupts > 0

    def interrupt(self, times: int = 1) -> None:
        """Once: start nothing more. Twice: end what runs. Safe to call from a signal handler."""
        self._interrupts = max(times, self._interrupts)
        self._crew.wake()

    def run(self) -> dict[str, Outcome]:
        """Follow the run to its end; the last outcome of each task. Raises Refused when somebody else does already."""
        with alone(self._state, self.plan.run_id, **self.plan.followed, failed_too=self._retry_failed):
            began = time.monotonic()
            with self._crew.assembled(lambda: self.schedule.is_over):
                self._take_up()
                self._interrupted()
                self._follow()
            if self._resumed:
                clear_scratch(self._state, self.plan.run_id)
                clear_done(self.plan, self._ledger, {one for one, outcome in self.outcomes.items() if outcome.ok})
            counts: dict[str, Any] = {str(s): self.schedule.count(s) for s in Status if s.is_final}
            self._tell("run.finished", **counts, seconds=time.monotonic() - began)
        return self.outcomes

    def _follow(self) -> None:
        while True:
            now = time.monotonic()
            self._let_go()
            for order in self.schedule.orders(now):
                self._obey(order)
            wake = self.schedule.next_wake(time.monotonic())
            if self.schedule.is_over and wake != 0.0:
                return  # and nothing is left to be told
            self._listen(wake)

    # ---- orders

    def _obey(self, order: Start | Stop | GiveUp | Behind) -> None:
        if isinstance(order, Start):
            self._start(self._tasks[order.task_id])
        elif isinstance(order, Stop):
            self._stop(order.task_id)
        elif isinstance(order, GiveUp):
            self._give_up(order)
        else:
            facts = {"after": order.after, "claims": [str(order.wanted)]}
            self._tell("conflict.avoided", order.task_id, **facts)
            self._listener(order.task_id, "behind", facts)

    def _start(self, task: Task) -> None:
        number = self._numbers[task.id] = self._numbers.get(task.id, 0) + 1
        folder = attempt_folder(self._state, self.plan.run_id, task.id, number)
        with told(folder):
            folder.mkdir(mode=0o700)
        try:
            order = self.plan.order(self._state, task, number, self.outcomes)
        except NecrocodeError as error:
            kind = "needs_attention" if isinstance(error, LandingConflict) else "prepare"
            write_result(folder, unheard(task.id, folder, Status.FAILED, advised(error), kind))
            self._crew.adopt(task.id, folder, "")
            return self._conclude(task.id)
        with told(folder):
            put(folder / "task.json", to_json(order.to_dict()))  # nobody reads it before it is handed over
        self._crew.begin(task.id, folder, order.runner_id)
        self._listener(task.id, "started", {"attempt": number})

    def _stop(self, task_id: str) -> None:
        if running := self._crew.running.get(task_id):  # else it came to its end meanwhile
            self._listener(task_id, "stopping", {})
            carrier = None if running.hand else self._vigil.carrier(running.folder, running.runner_id)
            self._crew.stop(task_id, carrier)

    def _give_up(self, order: GiveUp) -> None:
        self.outcomes[order.task_id] = Outcome(order.task_id, Status.CANCELLED, 0, order.reason, "cancelled")
        self._tell("task.cancelled", order.task_id, reason=order.reason)
        self._listener(order.task_id, "cancelled", {"reason": order.reason})

    # ---- facts

    def _listen(self, timeout: float | None) -> None:
        adopted, pause = self._crew.adopted, self._vigil.pause()
        for task_id, said in self._crew.listen(pause if timeout is None else min(timeout, pause)):
            if not task_id:
                self._interrupted()
            elif said["said"] == "gone":
                self._lost(task_id)
            else:
                self._said(task_id, said)
        for task_id in adopted:
            self._look_after(task_id)
        self._keep_vigil()

    def _keep_vigil(self) -> None:
        under_way = {running.runner_id: task_id for task_id, running in self._crew.running.items()}
        folders = {running.runner_id: running.folder for running in self._crew.running.values()}
        for runner_id in list(self._vigil.lost(folders)):
            self._lost(under_way[runner_id], "its lease was revoked, since its runner gave no sign of life")

    def _interrupted(self) -> None:
        while self._obeyed < self._interrupts:  # another may come at any moment, and must not be lost
            self._obeyed += 1
            if self._obeyed == 1:
                self.schedule.stop_starting(time.monotonic(), "interrupted")
            else:
                self.schedule.abort(time.monotonic(), "interrupted")
            if self._obeyed == self._interrupts:  # SIGTERM counts twice, and is told once
                self._listener("", "interrupted", {"times": self._obeyed})

    def _said(self, task_id: str, said: dict[str, Any]) -> None:
        what, self._stillborn = said["said"], 0
        if what == "done":
            return self._conclude(task_id)
        if what == "unusable":
            # Nothing that it did could be written down; as long as that is so, nothing can be told or begun.
            raise StateUnusable(said["path"], said["reason"], hint=said["hint"])
        if what in ("broken", "refused"):
            folder = Path(said["folder"])
            write_result(folder, unheard(task_id, folder, Status.FAILED, said["error"], "broken"))
            return self._conclude(task_id)
        if what == "waiting":
            self._blocked.add(task_id)
            self.schedule.blocked(task_id)
        elif what == "granted" and task_id in self._blocked:
            self._granted[task_id] = None
            return None
        elif what == "granted":
            self.schedule.admitted(task_id, time.monotonic())
        self._listener(task_id, what, said)

    def _let_go(self) -> None:
        """Let those work that have got what strangers held, as many as there is room for: others of this run may
        have taken their turns meanwhile."""
        for task_id in list(self._granted):
            if len(self._crew.running) - len(self._blocked) >= self.plan.jobs:
                return
            del self._granted[task_id]
            self._blocked.discard(task_id)
            self.schedule.admitted(task_id, time.monotonic())
            self._listener(task_id, "granted", {})
            self._crew.go_on(task_id)

    def _conclude(self, task_id: str) -> None:
        """The attempt's result is on the disk: tell the schedule, and hear what follows."""
        folder = self._crew.end(task_id)
        self._blocked.discard(task_id)
        self._granted.pop(task_id, None)
        outcome = self._result(folder)
        if outcome is None:
            raise StateUnusable(str(folder), f"the result of {task_id} is not there although it was told")
        self._weigh(task_id, outcome)

    def _result(self, folder: Path) -> Outcome | None:
        """What came of an attempt, as far as it can be read; one that cannot is put aside and counts as none."""
        try:
            return read_result(folder)
        except StateUnreadable as error:
            put_aside(self._state, self.plan.run_id, error)
            return None

    def _weigh(self, task_id: str, outcome: Outcome, *, earlier: bool = False) -> None:
        """What follows from an outcome; an `earlier` one, of a launcher before this, mostly was told before."""
        status, unsaid = self._inform(task_id, outcome), outcome.token is None  # who has no lease tells of no end
        if status is Status.FAILED and outcome.status is Status.LOST:  # once too often
            outcome = outcome._replace(status=status, error=f"{outcome.error}; lost too often, not tried again")
            unsaid = True
        self.outcomes[task_id] = outcome
        facts = {"attempt": outcome.attempt, "status": str(outcome.status), "error": outcome.error}
        if unsaid and not (earlier and (task_id, outcome.attempt) in self._ends_told):
            self._tell("attempt.finished", task_id, **facts)
        if status is Status.WAITING and not earlier:
            self._tell("attempt.retried", task_id, attempt=outcome.attempt, error=outcome.error)
        happened = "retrying" if status is Status.WAITING else "finished"
        self._listener(task_id, happened, {**facts, "earlier": earlier})

    @cached_property
    def _ends_told(self) -> frozenset[tuple[str, int]]:
        return ends_told(self._state, self.plan.run_id)

    def _inform(self, task_id: str, outcome: Outcome) -> Status:
        now = time.monotonic()
        if outcome.status is Status.DONE:
            return self.schedule.finished(task_id, outcome, now)
        if outcome.status is Status.TIMED_OUT:
            return self.schedule.timed_out(task_id, outcome.error, now)
        if outcome.error_kind == "lost":
            return self.schedule.lost(task_id, now)
        if outcome.status is Status.CANCELLED and self.schedule.standing(task_id).status is Status.RUNNING:
            self.schedule.cancel(task_id, now, outcome.error)  # somebody else stopped it
        retry = outcome.error_kind not in FINAL_ERRORS
        return self.schedule.failed(task_id, outcome.error, now, retry=retry)

    # ---- the dead and the adopted

    def _lost(self, task_id: str, why: str = "its runner died") -> None:
        """The runner died, or is as good as dead. Whatever its tree still does is ended, and its attempt can have no
        other result."""
        running = self._crew.running[task_id]
        if self._result(running.folder) is None:
            if running.hand and self._is_unbegun(task_id, running):
                return self._crew.begin(task_id, running.folder, running.runner_id)
            process.end_tree(mark(self._state.root, running.runner_id), grace=self.plan.grace)
            for path in scratch.remains(running.folder, self._vigil.carrier(running.folder, running.runner_id)):
                scratch.remove(path)
            self._write_end(task_id, running, why)
            self._ledger.sweep()
        return self._conclude(task_id)

    def _is_unbegun(self, task_id: str, running: Running) -> bool:
        """Whether another runner can carry the very same attempt: this one ended before it could begin. Where many of
        them do not even come to speak, they count as having carried it: there is an end to everything."""
        assert running.hand
        self._stillborn += not running.hand.proven
        stopping = self.schedule.standing(task_id).status is Status.STOPPING
        return not stopping and self._stillborn <= _STILLBORN and not (running.folder / "runner.json").exists()

    def _write_end(self, task_id: str, running: Running, why: str) -> None:
        """What is to be said of an attempt whose runner says no more."""
        standing, most = self.schedule.standing(task_id), self.schedule.poison_limit
        stopping = standing.status is Status.STOPPING
        how = (Status.CANCELLED, "it was stopped", "stopped") if stopping else lost(why, standing.losses + 1, most)
        end = unheard(task_id, running.folder, *how)
        write_result(running.folder, end._replace(runner_id=running.runner_id))
        if not stopping:
            self._tell("attempt.lost", task_id, attempt=end.attempt)

    def _look_after(self, task_id: str) -> None:
        """Whether an adopted attempt has come to its end, or its runner to its own."""
        running = self._crew.running.get(task_id)
        if running is None:
            return
        if (running.folder / "result.json").exists():
            self._conclude(task_id)
        elif self._vigil.is_over(running.folder, running.runner_id):
            self._lost(task_id)

    # ---- beginning and end

    def _take_up(self) -> None:
        """Tell the schedule what earlier launchers of this run came to."""
        known = attempts_of_all(self._state, self.plan.run_id)
        self._numbers = {task_id: folders[-1][0] for task_id, folders in known.items()}
        self._resumed = bool(known)
        if not known:
            return self._tell("run.started", tasks=len(self.plan.tasks), limit=self.plan.jobs)
        for task in self.plan.tasks:
            came = [(number, folder, self._result(folder)) for number, folder in known.get(task.id, ())]
            for attempt in came[asked_anew([outcome for _, _, outcome in came], task.retries) :]:
                self._replay(task.id, *attempt)
        adopted, count = len(self._crew.running), self.schedule.count
        return self._tell("run.resumed", adopted=adopted, done=count(Status.DONE), requeued=count(Status.WAITING))

    def _replay(self, task_id: str, number: int, folder: Path, outcome: Outcome | None) -> None:
        waits = self.schedule.standing(task_id).status is Status.WAITING
        if not waits or (outcome is None and not was_begun(self._state, task_id, folder)):
            return None
        if outcome and (outcome.status is Status.CANCELLED or (self._retry_failed and not outcome.ok)):
            return None  # it may be done once more, with all its attempts
        self.schedule.adopt(task_id, number, time.monotonic())
        if outcome:
            return self._weigh(task_id, outcome, earlier=True)
        self._crew.adopt(task_id, folder, f"{self.plan.run_id}.{task_id}.{number}")
        self._listener(task_id, "adopted", {"attempt": number})
        self._look_after(task_id)

    def _tell(self, kind: str, task_id: str = "", **facts: Any) -> None:
        journal.append(self._state.events, [journal.make(kind, task_id=task_id, run_id=self.plan.run_id, **facts)])
