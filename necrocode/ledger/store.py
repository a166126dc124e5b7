"""What a store of the ledger supplies: the moves, each whole by itself, and the looks that decisions need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from necrocode.admission import Standing, View, Waiter
from necrocode.lease import Lease, Request, RunnerInstance
from necrocode.liveness import Seen


class Store(ABC):
    """The state of a ledger, as the operations see it: files, or memory."""

    view: View

    @abstractmethod
    def _gate(self, operation: str, *, patience: float | None = None) -> AbstractContextManager[bool]:
        """Enter, bring `view` up to date; the value says whether the last one in died inside."""

    @abstractmethod
    def _next(self) -> int: ...

    def _check_terms(self) -> None:
        """Raise when the host's terms cannot be read. Only admission needs them."""

    @abstractmethod
    def _open(self, request: Request) -> Lease:
        """A handle whose lifeline is locked but not visible yet."""

    @abstractmethod
    def _prepare(self, lease: Lease, *, wait: bool) -> None:
        """Write the request to where one rename puts it in place, and make the bell if it may have to wait."""

    @abstractmethod
    def _show(self, lease: Lease) -> None:
        """Make the lifeline visible. Before any record of this id is."""

    @abstractmethod
    def _hide(self, lease: Lease) -> None:
        """The reverse, at the end of the gate: only inside is it certain whose name that is, and the death of a
        process whose lifeline is hidden goes unnoticed, so everybody has to be served first."""

    @abstractmethod
    def _bury(self, runner_id: str) -> None:
        """Remove the lifeline and bell that a dead process left."""

    @abstractmethod
    def _owns(self, lease: Lease) -> bool:
        """Whether the visible lifeline of this id is this handle's, and the handle this process's."""

    @abstractmethod
    def _admit(self, lease: Lease, token: int) -> None: ...

    @abstractmethod
    def _enqueue(self, lease: Lease, waiter: Waiter) -> None: ...

    @abstractmethod
    def _grant(self, waiter: Waiter, token: int) -> None: ...

    @abstractmethod
    def _rewrite(self, standing: Standing, record: RunnerInstance) -> Standing: ...

    @abstractmethod
    def _remove(self, standing: Standing) -> None: ...

    @abstractmethod
    def _revoke(self, standing: Standing) -> None: ...

    @abstractmethod
    def _drop(self, waiter: Waiter) -> None: ...

    @abstractmethod
    def _record(self, runner_id: str) -> RunnerInstance | None:
        """The record of a lease or registration, for its facts."""

    @abstractmethod
    def _look(self, runner_id: str) -> Seen: ...

    def _is_orphaned(self, runner_id: str) -> bool:
        """Whether its processes go on without the one that gave signs of life."""
        return False

    @abstractmethod
    def _wake(self, runner_id: str) -> None: ...

    @abstractmethod
    def _sleep(self, lease: Lease, waiter: Waiter, deadline: float | None) -> bool:
        """Until the waiter has left the queue (True) or the deadline is over (False)."""

    @abstractmethod
    def _close(self, lease: Lease) -> None:
        """Let go of everything the handle holds outside the records. Never raises."""

    @abstractmethod
    def _publishing(self, lease: Lease, inside: bool) -> None: ...

    @abstractmethod
    def _beat(self, lease: Lease) -> None:
        """Stamp, and notice without the gate when the record has changed or gone (LeaseLost)."""

    @abstractmethod
    def _tell(self, kind: str, runner_id: str, **facts: Any) -> None: ...

    def _hush(self, lease: Lease) -> None:
        """Let go of the bell of a wait that never began. Never raises."""

    def _enter(self, lease: Lease) -> None:
        """This handle holds its lease now."""

    def _tidy(self) -> None:
        """Remove litter that is neither true nor needed. Nothing by default."""

    def _flush(self) -> None:
        """Write out what was told."""
