"""The watchman: the first live waiter looks after the holders, so that whatever dies or falls silent is followed up."""

from __future__ import annotations

import os
from contextlib import suppress

from necrocode.errors import GateTimeout, StateUnusable
from necrocode.ledger import lifeline
from necrocode.ledger.placing import Placing, record_at
from necrocode.ledger.records import is_orphaned, runner_of
from necrocode.liveness import PUBLISHING_BOUND, may_publish

_ROUND = 2.0
"""Seconds between two rounds of the watchman in which nothing happened."""
_AGAIN = 0.02
"""Seconds after which the watchman looks again at the soonest."""
_HURRY = 1.0
"""Seconds that the watchman waits for the gate; when it stays shut, the next round will do."""


class Watchman(Placing):
    """What one that waits does meanwhile for everybody who waits."""

    _timeouts: dict[str, float]

    def _keep_watch(self, first: bool) -> float:
        """The watchman's round; seconds until the next. A folder that somebody removed is made again: nobody who waits
        shall lose its place for that."""
        try:
            return self._round(first)
        except (FileNotFoundError, StateUnusable) as error:
            missing = isinstance(error.__cause__ or error, FileNotFoundError)
            if not (missing and os.path.exists(f"{self._root}/VERSION")):
                raise
            self.state.make_folders()
            return _AGAIN

    def _round(self, first: bool) -> float:
        """Without the gate unless there is something to put right.

        In the first, those who wait are not looked at: in a long line everybody would read all of it once."""
        left = [_ROUND, *map(self._seconds_left, os.listdir(f"{self._root}/runners"))]
        for folder in ("fenced",) if first else ("fenced", "queue"):
            names = os.listdir(f"{self._root}/{folder}")
            left += [0.0 for name in names if not lifeline.is_held(self._life(runner_of(folder, name)))]
        seen = self._changes()
        if min(left) <= 0 or self.view.unreadable or not self._is_settled(seen):
            with suppress(GateTimeout), self._gate("watch", patience=_HURRY):
                self._clear_all() if min(left) <= 0 else self._schedule()
                self._watched = seen
        return max(_AGAIN, min(left))

    def _seconds_left(self, file_name: str) -> float:
        """Until this lease may be ended: 0 for a dead holder, and for one that is silent for too long."""
        path, runner_id = f"{self._root}/runners/{file_name}", runner_of("runners", file_name)
        seen = self._judged(runner_id, lambda: record_at(path))
        if not seen.held:
            return 0.0
        left = self._timeout(file_name, path) - (seen.silent or 0.0)
        if left <= 0 and is_orphaned(record_at(path)):
            return _ROUND
        return max(left, PUBLISHING_BOUND - (seen.publishing or 0.0)) if may_publish(seen) else left

    def _timeout(self, file_name: str, path: str) -> float:
        if file_name not in self._timeouts:
            if len(self._timeouts) > 10_000:
                self._timeouts.clear()
            record = record_at(path)
            self._timeouts[file_name] = record.heartbeat_timeout if record else 300.0
        return self._timeouts[file_name]
