"""The scheduler by tables, and against a slow reference that decides everything anew each time."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.claim import Claim, conflict
from necrocode.errors import ConfigError
from necrocode.outcome import Status
from necrocode.plan import plan
from necrocode.retry import Policy
from necrocode.schedule import MOVES, Behind, Entry, GiveUp, InvalidMove, Schedule, Start, Stop
from necrocode.task import Task

FILE, OTHER = Claim.file("src/a.py"), Claim.file("src/b.py")
TWICE, NOW_AGAIN = Policy(retries=2, base=1.0), Policy(retries=2, base=0.0)


def started(orders):
    return [order.task_id for order in orders if isinstance(order, Start)]


def test_order_is_priority_then_the_order_of_adding():
    entries = [Entry("a"), Entry("b", priority=5), Entry("c"), Entry("d", priority=-1), Entry("e", priority=5)]
    assert started(Schedule(entries).orders(0)) == ["b", "e", "a", "c", "d"]


def test_limit_and_its_change():
    schedule = Schedule([Entry(name) for name in "abcdef"], limit=2)
    assert schedule.orders(0) == [Start("a", 1), Start("b", 1)]
    assert schedule.orders(0) == []
    schedule.limit = 3
    assert started(schedule.orders(0)) == ["c"]
    schedule.limit = 1
    schedule.finished("a", None, 1)
    assert schedule.orders(1) == []
    schedule.limit = None
    assert started(schedule.orders(1)) == ["d", "e", "f"]


@pytest.mark.parametrize("limit", [0, -1])
def test_impossible_limits(limit):
    with pytest.raises(ConfigError, match="limit"):
        Schedule(limit=limit)


def test_same_id_twice():
    with pytest.raises(ConfigError, match="'a' is there twice"):
        Schedule([Entry("a"), Entry("a")])


# Dependencies


def test_after_waits_for_all():
    schedule = Schedule([Entry("c", after=("a", "b", "a")), Entry("a"), Entry("b")])
    assert started(schedule.orders(0)) == ["a", "b"]
    schedule.finished("a", None, 1)
    assert schedule.orders(1) == []
    assert schedule.standing("c").reason == "comes after b"
    schedule.finished("b", None, 2)
    assert started(schedule.orders(2)) == ["c"]


END_BADLY = {
    "failed": lambda schedule: schedule.failed("a", "no", 1),
    "timed out": lambda schedule: schedule.timed_out("a", "slow", 1),
    "was cancelled": lambda schedule: (schedule.cancel("a", 1), schedule.finished("a", None, 1)),
}


@pytest.mark.parametrize("how", END_BADLY)
def test_after_fails_closed_all_the_way(how):
    schedule = Schedule([Entry("a"), Entry("b", after=("a",)), Entry("c", after=("b",)), Entry("d")])
    schedule.orders(0)
    END_BADLY[how](schedule)
    given_up = [order for order in schedule.orders(1) if isinstance(order, GiveUp)]
    assert given_up == [
        GiveUp("b", f"comes after a, which {how}"),
        GiveUp("c", "comes after b, which was cancelled"),
    ]
    assert schedule.standing("c").status is Status.CANCELLED
    assert schedule.standing("d").status is Status.RUNNING


def test_a_failure_with_tries_left_gives_nobody_up():
    schedule = Schedule([Entry("a", policy=TWICE), Entry("b", after=("a",))])
    schedule.orders(0)
    schedule.failed("a", "no", 0)
    assert schedule.orders(0) == [] and schedule.standing("b").status is Status.WAITING


def test_unknown_dependency_is_given_up():
    schedule = Schedule([Entry("a", after=("nobody",)), Entry("b", after=("a",))])
    assert schedule.orders(0) == [
        GiveUp("a", "comes after 'nobody', which is not there"),
        GiveUp("b", "comes after a, which was cancelled"),
    ]
    assert schedule.is_over


def test_circles_are_given_up_by_name_once_nothing_else_is_left():
    entries = [Entry("x"), Entry("a", after=("c",)), Entry("b", after=("a",)), Entry("c", after=("b",))]
    schedule = Schedule([*entries, Entry("d", after=("c",)), Entry("e", after=("e",))])
    assert schedule.orders(0) == [Start("x", 1)]
    schedule.finished("x", None, 1)
    reasons = {order.task_id: order.reason for order in schedule.orders(1)}
    assert set(reasons) == set("abcde") and schedule.is_over
    assert reasons["a"] == "comes after itself: a -> c -> b -> a"
    assert reasons["e"] == "comes after itself: e -> e"


def test_added_after_one_that_ended():
    schedule = Schedule([Entry("good"), Entry("bad")])
    schedule.orders(0)
    schedule.finished("good", None, 1)
    schedule.failed("bad", "no", 1)
    schedule.add(Entry("x", after=("good",)))
    schedule.add(Entry("y", after=("bad",)))
    assert schedule.orders(2) == [GiveUp("y", "comes after bad, which failed"), Start("x", 1)]


# Claims


def test_tasks_of_one_run_are_put_one_behind_the_other():
    schedule = Schedule([Entry("a", claims=(FILE,)), Entry("b", claims=(Claim.file("src/"),)), Entry("c")])
    behind = Behind("b", "a", Claim.file("src/"), FILE)
    assert schedule.orders(0) == [Start("a", 1), behind, Start("c", 1)]
    assert schedule.standing("b").reason == "comes after a, which has file:src/a.py"
    assert schedule.orders(0) == []
    schedule.finished("a", None, 1)
    assert schedule.orders(1) == [Start("b", 1)]


def test_nobody_is_passed_by_those_that_want_the_same():
    wide = Entry("wide", claims=(FILE, OTHER))
    schedule = Schedule([Entry("a", claims=(FILE,)), wide, Entry("b", claims=(OTHER,)), Entry("c")])
    assert started(schedule.orders(0)) == ["a", "c"]
    schedule.finished("a", None, 1)
    assert started(schedule.orders(1)) == ["wide"]
    schedule.finished("wide", None, 2)
    assert started(schedule.orders(2)) == ["b"]


def test_a_cancelled_waiter_lets_those_behind_it_go():
    schedule = Schedule([Entry("a", claims=(FILE,)), Entry("b", claims=(FILE, OTHER)), Entry("c", claims=(OTHER,))])
    assert started(schedule.orders(0)) == ["a"]
    schedule.cancel("b", 1)
    assert started(schedule.orders(1)) == ["c"]


def test_shared_claims_run_together():
    shared = FILE._replace(shared=True)
    schedule = Schedule([Entry("a", claims=(shared,)), Entry("b", claims=(shared,)), Entry("c", claims=(FILE,))])
    assert started(schedule.orders(0)) == ["a", "b"]


def test_a_task_does_not_collide_with_itself():
    claims = (Claim.file("src/"), FILE, FILE)
    schedule = Schedule([Entry("a", claims=claims), Entry("b", claims=claims)])
    assert started(schedule.orders(0)) == ["a"]
    schedule.finished("a", None, 1)
    assert started(schedule.orders(1)) == ["b"]


def test_entry_of_a_task():
    task = Task("t", command=("true",), files=("src/a.py",), branch="fix", after=("s",), retries=2, timeout=9.0)
    entry = Entry.of(task, "R", Policy(base=3))
    assert entry.claims == (Claim.file("src/a.py", "R"), Claim.branch("fix", "R"))
    assert entry.policy == Policy(retries=2, base=3) and entry.timeout == 9.0 and entry.after == ("s",)


# Tries, delays, clocks


def test_back_off_holds_no_slot_and_no_claim():
    schedule = Schedule([Entry("a", policy=TWICE, claims=(FILE,)), Entry("b", claims=(FILE,))], limit=1)
    schedule.orders(0)
    assert schedule.failed("a", "no", 10) is Status.WAITING
    assert schedule.orders(10) == [Start("b", 1)]
    schedule.finished("b", None, 10.5)
    assert schedule.orders(10.5) == [] and schedule.next_wake(10.5) == 0.5
    assert schedule.orders(11) == [Start("a", 2)]
    schedule.failed("a", "no", 11)
    assert schedule.next_wake(11) == 2.0
    assert schedule.orders(13) == [Start("a", 3)]
    assert schedule.failed("a", "still no", 14) is Status.FAILED
    standing = schedule.standing("a")
    assert (standing.attempt, standing.failures, standing.error) == (3, 3, "still no") and schedule.is_over


def test_no_retry_when_the_driver_knows_better():
    schedule = Schedule([Entry("a", policy=TWICE)])
    schedule.orders(0)
    assert schedule.failed("a", "no such program", 0, retry=False) is Status.FAILED


def test_jitter_is_drawn_from_the_given_chance():
    policy = Policy(retries=1, base=10.0, jitter=0.5)
    schedule = Schedule([Entry("a", policy=policy)], random=lambda: 1.0)
    schedule.orders(0)
    schedule.failed("a", "no", 0)
    assert schedule.next_wake(0) == 5.0


def test_deadline_stops_once_and_ends_as_timed_out():
    schedule = Schedule([Entry("a", timeout=5, policy=TWICE), Entry("b", timeout=9)])
    schedule.orders(0)
    assert schedule.next_wake(1) == 4
    assert schedule.orders(4.9) == []
    assert schedule.orders(5) == [Stop("a", "its clock ran out")]
    assert schedule.orders(6) == [] and schedule.next_wake(6) == 3
    assert schedule.finished("a", "too late", 7) is Status.TIMED_OUT
    schedule.finished("b", None, 8)
    assert schedule.next_wake(8) is None and schedule.is_over


@pytest.mark.parametrize("fact", ["timed_out", "failed"])
def test_timeouts_are_tried_again_only_when_asked_for(fact):
    for wish, then in ((False, Status.TIMED_OUT), (True, Status.WAITING)):
        schedule = Schedule([Entry("a", timeout=5, policy=NOW_AGAIN, retry_timeouts=wish)])
        schedule.orders(0)
        schedule.orders(5)
        assert getattr(schedule, fact)("a", "slow", 6) is then


def test_the_runners_own_clock():
    schedule = Schedule([Entry("a", policy=TWICE)])
    schedule.orders(0)
    assert schedule.timed_out("a", "slow", 6) is Status.TIMED_OUT
    assert schedule.orders(6) == []


def test_poison():
    schedule = Schedule([Entry("a")], poison_limit=3)
    for attempt in (1, 2):
        assert schedule.orders(attempt) == [Start("a", attempt)]
        assert schedule.lost("a", attempt) is Status.WAITING
    assert schedule.orders(3) == [Start("a", 3)]
    assert schedule.lost("a", 3) is Status.FAILED
    assert schedule.standing("a").reason == "its process died 3 times"
    assert [line.partition(" ")[2] for line in schedule.story("a")[-2:]] == [
        "lost (its process died)",
        "failed (its process died 3 times)",
    ]


# Stopping


def test_cancel_by_status():
    schedule = Schedule([Entry("a"), Entry("b")], limit=1)
    schedule.orders(0)
    assert schedule.cancel("b", 1, "not wanted") is Status.CANCELLED
    assert schedule.cancel("a", 1, "not wanted") is Status.STOPPING
    assert schedule.cancel("a", 1) is Status.STOPPING
    assert schedule.orders(1) == [GiveUp("b", "not wanted"), Stop("a", "not wanted")]
    assert schedule.failed("a", "ended by a signal", 2) is Status.CANCELLED
    assert schedule.cancel("a", 3) is Status.CANCELLED
    assert schedule.orders(3) == [] and schedule.is_over


def test_stop_starting_lets_running_ones_end_and_tries_nothing_again():
    entries = [Entry("a"), Entry("b", policy=TWICE), Entry("c"), Entry("d"), Entry("e", after=("a",))]
    schedule = Schedule(entries, limit=3)
    schedule.orders(0)
    schedule.stop_starting(1)
    assert schedule.orders(1) == [GiveUp("d", "the run is stopping"), GiveUp("e", "the run is stopping")]
    assert schedule.finished("a", None, 2) is Status.DONE
    assert schedule.failed("b", "no", 2) is Status.FAILED
    assert schedule.lost("c", 2) is Status.CANCELLED
    schedule.add(Entry("f"))
    assert schedule.orders(3) == [GiveUp("c", "the run is stopping"), GiveUp("f", "the run is stopping")]
    assert schedule.is_over


def test_cancel_waiting_leaves_the_schedule_usable():
    schedule = Schedule([Entry("a", policy=TWICE), Entry("b")], limit=1)
    schedule.orders(0)
    schedule.failed("a", "no", 0)
    schedule.orders(0)
    assert schedule.cancel_waiting(1) == 1
    assert schedule.standing("a").status is Status.CANCELLED and schedule.next_wake(1) == 0.0
    schedule.add(Entry("c"))
    schedule.finished("b", None, 2)
    assert schedule.orders(2) == [GiveUp("a", "cancelled"), Start("c", 1)]


def test_abort_stops_what_runs():
    schedule = Schedule([Entry("a"), Entry("b")], limit=1)
    schedule.orders(0)
    schedule.abort(1)
    assert schedule.orders(1) == [GiveUp("b", "the run was stopped"), Stop("a", "the run was stopped")]
    assert schedule.lost("a", 2) is Status.CANCELLED


def test_fail_fast():
    schedule = Schedule([Entry("a"), Entry("b"), Entry("c"), Entry("d", after=("a",))], limit=2, fail_fast=True)
    schedule.orders(0)
    schedule.failed("a", "no", 1)
    assert schedule.orders(1) == [
        GiveUp("d", "comes after a, which failed"),
        GiveUp("c", "a failed, and the run fails fast"),
    ]
    schedule.finished("b", None, 2)
    assert schedule.is_over


# Waiting for strangers


def test_one_that_waits_for_a_stranger_leaves_its_slot_but_only_limit_many_wait():
    schedule = Schedule([Entry(name) for name in "abcdef"], limit=2)
    assert started(schedule.orders(0)) == ["a", "b"]
    schedule.blocked("a")
    assert schedule.orders(0) == []  # b may still turn out to wait too
    schedule.admitted("b", 0)
    assert started(schedule.orders(0)) == ["c"]
    schedule.blocked("c")
    assert schedule.orders(0) == []  # two wait already
    schedule.admitted("a", 1)
    schedule.finished("a", None, 2)
    assert started(schedule.orders(2)) == ["d"]
    schedule.blocked("a")  # a late word about one that has ended


def test_the_clock_stands_still_while_waiting_for_a_stranger():
    schedule = Schedule([Entry("a", timeout=5)])
    schedule.orders(0)
    schedule.blocked("a")
    assert schedule.next_wake(1) is None and schedule.orders(100) == []
    schedule.admitted("a", 100)
    assert schedule.next_wake(101) == 4


# Taking a run up again


def test_adopt_ignores_limit_order_and_dependencies():
    schedule = Schedule([Entry("a", claims=(FILE,)), Entry("b", claims=(FILE,)), Entry("c", after=("b",))], limit=1)
    schedule.adopt("b", 4, 0)
    schedule.adopt("c", 2, 0)
    assert schedule.orders(0) == []
    schedule.finished("b", None, 1)
    schedule.lost("c", 1)
    assert schedule.orders(1) == [Start("a", 1)]
    schedule.finished("a", None, 2)
    assert schedule.orders(2) == [Start("c", 3)]


# Moves

DRIVE = {
    Status.WAITING: lambda schedule: None,
    Status.RUNNING: lambda schedule: schedule.orders(0),
    Status.STOPPING: lambda schedule: (schedule.orders(0), schedule.cancel("a", 0)),
    Status.DONE: lambda schedule: (schedule.orders(0), schedule.finished("a", None, 0)),
    Status.FAILED: lambda schedule: (schedule.orders(0), schedule.failed("a", "no", 0)),
    Status.TIMED_OUT: lambda schedule: (schedule.orders(0), schedule.timed_out("a", "no", 0)),
    Status.CANCELLED: lambda schedule: schedule.cancel("a", 0),
}
FACTS = {
    "finished": lambda schedule: schedule.finished("a", None, 1),
    "failed": lambda schedule: schedule.failed("a", "no", 1),
    "timed_out": lambda schedule: schedule.timed_out("a", "no", 1),
    "lost": lambda schedule: schedule.lost("a", 1),
    "adopt": lambda schedule: schedule.adopt("a", 1, 1),
}


@pytest.mark.parametrize("status", DRIVE)
@pytest.mark.parametrize("fact", FACTS)
def test_facts_that_cannot_follow_raise_and_change_nothing(status, fact):
    schedule = Schedule([Entry("a"), Entry("b")])
    DRIVE[status](schedule)
    before = schedule.standing("a"), [schedule.count(status) for status in Status]
    assert before[0].status is status
    possible = status in (Status.RUNNING, Status.STOPPING) if fact != "adopt" else status is Status.WAITING
    if possible:
        FACTS[fact](schedule)
        return
    with pytest.raises(InvalidMove, match="a cannot go from") as caught:
        FACTS[fact](schedule)
    assert caught.value.status is status and caught.value.story == schedule.story("a")
    assert (schedule.standing("a"), [schedule.count(status) for status in Status]) == before


def test_every_status_has_a_row_and_final_ones_have_no_way_out():
    assert set(MOVES) == set(Status)
    assert {status for status in Status if not MOVES[status]} == {s for s in Status if s.is_final}


# Against the reference


class Slow:
    """The same rules, with nothing remembered between two decisions but the facts."""

    def __init__(self, entries, limit, poison_limit):
        self.entries, self.limit, self.poison_limit = {entry.id: entry for entry in entries}, limit, poison_limit
        self.status = dict.fromkeys(self.entries, Status.WAITING)
        self.attempt = dict.fromkeys(self.entries, 0)
        self.failures = dict.fromkeys(self.entries, 0)
        self.losses = dict.fromkeys(self.entries, 0)
        self.stage, self.deadline, self.stopped_as = {}, {}, {}
        self.not_before = dict.fromkeys(self.entries, 0)

    def those(self, *wanted):
        return [name for name, status in self.status.items() if status in wanted]

    def tell(self, what, name, now):
        if what == "admitted" or what == "blocked":
            self.stage[name] = what
            if self.status[name] is Status.RUNNING and self.entries[name].timeout:
                self.deadline[name] = now + self.entries[name].timeout if what == "admitted" else None
        elif what == "cancel":
            if self.status[name] is Status.RUNNING:
                self.status[name], self.stopped_as[name] = Status.STOPPING, Status.CANCELLED
            elif self.status[name] is Status.WAITING:
                self.status[name] = Status.CANCELLED
        elif self.status[name] is Status.STOPPING:
            self.status[name] = self.stopped_as[name]
        elif what == "finished":
            self.status[name] = Status.DONE
        elif what == "lost":
            self.losses[name] += 1
            self.status[name] = Status.FAILED if self.losses[name] >= self.poison_limit else Status.WAITING
            self.not_before[name] = now
        else:
            policy = self.entries[name].policy
            tries_left = self.failures[name] < policy.retries
            self.status[name] = Status.WAITING if tries_left else Status.FAILED
            self.not_before[name] = now + policy.delay(self.failures[name])
            self.failures[name] += 1
        self.give_up()

    def give_up(self):
        bad = (Status.FAILED, Status.TIMED_OUT, Status.CANCELLED)
        for _ in self.entries:
            for name in self.those(Status.WAITING):
                if any(self.status[other] in bad for other in self.entries[name].after):
                    self.status[name] = Status.CANCELLED

    def orders(self, now):
        stopped = [name for name in self.those(Status.RUNNING) if (self.deadline.get(name) or now + 1) <= now]
        for name in stopped:
            self.status[name], self.stopped_as[name] = Status.STOPPING, Status.TIMED_OUT
        begun = self.start(now)
        delayed = [name for name in self.those(Status.WAITING) if self.not_before[name] > now]
        if not self.those(Status.RUNNING, Status.STOPPING) and not delayed:
            for name in self.those(Status.WAITING):  # nothing is left that could set them free
                self.status[name] = Status.CANCELLED
        return begun, sorted(stopped)

    def start(self, now):
        names, begun = list(self.entries), []
        active = self.those(Status.RUNNING, Status.STOPPING)
        taken = [claim for name in active for claim in self.entries[name].claims]
        for name in sorted(names, key=lambda name: (-self.entries[name].priority, names.index(name))):
            entry, stages = self.entries[name], [self.stage[other] for other in active]
            working, blocked = len(stages) - stages.count("blocked"), stages.count("blocked")
            if working >= self.limit or stages.count("starting") + blocked >= self.limit:
                break
            met = all(self.status[other] is Status.DONE for other in entry.after)
            if self.status[name] is not Status.WAITING or self.not_before[name] > now or not met:
                continue
            if not any(conflict(ours, theirs) for ours in entry.claims for theirs in taken):
                self.status[name], self.stage[name] = Status.RUNNING, "starting"
                self.attempt[name] += 1
                self.deadline[name] = now + entry.timeout if entry.timeout else None
                active.append(name)
                begun.append((name, self.attempt[name]))
            taken.extend(entry.claims)
        return begun


PATHS = st.sampled_from(["a", "b", "c", "d/x", "d/y", "d/**", "d/e/**", "**", "d/*", "*"])
CLAIMS = st.lists(st.builds(Claim, st.just("file:"), PATHS, st.booleans()), max_size=3).map(tuple)
NAMES = [f"t{n}" for n in range(9)]


@st.composite
def runs(draw):
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    entries = []
    for name in names:
        entries.append(
            Entry(
                name,
                priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
                after=tuple(draw(st.lists(st.sampled_from(names), max_size=1 if draw(st.booleans()) else 0))),
                claims=draw(CLAIMS),
                timeout=draw(st.sampled_from([None, None, 2.0, 3.0])),
                policy=Policy(retries=draw(st.sampled_from([0, 0, 1, 2])), base=draw(st.sampled_from([0.0, 1.0]))),
            )
        )
    return entries, draw(st.integers(1, 4))


WHAT = ["finished", "finished", "failed", "lost", "cancel", "blocked", "admitted", "nothing"]
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 8)), max_size=60)


def check_now(schedule, slow, entries, limit):
    running = [e for e in entries if schedule.standing(e.id).status in (Status.RUNNING, Status.STOPPING)]
    blocked = [e for e in running if slow.stage[e.id] == "blocked"]
    for at, ours in enumerate(running):
        for theirs in running[at + 1 :]:
            assert not any(conflict(a, b) for a in ours.claims for b in theirs.claims)
    for entry in running:
        assert all(schedule.standing(other).status is Status.DONE for other in entry.after)
    assert len(blocked) <= limit
    assert len(running) <= 2 * limit


@settings(max_examples=300, deadline=None)
@given(runs(), STEPS)
def test_equal_to_the_slow_reference_at_every_step(run, steps):
    entries, limit = run
    schedule, slow = Schedule(entries, limit), Slow(entries, limit, 3)
    settled = [("finished", 0)] * 300  # whatever happened before: everything ends
    for now, (what, which) in enumerate([*steps, *settled]):
        orders, (begun, stopped) = schedule.orders(now), slow.orders(now)
        assert [tuple(order) for order in orders if isinstance(order, Start)] == begun
        rung = [order.task_id for order in orders if isinstance(order, Stop) and "clock" in order.reason]
        assert sorted(rung) == stopped
        assert {name: schedule.standing(name).status for name in slow.entries} == slow.status
        check_now(schedule, slow, entries, limit)
        active = slow.those(Status.RUNNING, Status.STOPPING)
        choice = slow.those(Status.WAITING, Status.RUNNING) if what == "cancel" else active
        if what == "blocked":
            choice = [name for name in active if slow.stage[name] == "starting"]
        if what == "nothing" or not choice:
            continue
        name = choice[which % len(choice)]
        facts = {"finished": (None, now), "failed": ("no", now), "blocked": ()}.get(what, (now,))
        getattr(schedule, what)(name, *facts)
        slow.tell(what, name, now)
        if schedule.is_over:
            break
    schedule.orders(10_000)
    assert schedule.is_over


@pytest.mark.parametrize(
    "claims",
    [
        lambda n: (),
        lambda n: (FILE,),
        lambda n: (Claim.file(f"src/f{n % 100}.py"), Claim.file(f"doc/{n % 7}/x.md")),
        lambda n: (Claim.file("src/**") if n % 100 == 0 else Claim.file(f"src/f{n}.py"),),
        lambda n: (Claim.file(f"src/f{n % 50}*.py") if n % 100 == 0 else Claim.file(f"src/f{n}.py"),),
    ],
    ids=["none", "one", "few", "all now and then", "globs now and then"],
)
def test_cost_grows_with_the_number_of_tasks_not_with_its_square(claims):
    """Counted in function calls, so that a busy machine changes nothing."""

    def calls(count):
        made = 0

        def count_call(frame, event, argument):
            nonlocal made
            made += event in ("call", "c_call")

        schedule, running = Schedule([Entry(f"t{n}", claims=claims(n)) for n in range(count)], 8), []
        sys.setprofile(count_call)
        try:
            while not schedule.is_over:
                running += started(schedule.orders(0))
                schedule.finished(running.pop(0), None, 0)
        finally:
            sys.setprofile(None)
        return made

    assert calls(800) < 16 * calls(100)  # 8 times as many; a quadratic one makes 64 times as many calls


# The plan


def rows(entries, limit=None):
    return [(row.task_id, row.wave, [behind.after for behind in row.behind], row.never) for row in plan(entries, limit)]


def test_plan():
    entries = [
        Entry("a", claims=(FILE,)),
        Entry("b", claims=(FILE, OTHER)),
        Entry("c", claims=(OTHER,)),
        Entry("d", after=("b",), claims=(FILE,)),
        Entry("e", priority=9),
        Entry("f", after=("nobody",)),
    ]
    expected = [
        ("e", 1, [], ""),
        ("a", 1, [], ""),
        ("b", 2, ["a"], ""),
        ("c", 3, ["b"], ""),
        ("d", 3, [], ""),
        ("f", 0, [], "comes after 'nobody', which is not there"),
    ]
    assert rows(entries) == expected
    assert [row[:2] for row in rows(entries, 1)] == [("e", 1), ("a", 2), ("b", 3), ("c", 4), ("d", 5), ("f", 0)]
    assert plan(entries)[2].behind == (Behind("b", "a", FILE, FILE),)


def test_plan_of_nothing_and_of_a_circle():
    assert plan([]) == []
    assert [row.wave for row in plan([Entry("a", after=("b",)), Entry("b", after=("a",))])] == [0, 0]


@settings(deadline=None)
@given(runs())
def test_plan_names_each_task_once_and_starts_no_conflict_in_one_wave(run):
    entries, limit = run
    planned = plan(entries, limit)
    waves = {row.task_id: row.wave for row in planned}
    assert sorted(waves) == sorted(entry.id for entry in entries)
    for ours in entries:
        for theirs in entries:
            if ours.id != theirs.id and waves[ours.id] and waves[ours.id] == waves[theirs.id]:
                assert not any(conflict(a, b) for a in ours.claims for b in theirs.claims)
        assert not waves[ours.id] or all(0 < waves[other] < waves[ours.id] for other in ours.after)
    assert all(list(waves.values()).count(wave) <= limit for wave in set(waves.values()) - {0})
