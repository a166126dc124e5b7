"""Event: one fact about what happened, and the only vocabulary of facts.

Kinds are `<thing>.<past participle>`; what belongs to one kind beyond the fixed fields stands in `facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

KINDS: Mapping[str, str] = {
    "lease.granted": "a runner was admitted: token, waited (s), slot, live (count after), limit",
    "lease.refused": "a request was turned down: reason, blockers (ids), claims (of both at most 8)",
    "lease.queued": "a request waits: reason, blockers (ids), claims (of both at most 8)",
    "lease.abandoned": "a waiter left the queue: reason (timeout, cancelled, dead), after a timeout waited (s)",
    "lease.extended": "claims were added: claims, waited (s)",
    "lease.reduced": "claims were given back: claims",
    "lease.fenced": "a silent lease was revoked: token, silent (s), live (count after)",
    "lease.reaped": "a dead runner's lease was removed: token, live (count after)",
    "lease.released": "a lease ended: token, held (s), slot, live (count after)",
    "lease.published": "a publishing window closed: token, seconds",
    "deadlock.found": "waiting would have closed a circle: cycle (ids)",
    "record.quarantined": "a file of the state could not be read: file, reason, moved_to",
    "conflict.found": "a question or claim met somebody else's: claims, blockers (ids)",
    "conflict.avoided": "two tasks of one run that want the same were put one after the other: after, claims",
    "run.started": "a run began: tasks (count), limit",
    "run.resumed": "a run was taken up again: adopted, requeued, done (counts)",
    "run.finished": "a run ended: done, failed, timed_out, cancelled (counts), seconds",
    "task.queued": "a task call waits for its turn: after (ids)",
    "task.cancelled": "a task will not be started: reason",
    "attempt.started": "an attempt began: attempt, workspace, branch",
    "attempt.retried": "another attempt will follow: attempt, error, and where it is known delay (s)",
    "attempt.lost": "the process of an attempt died: attempt",
    "attempt.finished": "an attempt ended: attempt, status, error, and seconds where a runner tells",
    "phase.started": "a phase of an attempt began: phase",
    "phase.finished": "a phase of an attempt ended: phase, seconds, ok",
    "work.recorded": "what was changed: files_changed, lines_added, lines_removed",
    "tests.recorded": "what was tested: run, passed, failed",
    "artifacts.recorded": "what was kept: count, bytes",
    "resources.sampled": "one look at the process tree: cpu_percent, memory_mb",
    "error.recorded": "something went wrong and the attempt went on: error",
    "workspace.prepared": "a workspace is ready: path, branch, base, seconds",
    "workspace.kept": "a workspace stays: path, reason",
    "workspace.removed": "a workspace is gone: path",
    "snapshot.taken": "uncommitted work was saved as a ref: ref, commit",
    "stop.asked": "somebody asked a run, task or runner to stop: by",
}


class Event(NamedTuple):
    """What happened (`kind`), when (`at`, seconds since 1970, for people; `mono`, seconds on the boot's clock, for
    arithmetic) and to whom; `facts` are the kind's own."""

    kind: str
    at: float
    mono: float
    runner_id: str = ""
    task_id: str = ""
    spec_name: str = ""
    run_id: str = ""
    facts: Mapping[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        whom = {key: value for key, value in zip(self._fields[3:7], self[3:7], strict=True) if value}
        return {"kind": self.kind, "at": round(self.at, 6), "mono": round(self.mono, 6), **whom, **self.facts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Event:
        """The reverse. Raises KeyError, TypeError or ValueError for what is no event."""
        fixed = {key: data[key] for key in cls._fields[3:7] if key in data}
        facts = {key: value for key, value in data.items() if key not in cls._fields}
        return cls(str(data["kind"]), float(data["at"]), float(data["mono"]), **fixed, facts=facts)
