"""Who comes after whom: which tasks are free once another is done, and which never will be."""

from __future__ import annotations

from collections.abc import Iterable


class Dependencies:
    """What each waiting task still needs. A need that is not known yet may be added later."""

    def __init__(self) -> None:
        self._needs: dict[str, dict[str, None]] = {}
        self._needed_by: dict[str, list[str]] = {}

    def __contains__(self, other: str) -> bool:
        """Whether anything came after `other` when it was added."""
        return other in self._needed_by

    def add(self, task_id: str, needs: Iterable[str]) -> bool:
        """`task_id` comes after all of `needs`, none of which is done. Returns whether it is free at once."""
        wanted = dict.fromkeys(needs)
        for other in wanted:
            self._needed_by.setdefault(other, []).append(task_id)
        if wanted:
            self._needs[task_id] = wanted
        return not wanted

    def drop(self, task_id: str) -> None:
        """`task_id` waits for nobody any more."""
        self._needs.pop(task_id, None)

    def of(self, task_id: str) -> tuple[str, ...]:
        """What `task_id` still needs."""
        return tuple(self._needs.get(task_id, ()))

    def met(self, other: str) -> list[str]:
        """`other` is done; returns those that are free now, in the order they were added."""
        free = []
        for task_id in self._waiting_for(other):
            del self._needs[task_id][other]
            if not self._needs[task_id]:
                del self._needs[task_id]
                free.append(task_id)
        return free

    def unmeetable(self, other: str) -> list[str]:
        """`other` will never be done; returns those that needed it. They are dropped."""
        lost = self._waiting_for(other)
        for task_id in lost:
            del self._needs[task_id]
        return lost

    def _waiting_for(self, other: str) -> list[str]:
        waiting = self._needed_by.pop(other, None)
        if waiting is None:
            return []
        return [task_id for task_id in waiting if other in self._needs.get(task_id, ())]

    def circle(self) -> list[str]:
        """Some tasks that come after each other all around, if nobody outside of them can end their waiting."""
        path: dict[str, None] = {}
        at = next(iter(self._needs), "")
        while at not in path:
            if at not in self._needs:
                return []
            path[at] = None
            at = next(iter(self._needs[at]))
        members = list(path)
        return members[members.index(at) :]
