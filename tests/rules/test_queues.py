"""The queues: orders of handing out. S0-23 to S0-29, without any run."""

import itertools

import pytest

from necrocode.errors import ConfigError
from necrocode.queues import AdaptiveQueue, PriorityQueue, SequentialQueue, TaskQueue


class Terms:
    def __init__(self, priority=0):
        self.priority = priority


class Ask:
    def __init__(self, name, priority=0):
        self.name, self.protocol = name, Terms(priority)

    def __repr__(self):
        return self.name


def asks(*priorities):
    return [Ask(f"t{number}", priority) for number, priority in enumerate(priorities)]


def names(queue):
    return [(task.name, repeat_idx) for task, repeat_idx in queue]


KINDS = [SequentialQueue, PriorityQueue, AdaptiveQueue]


def test_the_base_is_abstract():
    """S0-23."""
    with pytest.raises(TypeError):
        TaskQueue(asks(0))
    assert {"__iter__", "__next__"} <= TaskQueue.__abstractmethods__


@pytest.mark.parametrize("kind", KINDS)
def test_one_after_the_other(kind):
    """S0-23: __next__ without __iter__, and iterating begins anew."""
    queue = kind(asks(0, 0))
    assert [next(queue)[0].name, next(queue)[0].name] == ["t0", "t1"]
    with pytest.raises(StopIteration):
        next(queue)
    assert names(queue) == names(queue) == [("t0", 0), ("t1", 0)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("collection", [list, tuple, iter, lambda tasks: dict.fromkeys(tasks)])
def test_any_collection(kind, collection):
    """S0-24."""
    assert names(kind(collection(asks(0, 0)))) == [("t0", 0), ("t1", 0)]


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_alone(kind):
    """S0-24."""
    assert names(kind(Ask("only"))) == [("only", 0)]
    assert len(kind(Ask("only"), n_task_repeats=3)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_repeats(kind):
    """S0-25: pairs (task, repeat_idx)."""
    assert names(kind(asks(0, 0), n_task_repeats=2)) == [("t0", 0), ("t0", 1), ("t1", 0), ("t1", 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_empty(kind):
    assert names(kind([])) == [] and len(kind([])) == 0


@pytest.mark.parametrize("repeats", [0, -1, True, "2", 1.5])
def test_impossible_repeats(repeats):
    with pytest.raises(ConfigError):
        SequentialQueue(asks(0), n_task_repeats=repeats)


@pytest.mark.parametrize("tasks", ["text", None, b"x"])
def test_what_is_no_task(tasks):
    with pytest.raises(ConfigError):
        SequentialQueue(tasks)


def test_input_order():
    """S0-26: priorities do not matter."""
    assert [name for name, _ in names(SequentialQueue(asks(1, 5, 3)))] == ["t0", "t1", "t2"]


def test_priority_order():
    """S0-13, S0-27: higher first, negative allowed, stable."""
    assert [name for name, _ in names(PriorityQueue(asks(0, 5, -1, 5, 0)))] == ["t1", "t3", "t0", "t4", "t2"]


@pytest.mark.parametrize("permutation", list(itertools.permutations([2, 1, 1, 0])))
def test_priority_is_stable_whatever_the_input(permutation):
    """S0-27."""
    queue = PriorityQueue(asks(*permutation))
    handed = [(-task.protocol.priority, int(task.name[1:])) for task, _ in queue]
    assert handed == sorted(handed)


def test_adaptive_is_sequential_and_ends():
    """S0-28: each task once, told or not told of what became of them."""
    queue = AdaptiveQueue(asks(0, 5, 0), n_task_repeats=2)
    handed = []
    for task, repeat_idx in queue:
        handed.append((task.name, repeat_idx))
        queue.on_task_complete(task, {"status": "success"})
    assert handed == [(f"t{number}", repeat) for number in range(3) for repeat in range(2)]


class Last(AdaptiveQueue):
    """The last of what remains; stops after the first failure."""

    def _select_next_task(self, remaining):
        return remaining[-1]

    def _update_state(self, task, report):
        if report["status"] != "success":
            self.stop()


def test_adaptive_reorders_and_stops():
    """S0-29: what a subclass chooses is handed out, each once; reports may end it."""
    queue = Last(asks(0, 0, 0))
    assert next(queue)[0].name == "t2" and len(queue.remaining) == 2
    queue.on_task_complete(queue.tasks[2], {"status": "success"})
    assert next(queue)[0].name == "t1" and queue.should_continue()
    queue.on_task_complete(queue.tasks[1], {"status": "agent_error"})
    assert not queue.should_continue()
    with pytest.raises(StopIteration):
        next(queue)
    assert len(names(queue)) == 3, "begun anew"


class Greedy(AdaptiveQueue):
    """Always wants the first task, whatever remains."""

    def _select_next_task(self, remaining):
        return self.tasks[0], 0


class Done(AdaptiveQueue):
    def _select_next_task(self, remaining):
        return remaining[0] if len(remaining) > 1 else None


def test_adaptive_never_hands_one_out_twice():
    """S0-29."""
    queue = Greedy(asks(0, 0))
    next(queue)
    with pytest.raises(ConfigError, match="does not remain"):
        next(queue)


def test_adaptive_ends_when_nothing_is_chosen():
    assert len(names(Done(asks(0, 0, 0)))) == 2


def test_equal_tasks_are_not_confused():
    """Two tasks that are equal by value are two tasks."""

    class Equal(Ask):
        def __eq__(self, other):
            return True

        __hash__ = Ask.__hash__

    tasks = [Equal("a"), Equal("b")]
    assert [task.name for task, _ in Last(tasks)] == ["b", "a"]
