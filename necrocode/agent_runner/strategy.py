"""What to do about a conflict: refuse, wait, or go on without. One rule for registering and for claiming more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from necrocode import journal
from necrocode.claim import Claim
from necrocode.errors import ConfigError, Refused, ResourceConflictError
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger

logger = logging.getLogger(__name__)

OnConflict = Literal["refuse", "wait", "warn"]
"""About files or branches that somebody else holds: refuse everything, wait for them, or go on without claiming
them, with a warning. A work space that is taken is never worked in: under `warn` it refuses."""


def checked(on_conflict: str | None) -> OnConflict | None:
    """The strategy itself, or ConfigError."""
    if on_conflict is not None and on_conflict not in get_args(OnConflict):
        raise ConfigError(f"on_conflict={on_conflict!r} is not known", hint="use refuse, wait or warn")
    return on_conflict  # type: ignore[return-value]


def enter(
    ledger: FileLedger,
    register: Callable[..., Lease],
    request: Request,
    on_conflict: OnConflict | None,
    *,
    wait: bool,
    timeout: float | None,
    on_wait: Callable[[Refused], None] | None = None,
) -> Lease:
    """Register as the strategy says; without one, a conflict is waited for just as a slot is, if `wait`.

    `on_wait` hears what is waited for. Raises what `register` does."""

    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return register(request)  # most need not wait: then no bell is made, and nobody hears of a queue
        except Refused as refusal:
            conflict = refusal if isinstance(refusal, ResourceConflictError) else None
            if conflict and on_conflict == "warn" and refusal.reason != "duplicate":
                request = request._replace(claims=without_taken(ledger, request.claims, conflict))
                continue
            if not (on_conflict == "wait" or (on_conflict is None and wait) if conflict else wait):
                raise
            if on_wait:
                on_wait(refusal)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            return register(request, wait=True, timeout=left)


def extend(
    ledger: FileLedger,
    lease: Lease,
    wanted: tuple[Claim, ...],
    on_conflict: OnConflict | None,
    *,
    drop: Callable[[Claim], bool] = lambda _: False,
    timeout: float | None = None,
) -> None:
    """Claim more, and give back what `drop` is true of, as the strategy says. Raises what `ledger.claim` does, and
    nothing has been given back then."""
    while True:
        try:
            if on_conflict == "wait":  # who gave back first could wait in vain, and would have neither
                ledger.claim(lease, wanted, wait=True, timeout=timeout)
            return ledger.claim(lease, wanted, drop=drop)
        except ResourceConflictError as refusal:
            if on_conflict != "warn":
                raise
            wanted = without_taken(ledger, wanted, refusal)


def without_taken(ledger: FileLedger, claims: tuple[Claim, ...], refusal: ResourceConflictError) -> tuple[Claim, ...]:
    """The claims without those that were refused, told in log and journal; raises the refusal when none can go."""
    taken = {holder.wanted for holder in refusal.blockers if holder.wanted}
    kept = tuple(claim for claim in claims if claim not in taken or claim.family == "workspace")
    if kept == claims:
        raise refusal
    logger.warning("going on without a claim: %s", refusal)
    tell_conflict(ledger, refusal.runner_id, taken, (holder.runner_id for holder in refusal.blockers))
    return kept


def tell_conflict(ledger: FileLedger, runner_id: str, claims: Iterable[Claim], blockers: Iterable[str]) -> None:
    """One `conflict.found` event."""
    lease = ledger.find(runner_id)
    event = journal.make(
        "conflict.found",
        runner_id=runner_id,
        task_id=lease.record.task_id if lease else "",
        spec_name=lease.record.spec_name if lease else "",
        claims=sorted(map(str, claims)),
        blockers=sorted(set(blockers)),
    )
    journal.append(ledger.state.events, [event])
