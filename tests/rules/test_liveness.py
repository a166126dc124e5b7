"""Alive, silent or dead; and what may be done about it: by tables."""

from __future__ import annotations

import pytest

from necrocode.liveness import PUBLISHING_BOUND, Observer, Seen, judge, may_fence, may_publish


@pytest.mark.parametrize(
    ("seen", "verdict", "fence"),
    [
        (Seen(False), "dead", False),
        (Seen(False, 999.0), "dead", False),
        (Seen(True), "alive", False),
        (Seen(True, 0.0), "alive", False),
        (Seen(True, -5.0), "alive", False),
        (Seen(True, 300.0), "alive", False),
        (Seen(True, 300.1), "silent", True),
        (Seen(True, 300.1, 0.0), "silent", False),
        (Seen(True, 300.1, PUBLISHING_BOUND), "silent", False),
        (Seen(True, 300.1, PUBLISHING_BOUND + 0.1), "silent", True),
        (Seen(True, None, PUBLISHING_BOUND + 0.1), "alive", False),
    ],
)
def test_verdicts(seen: Seen, verdict: str, fence: bool) -> None:
    assert (judge(seen, 300.0), may_fence(seen, 300.0)) == (verdict, fence)


@pytest.mark.parametrize(("since", "may"), [(None, False), (0.0, True), (60.0, True), (60.1, False)])
def test_windows(since: float | None, may: bool) -> None:
    assert may_publish(Seen(True, 0.0, since)) is may


def test_a_strange_clock_is_judged_by_our_own() -> None:
    """A stamp is as old as the time since we first saw it, whatever it says."""
    observer = Observer()
    looks = [("a", 9e9, 100.0), ("a", 9e9, 130.0), ("b", 1.0, 130.0), ("a", 9e9 + 1, 140.0), ("a", 9e9 + 1, 141.5)]
    assert [observer.silent(*look) for look in looks] == [0.0, 30.0, 0.0, 0.0, 1.5]
