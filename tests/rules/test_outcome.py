"""What the ends of its tasks make of a run."""

from __future__ import annotations

import pytest

from necrocode.outcome import Status, run_code

DONE, FAILED, CANCELLED = (Status.DONE, 0), (Status.FAILED, 1), (Status.CANCELLED, 1)
CONFLICT, MISSING, INTERRUPTED = (Status.FAILED, 3), (Status.FAILED, 127), (Status.CANCELLED, 130)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([], 0),
        ([DONE, DONE], 0),
        ([DONE, FAILED], 1),
        ([DONE, CONFLICT], 3),
        ([CONFLICT, CANCELLED], 3),
        ([CONFLICT, FAILED], 1),
        ([CANCELLED], 1),
        ([FAILED, MISSING, CONFLICT], 127),
        ([MISSING, CANCELLED], 127),
        ([MISSING, INTERRUPTED, DONE], 130),
    ],
)
def test_a_run_ends_as_the_worst_of_its_tasks_did(ends, code):
    """What was not started because another was not done says nothing beside that one."""
    assert run_code((str(status), number) for status, number in ends) == run_code(reversed(ends)) == code
