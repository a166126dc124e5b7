"""The fleet: starts runners for the tasks of one run and follows them, obeying the schedule.

Runners are processes that outlive their launcher. The launcher keeps nothing that is not on the disk: killed, it
is taken up again from plan.json and the folders of the attempts, and what still lives is adopted.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import journal, process
from necrocode.errors import NecrocodeError, StateUnusable
from necrocode.hand import Hand
from necrocode.launcher import alone
from necrocode.lease import RunnerInstance
from necrocode.ledger import lifeline
from necrocode.ledger.files import FileLedger
from necrocode.order import Order, read_result, write_result
from necrocode.outcome import Outcome, Status
from necrocode.retry import Policy
from necrocode.runs import Plan, attempt_folder, attempts, run_folder
from necrocode.schedule import Behind, Entry, GiveUp, Schedule, Start, Stop
from necrocode.statedir import read, to_json, told
from necrocode.task import Task

_ADOPTED_LOOK = 0.2
_FINAL_ERRORS = ("not_found", "not_executable", "needs_attention")
"""Why another attempt would end the same way."""

Listener = Callable[[str, str, dict[str, Any]], None]
"""Hears of each change: task id, what happened (started, waiting, granted, a phase, finished, ...), and facts."""


class Running(NamedTuple):
    """An attempt under way: its folder, and who carries it (None when it was adopted from an earlier launcher)."""

    folder: Path
    runner_id: str
    hand: Hand | None


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
        self._running: dict[str, Running] = {}
        self._hands: list[Hand] = []
        self._selector = selectors.DefaultSelector()
        self._interrupts = self._obeyed = 0
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

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
        with suppress(BlockingIOError):
            os.write(self._wake[1], b"!")

    def run(self) -> dict[str, Outcome]:
        """Follow the run to its end; the last outcome of each task. Raises ResourceConflictError when somebody else
        is already launching it."""
        with alone(self._state, self.plan.run_id), self._selector:
            self._selector.register(self._wake[0], selectors.EVENT_READ)
            began = time.monotonic()
            self._take_up()
            try:
                self._follow()
            finally:
                self._dismiss()
            counts: dict[str, Any] = {str(s): self.schedule.count(s) for s in Status if s.is_final}
            self._tell("run.finished", **counts, seconds=time.monotonic() - began)
        return self.outcomes

    def _follow(self) -> None:
        while True:
            now = time.monotonic()
            for order in self.schedule.orders(now):
                self._obey(order)
            if self.schedule.is_over:
                return
            self._listen(self.schedule.next_wake(time.monotonic()))

    # ---- orders

    def _obey(self, order: Start | Stop | GiveUp | Behind) -> None:
        if isinstance(order, Start):
            self._start(self.plan.task(order.task_id))
        elif isinstance(order, Stop):
            self._stop(order.task_id)
        elif isinstance(order, GiveUp):
            self._give_up(order)
        else:
            facts = {"after": order.after, "claims": [str(order.wanted)]}
            self._tell("conflict.avoided", order.task_id, **facts)
            self._listener(order.task_id, "behind", facts)

    def _start(self, task: Task) -> None:
        number = max((n for n, _ in attempts(self._state, self.plan.run_id, task.id)), default=0) + 1
        folder = attempt_folder(self._state, self.plan.run_id, task.id, number)
        with told(folder):
            folder.mkdir(mode=0o700)
        try:
            order = self.plan.order(self._state, task, number, self.outcomes)
        except NecrocodeError as error:
            write_result(
                folder, Outcome(task.id, Status.FAILED, number, str(error), "needs_attention", ended=time.time())
            )
            self._running[task.id] = Running(folder, "", None)
            return self._conclude(task.id)
        self._state.write(folder / "task.json", to_json(order.to_dict()))
        self._running[task.id] = Running(folder, order.runner_id, self._hand_over(folder))
        self._listener(task.id, "started", {"attempt": number})

    def _hand_over(self, folder: Path) -> Hand:
        hand = next((hand for hand in self._hands if hand.idle), None)
        if hand is None:
            hand = Hand(self._state, run_folder(self._state, self.plan.run_id) / "runners.log")
            self._hands.append(hand)
            self._selector.register(hand.output, selectors.EVENT_READ, hand)
        hand.carry(folder)
        return hand

    def _stop(self, task_id: str) -> None:
        running = self._running[task_id]
        self._listener(task_id, "stopping", {})
        if running.hand:
            running.hand.stop()
        elif record := self._record(running.runner_id):
            _terminate(record)

    def _give_up(self, order: GiveUp) -> None:
        self.outcomes[order.task_id] = Outcome(order.task_id, Status.CANCELLED, 0, order.reason, "cancelled")
        self._tell("task.cancelled", order.task_id, reason=order.reason)
        self._listener(order.task_id, "cancelled", {"reason": order.reason})

    # ---- facts

    def _listen(self, timeout: float | None) -> None:
        adopted = [task_id for task_id, running in self._running.items() if running.hand is None]
        if adopted:
            timeout = min(_ADOPTED_LOOK, timeout if timeout is not None else _ADOPTED_LOOK)
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._interrupted()
            else:
                self._hear(key.data)
        for task_id in adopted:
            self._look_after(task_id)

    def _interrupted(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake[0], 64)
        for times in range(self._obeyed + 1, self._interrupts + 1):
            if times == 1:
                self.schedule.stop_starting(time.monotonic(), "interrupted")
            else:
                self.schedule.abort(time.monotonic(), "interrupted")
            self._listener("", "interrupted", {"times": times})
        self._obeyed = self._interrupts

    def _hear(self, hand: Hand) -> None:
        for said in hand.heard():
            task_id = self._task_of(Path(said["folder"]))
            if task_id is not None:
                self._said(task_id, said)
        if hand.gone:
            self._selector.unregister(hand.output)
            self._hands.remove(hand)
            hand.close()
            for task_id in [task_id for task_id, running in self._running.items() if running.hand is hand]:
                self._lost(task_id)

    def _said(self, task_id: str, said: dict[str, Any]) -> None:
        what = said["said"]
        if what == "done":
            return self._conclude(task_id)
        if what == "broken":
            write_result(
                Path(said["folder"]), Outcome(task_id, Status.FAILED, error=said["error"], error_kind="broken")
            )
            return self._conclude(task_id)
        if what == "waiting":
            self.schedule.blocked(task_id)
        elif what == "granted":
            self.schedule.admitted(task_id, time.monotonic())
        self._listener(task_id, what, said)

    def _task_of(self, folder: Path) -> str | None:
        return next((task_id for task_id, running in self._running.items() if running.folder == folder), None)

    def _conclude(self, task_id: str, *, earlier: bool = False) -> None:
        """The attempt's result is on the disk: tell the schedule, and hear what follows."""
        outcome = read_result(self._running.pop(task_id).folder)
        if outcome is None:
            raise StateUnusable(str(self._state.root), f"the result of {task_id} is not there although it was told")
        self.outcomes[task_id] = outcome
        status = self._inform(task_id, outcome)
        facts = {"attempt": outcome.attempt, "status": str(outcome.status), "error": outcome.error, "earlier": earlier}
        if status is Status.WAITING and not earlier:
            self._tell("attempt.retried", task_id, attempt=outcome.attempt, error=outcome.error)
        self._listener(task_id, "retrying" if status is Status.WAITING else "finished", facts)

    def _inform(self, task_id: str, outcome: Outcome) -> Status:
        now = time.monotonic()
        if outcome.status is Status.DONE:
            return self.schedule.finished(task_id, outcome, now)
        if outcome.status is Status.TIMED_OUT:
            return self.schedule.timed_out(task_id, outcome.error, now)
        if outcome.status is Status.LOST:
            return self.schedule.lost(task_id, now)
        if outcome.status is Status.CANCELLED and self.schedule.standing(task_id).status is Status.RUNNING:
            self.schedule.cancel(task_id, now, outcome.error)  # somebody else stopped it
        retry = outcome.error_kind not in _FINAL_ERRORS
        return self.schedule.failed(task_id, outcome.error, now, retry=retry)

    # ---- the dead and the adopted

    def _lost(self, task_id: str) -> None:
        """The runner died. Whatever its tree still does is ended, and its attempt can have no other result."""
        running = self._running[task_id]
        if read_result(running.folder) is None:
            if running.runner_id:
                process.end_tree(running.runner_id, grace=self.plan.grace)
            number = int(running.folder.name.rpartition(".")[2])
            lost = Outcome(task_id, Status.LOST, number, "its runner died", "lost", runner_id=running.runner_id)
            write_result(running.folder, lost._replace(exit_code=None, runner_id=running.runner_id))
            self._tell("attempt.lost", task_id, attempt=number)
            self._ledger.sweep()
        self._conclude(task_id)

    def _look_after(self, task_id: str) -> None:
        running = self._running.get(task_id)
        if running is None:
            return None
        if (running.folder / "result.json").exists():
            return self._conclude(task_id)
        record = self._record(running.runner_id)
        held = lifeline.is_held(self._state.live / running.runner_id)
        if not held or (record and record.holder and process.is_gone(record.holder)):
            self._lost(task_id)

    def _record(self, runner_id: str) -> RunnerInstance | None:
        snapshot = self._ledger.snapshot()
        records = [*(seen.record for seen in snapshot.runners), *(waiter.record for waiter in snapshot.waiting)]
        return next((record for record in records if record.runner_id == runner_id), None)

    # ---- beginning and end

    def _take_up(self) -> None:
        """Tell the schedule what earlier launchers of this run came to."""
        known = {task.id: list(attempts(self._state, self.plan.run_id, task.id)) for task in self.plan.tasks}
        if not any(known.values()):
            return self._tell("run.started", tasks=len(self.plan.tasks), limit=self.plan.jobs)
        for task in self.plan.tasks:
            for number, folder in known[task.id]:
                self._replay(task.id, number, folder)
        done = self.schedule.count(Status.DONE)
        return self._tell(
            "run.resumed", adopted=len(self._running), done=done, requeued=self.schedule.count(Status.WAITING)
        )

    def _replay(self, task_id: str, number: int, folder: Path) -> None:
        outcome = read_result(folder)
        if self.schedule.standing(task_id).status is not Status.WAITING:
            return
        if outcome and (outcome.status is Status.CANCELLED or (self._retry_failed and not outcome.ok)):
            return  # it may be done once more, with all its attempts
        self.schedule.adopt(task_id, number, time.monotonic())
        self._running[task_id] = Running(folder, _runner_id(folder), None)
        if outcome:
            self._conclude(task_id, earlier=True)
        else:
            self._look_after(task_id)
            if task_id in self._running:
                self._listener(task_id, "adopted", {"attempt": number})

    def _dismiss(self) -> None:
        for hand in self._hands:
            hand.dismiss()
        for descriptor in self._wake:
            os.close(descriptor)

    def _tell(self, kind: str, task_id: str = "", **facts: Any) -> None:
        journal.append(self._state.events, [journal.make(kind, task_id=task_id, run_id=self.plan.run_id, **facts)])


def _runner_id(folder: Path) -> str:
    try:
        return Order.from_dict(json.loads(read(folder / "task.json"))).runner_id
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # its launcher died before the order was written: nobody can carry it


def _terminate(record: RunnerInstance) -> None:
    from necrocode.process.who import send

    if record.holder:
        send(record.holder.pid, record.holder.start_ticks, signal.SIGTERM)
