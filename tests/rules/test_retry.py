"""Back-off and breaker by tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.errors import ConfigError
from necrocode.retry import CircuitBreaker, Policy


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (Policy(), [1, 2, 4, 8, 16, 32, 60, 60]),
        (Policy(base=0.1, cap=1.0), [0.1, 0.2, 0.4, 0.8, 1.0]),
        (Policy(base=0), [0, 0, 0]),
        (Policy(factor=1), [1, 1, 1]),
        (Policy(factor=0), [1, 0, 0]),
        (Policy(base=100, cap=5), [5, 5]),
        (Policy(cap=0), [0, 0]),
    ],
)
def test_delays(policy, delays):
    assert [policy.delay(attempt) for attempt in range(len(delays))] == pytest.approx(delays)


@pytest.mark.parametrize("attempt", [1023, 1024, 10**6, 10**300])
def test_huge_attempts_stay_at_the_cap(attempt):
    assert Policy().delay(attempt) == 60.0
    assert Policy(base=0.0).delay(attempt) == 0.0
    assert Policy(factor=0.5).delay(attempt) < 1e-300


def test_negative_attempts_are_the_first():
    assert Policy().delay(-3) == 1.0


def test_jitter_takes_off_a_share_by_chance():
    policy = Policy(base=10.0, jitter=0.5)
    assert [policy.delay(0, lambda chance=chance: chance) for chance in (0.0, 0.5, 1.0)] == [10.0, 7.5, 5.0]
    assert all(5.0 <= policy.delay(0) <= 10.0 for _ in range(20))


POLICIES = st.builds(Policy, st.just(1), st.floats(0, 1e300), st.floats(0, 1e300), st.floats(0, 1e300), st.floats(0, 1))


@given(POLICIES, st.integers(0, 10**9), st.floats(0, 1))
def test_any_delay_lies_between_nothing_and_the_cap(policy, attempt, chance):
    assert 0.0 <= policy.checked().delay(attempt, lambda: chance) <= policy.cap


@pytest.mark.parametrize(
    "wrong",
    [
        {"retries": -1}, {"retries": True}, {"retries": 1.5}, {"base": -1}, {"base": float("nan")}, {"cap": -1},
        {"factor": -2}, {"factor": float("inf")}, {"jitter": 1.1}, {"jitter": -0.1}, {"jitter": float("nan")},
    ],
)  # fmt: skip
def test_impossible_policies(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Policy(**wrong).checked()


OK, NO = "ok", "no"
"""A table of (now, what happened or None, whether an attempt is allowed after, state after)."""
OPENED = [(0, NO, True, "closed"), (0, NO, True, "closed"), (0, NO, False, "open")]
HISTORIES = {
    "opens at the threshold": [(0, NO, True, "closed"), (1, NO, True, "closed"), (2, NO, False, "open")],
    "a success begins anew": [*OPENED[:2], (2, OK, True, "closed"), *OPENED],
    "one probe": [*OPENED, (9.9, None, False, "open"), (10, None, True, "half-open"), (10, None, False, "open")],
    "the probe closes": [*OPENED, (10, None, True, "half-open"), (11, OK, True, "closed"), (11, NO, True, "closed")],
    "the probe opens": [*OPENED, (10, None, True, "half-open"), (12, NO, False, "open"), (21, None, False, "open")],
    "again half open": [*OPENED, (10, None, True, "half-open"), (12, NO, False, "open"), (22, None, True, "half-open")],
    "no word of it": [*OPENED, (10, None, True, "half-open"), (19, None, False, "open"), (20, None, True, "half-open")],
}


@pytest.mark.parametrize("history", HISTORIES)
def test_breaker(history):
    breaker = CircuitBreaker(threshold=3, recovery=10.0)
    for now, happened, allowed, state in HISTORIES[history]:
        if happened:
            breaker.succeeded() if happened == OK else breaker.failed(now)
        assert breaker.state(now) == state
        assert breaker.allows(now) is allowed


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"recovery": -1}, {"recovery": float("nan")}])
def test_impossible_breakers(wrong):
    with pytest.raises(ConfigError):
        CircuitBreaker(**wrong)
