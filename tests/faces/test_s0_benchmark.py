"""S0: the parallel benchmark engine as its document has it. Each promise is named by its number."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from s0_bench import Agent, Echo, Gauged, Plain

import necrocode
import necrocode.benchmark as face
from necrocode.benchmark import (
    AdaptiveQueue,
    Benchmark,
    BenchmarkCallback,
    ComponentRegistry,
    PriorityQueue,
    SequentialQueue,
    Task,
    TaskCollection,
    TaskContext,
    TaskExecutionStatus,
    TaskProtocol,
    TaskTimeoutError,
    TimeoutAction,
    current,
)
from necrocode.errors import ConfigError, NecrocodeError, TaskFailed


def ask(name, *, environment=None, **terms):
    return Task(query=f"q {name}", id=name, environment_data=environment or {}, protocol=TaskProtocol(**terms))


def asks(count):
    return [ask(f"t{number}") for number in range(count)]


def statuses(reports):
    return [report["status"] for report in reports]


def ids(reports):
    return [(report["task_id"], report["repeat_idx"]) for report in reports]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No thread is left behind by any of these tests."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 20
    while left := [it for it in set(threading.enumerate()) - before if it.name.startswith("benchmark")]:
        assert time.monotonic() < end, left
        time.sleep(0.005)


# The registry


class Traced:
    def __init__(self, value):
        self.value = value

    def gather_traces(self):
        return {"value": self.value}


class Configured(Traced):
    def gather_config(self):
        return {"set": self.value}


def test_registry_collects():
    """S0-01, S0-02, S0-04: traces of all, configurations of those that have one, in the documented shape."""
    registry = ComponentRegistry({"name": "mine"})
    assert registry.register("agents", "a", Configured(1)).value == 1
    registry.register("models", "m", Traced(2))
    registry.register("environment", "env", Traced(3))
    registry.register("oracles", "o", Traced(4))
    traces, configs = registry.collect_traces(), registry.collect_configs()
    assert traces["agents"] == {"a": {"value": 1}} and traces["models"] == {"m": {"value": 2}}
    assert traces["environment"] == {"value": 3} and traces["user"] is None
    assert traces["other"] == {"o": {"value": 4}}
    assert set(traces) == {
        "metadata", "agents", "models", "tools", "simulators", "callbacks", "environment", "user", "other"
    }  # fmt: skip
    assert set(traces["metadata"]) == {"timestamp", "thread_id", "total_components"}
    assert traces["metadata"]["total_components"] == 4
    assert (
        configs["agents"] == {"a": {"set": 1}} and configs["models"] == {} and configs["benchmark"] == {"name": "mine"}
    )


def test_registry_keys():
    """S0-04: the same again changes nothing, another key for the same component is a mistake."""
    registry, part, other = ComponentRegistry(), Traced(1), Traced(2)
    registry.register("tools", "x", part)
    registry.register("tools", "x", part)
    with pytest.raises(ValueError, match="tools/x"):
        registry.register("tools", "y", part)
    registry.register("tools", "x", other)
    registry.register("tools", "x", other)
    assert registry.collect_traces()["tools"] == {"x": {"value": 1}, "x_2": {"value": 2}}, "nothing is lost"


def test_registry_is_per_thread():
    """S0-03, S0-05: four maps, none of another thread is seen, clear() empties one's own."""
    registry = ComponentRegistry()
    barrier, seen = threading.Barrier(4), {}

    def work(number):
        part = Configured(number)
        registry.register("agents", f"a{number}", part)
        barrier.wait(20)
        seen[number] = (
            list(registry._trace_registry), list(registry._config_registry), registry.collect_traces()["agents"],
            registry._component_id_map == {id(part): f"agents/a{number}"},
            registry._config_component_id_map == {id(part): f"agents/a{number}"},
        )  # fmt: skip
        barrier.wait(20)
        if number == 0:
            registry.clear()
        barrier.wait(20)
        seen[number] += (len(registry._trace_registry),)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        key = f"agents/a{number}"
        assert seen[number] == (
            [key], [key], {f"a{number}": {"value": number}}, True, True, 0 if number == 0 else 1
        )  # fmt: skip
    assert registry._trace_registry == {}


def test_a_component_that_cannot_give_its_traces():
    class Broken:
        def gather_traces(self):
            raise OSError("gone")

    registry = ComponentRegistry()
    registry.register("tools", "x", Broken())
    assert registry.collect_traces()["tools"]["x"] == {"error": "gone", "error_type": "OSError"}


def test_benchmark_delegates_to_its_registry():
    """S0-06."""
    benchmark = Echo()
    part = Configured(1)
    assert benchmark.register("tools", "x", part) is part
    assert benchmark._registry._trace_registry == {"tools/x": part}
    assert benchmark._registry._config_registry == {"tools/x": part}
    assert benchmark._registry._component_id_map == {id(part): "tools/x"}
    assert benchmark._registry._config_component_id_map == {id(part): "tools/x"}
    assert benchmark.collect_all_traces()["tools"] == {"x": {"value": 1}}
    assert benchmark.collect_all_configs()["tools"] == {"x": {"set": 1}}
    benchmark.clear_registry()
    assert benchmark._registry._trace_registry == {}


# Terms


def test_timeout_actions():
    """S0-07: the three of the document; EXTEND is another name for RETRY."""
    assert [action.name for action in TimeoutAction] == ["SKIP", "RETRY", "RAISE"]
    assert TimeoutAction.EXTEND is TimeoutAction.RETRY is TimeoutAction("extend")


def test_protocol_defaults():
    """S0-08, S0-09, S0-12, S0-13, S0-14."""
    one, two = TaskProtocol(), TaskProtocol()
    assert (one.timeout_seconds, one.timeout_action, one.max_retries, one.priority) == (None, TimeoutAction.SKIP, 0, 0)
    assert one.tags == {} and one.tags is not two.tags


def test_every_task_has_a_protocol():
    """S0-15."""
    task = Task("what?")
    assert task.protocol == TaskProtocol() and task.id and task.id != Task("what?").id
    assert (task.environment_data, task.user_data, task.evaluation_data, task.metadata) == ({}, {}, {}, {})


def test_tags_filter():
    """S0-14."""
    tasks = TaskCollection.from_list(
        [{"query": "a", "protocol": {"tags": {"hard": True}}}, {"query": "b"}, Task("c", protocol=TaskProtocol())]
    )
    assert [task.query for task in tasks.with_tag("hard", True)] == ["a"]


@pytest.mark.parametrize(
    "terms",
    [
        {"timeout_seconds": 0}, {"timeout_seconds": "1"}, {"timeout_seconds": True}, {"max_retries": -1},
        {"max_retries": 1.5}, {"priority": "high"}, {"timeout_action": "shrug"}, {"tags": 3},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_terms(terms):
    with pytest.raises(ConfigError):
        TaskProtocol(**terms)


# The context


def test_context_without_deadline():
    """S0-16, S0-17, S0-18, S0-19."""
    context = TaskContext()
    assert (context.deadline, context.remaining, context.is_expired) == (None, None, False)
    context.check_timeout()
    first = context.elapsed
    assert 0 <= first <= context.elapsed


def test_context_with_deadline():
    """S0-17, S0-18, S0-19, S0-21."""
    context = TaskContext(deadline=60.0)
    assert context.deadline == 60.0 and 0 < context.remaining <= 60 and not context.is_expired
    context.check_timeout()
    late = TaskContext(deadline=0.001)
    late.set_collected_traces({"steps": 3})
    while not late.is_expired:
        time.sleep(0.001)
    assert late.remaining == 0.0
    with pytest.raises(TaskTimeoutError) as caught:
        late.check_timeout()
    error = caught.value
    assert isinstance(error, NecrocodeError) and isinstance(error, TimeoutError)
    assert error.elapsed >= error.timeout == 0.001 and error.partial_traces == {"steps": 3}


def test_a_context_can_be_stopped():
    context = TaskContext()
    context.stop("enough")
    with pytest.raises(TaskFailed, match="enough"):
        context.check_timeout()


class Stepwise(Echo):
    """Takes the context as an argument."""

    def run_agents(self, agents, task, environment, query, context=None):
        self.seen = context, current()
        context.set_collected_traces({"steps": 1})
        while True:
            context.check_timeout()
            time.sleep(0.002)


def test_user_code_receives_the_context():
    """S0-20, S0-21: as an argument when it wants one, and by current() below."""
    benchmark = Stepwise()
    (report,) = benchmark.run(ask("t", timeout_seconds=0.3))
    assert report["status"] == "task_timeout"
    assert benchmark.seen[0] is benchmark.seen[1] and benchmark.seen[0].deadline == 0.3
    assert report["error"]["partial_traces"] == {"steps": 1}
    assert report["error"]["elapsed"] >= report["error"]["timeout"] == 0.3


# Running


def test_reports():
    """The keys of a report, with what belongs to them."""
    (report,) = Echo().run([ask("one")])
    assert list(report) == ["task_id", "repeat_idx", "status", "traces", "config", "eval", "error"]
    assert report["task_id"] == "one" and report["repeat_idx"] == 0 and report["status"] == "success"
    assert report["traces"]["agents"] == {"main": {"said": ["q one"]}}
    assert report["traces"]["environment"] == {"of": "one"}
    assert report["config"]["agents"] == {"main": {"name": "agent of one"}}
    assert report["eval"] == [{"right": True}] and report["error"] is None


def test_sequential_by_default():
    """S0-30, S0-36: one at a time, in the caller's order."""
    benchmark = Gauged(n_task_repeats=2)
    reports = benchmark.run(asks(4))
    assert ids(reports) == [(f"t{number}", repeat) for number in range(4) for repeat in range(2)]
    assert benchmark.most == 1 and benchmark.order == [name for name, _ in ids(reports)]


@pytest.mark.parametrize("workers", [2, 4])
def test_parallel(workers):
    """S0-32, S0-33, S0-36: that many at once and no more, each exactly once, nothing lost, the same reports."""
    benchmark = Gauged(n_task_repeats=2)
    reports = benchmark.run(asks(20), max_workers=workers)
    assert benchmark.most == workers
    assert ids(reports) == [(f"t{number}", repeat) for number in range(20) for repeat in range(2)]
    assert sorted(ids(benchmark.reports)) == sorted(ids(reports))
    alone = Gauged(n_task_repeats=2).run(asks(20))
    assert [(it["status"], it["eval"]) for it in alone] == [(it["status"], it["eval"]) for it in reports]


def test_traces_are_not_mixed():
    """S0-03, S0-32: each report has its own traces, whoever ran beside it."""
    for report in Gauged().run(asks(30), max_workers=4):
        assert report["traces"]["agents"] == {"main": {"said": [f"q {report['task_id']}"]}}
        assert report["config"]["agents"]["main"]["name"] == f"agent of {report['task_id']}"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_given_queue_decides(workers):
    """S0-31, S0-13: the order of starts is the queue's."""
    tasks = [ask(f"t{number}", priority=number % 3) for number in range(9)]
    benchmark = Gauged()
    reports = benchmark.run(tasks, queue=PriorityQueue(tasks), max_workers=workers)
    expected = [f"t{number}" for number in (2, 5, 8, 1, 4, 7, 0, 3, 6)]
    assert [report["task_id"] for report in reports] == expected
    if workers == 1:
        assert benchmark.order == expected


@pytest.mark.parametrize("workers", [1, 4])
def test_adaptive_queue_as_it_is(workers):
    """S0-28: sequential, each once, and it ends; also in parallel and with repeats."""
    queue = AdaptiveQueue(asks(6), n_task_repeats=2)
    reports = Echo().run(queue=queue, max_workers=workers)
    assert ids(reports) == [(f"t{number}", repeat) for number in range(6) for repeat in range(2)]


class Halving(AdaptiveQueue):
    """Searches for the hardest task that is still solved; tells each step."""

    def __init__(self, tasks):
        super().__init__(tasks)
        self.low, self.high = 0, len(tasks)

    def _select_next_task(self, remaining):
        if self.low >= self.high:
            return None
        middle = (self.low + self.high) // 2
        return next((pair for pair in remaining if pair[0] is self.tasks[middle]), None)

    def _update_state(self, task, report):
        at = self.tasks.index(task)
        if report["status"] == "success":
            self.low = at + 1
        else:
            self.high = at


def test_adaptive_queue_learns_and_stops_early():
    """S0-29: reports come back before the next choice, and most tasks are never run."""
    tasks = [ask(f"t{number}", environment={"raise": "agent"} if number >= 11 else {}) for number in range(32)]
    queue = Halving(tasks)
    reports = Echo().run(queue=queue)
    assert queue.low == 11 and len(reports) <= 6
    assert len(set(ids(reports))) == len(reports)


def test_a_queue_that_never_ends():
    """It is asked only for what can start; should_continue() ends it."""

    class Endless:
        n_task_repeats = 1

        def __init__(self):
            self.given = self.done = 0

        def __iter__(self):
            for number in itertools.count():
                self.given += 1
                yield ask(f"t{number}"), 0

        def on_task_complete(self, task, report):
            self.done += 1

        def should_continue(self):
            return self.done < 7

    queue = Endless()
    reports = Echo().run(queue=queue, max_workers=2)
    assert 7 <= len(reports) <= 8 and queue.given == len(reports)


@pytest.mark.parametrize(
    "queue",
    [[(ask("a"), 0), (ask("a"), 0)], [ask("a")], [None], [("no task", 0)]],
    ids=["twice", "no pairs", "nothing", "no tasks"],
)
def test_a_queue_that_gives_nonsense(queue):
    with pytest.raises(ConfigError):
        Echo().run(queue=queue)


def test_one_failing_task_never_stops_the_others():
    """S0-39, S0-22: what each kind of failure is called; the error carries type, text and traceback."""
    kinds = ["agent", "environment", "user", "value", "timeout", "memory"]
    tasks = [ask(kind, environment={"raise": kind}) for kind in kinds]
    tasks += [ask("setup", environment={"setup_fails": True}), ask("evaluation"), ask("fine")]
    reports = Echo().run(tasks, max_workers=3)
    assert statuses(reports) == [
        "agent_error", "environment_error", "user_error", "unknown_execution_error", "unknown_execution_error",
        "infrastructure_error", "setup_failed", "evaluation_failed", "success",
    ]  # fmt: skip
    error = reports[3]["error"]
    assert error["error_type"] == "ValueError" and error["error_message"] == "value was to fail"
    assert "run_agents" in error["traceback"]
    assert reports[0]["traces"]["agents"] == {"main": {"said": []}}, "traces are kept"


def test_failed_tasks_can_be_run_again():
    benchmark = Echo()
    benchmark.run([ask("bad", environment={"raise": "agent"}), ask("good")])
    assert [task.id for task in benchmark.get_failed_tasks()] == ["bad"]
    assert [task.id for task in benchmark.get_failed_tasks("agent_error")] == ["bad"]
    assert benchmark.get_failed_tasks(TaskExecutionStatus.TASK_TIMEOUT) == []


# Retries and limits


class Flaky(Echo):
    def __init__(self, fails):
        super().__init__()
        self.fails, self.calls = fails, []

    def run_agents(self, agents, task, environment, query):
        self.calls.append(task.id)
        if self.calls.count(task.id) <= self.fails:
            raise RuntimeError("not yet")
        return super().run_agents(agents, task, environment, query)


@pytest.mark.parametrize(
    ("fails", "retries", "calls", "status"),
    [
        (0, 2, 1, "success"), (1, 2, 2, "success"), (2, 2, 3, "success"), (3, 2, 3, "unknown_execution_error"),
        (1, 0, 1, "unknown_execution_error"),
    ],
)  # fmt: skip
def test_retries(fails, retries, calls, status):
    """S0-12: at most max_retries + 1 attempts, none after the first success."""
    benchmark = Flaky(fails)
    (report,) = benchmark.run(ask("t", max_retries=retries))
    assert len(benchmark.calls) == calls and report["status"] == status


def test_skip_goes_on():
    """S0-09, S0-22: reported as task_timeout, the rest runs."""
    tasks = [ask("slow", environment={"work": 60}, timeout_seconds=0.05), ask("fine")]
    began = time.monotonic()
    assert statuses(Echo().run(tasks)) == ["task_timeout", "success"]
    assert time.monotonic() - began < 30


class Slow(Echo):
    """Takes its time in the first `slow` attempts; listens."""

    def __init__(self, slow):
        super().__init__()
        self.slow, self.calls = slow, 0

    def run_agents(self, agents, task, environment, query, context=None):
        self.calls += 1
        while self.calls <= self.slow:
            context.check_timeout()
            time.sleep(0.002)
        return "done"


@pytest.mark.parametrize(("retries", "calls"), [(0, 2), (1, 2), (3, 4)])
def test_retry_attempts_again(retries, calls):
    """S0-10: a task that timed out is attempted again, max_retries times, at least once."""
    benchmark = Slow(slow=99)
    (report,) = benchmark.run(ask("t", timeout_seconds=0.2, timeout_action=TimeoutAction.RETRY, max_retries=retries))
    assert benchmark.calls == calls and report["status"] == "task_timeout"


def test_retry_may_help():
    """S0-10."""
    benchmark = Slow(slow=1)
    (report,) = benchmark.run(ask("t", timeout_seconds=0.5, timeout_action=TimeoutAction.RETRY))
    assert benchmark.calls == 2 and report["status"] == "success"


def test_retry_is_for_timeouts():
    """S0-10, S0-12: RETRY alone does not make failures try again."""
    benchmark = Flaky(1)
    (report,) = benchmark.run(ask("t", timeout_action=TimeoutAction.RETRY, timeout_seconds=60))
    assert len(benchmark.calls) == 1 and report["status"] == "unknown_execution_error"


@pytest.mark.parametrize("workers", [1, 3])
def test_raise_ends_the_run(workers):
    """S0-11: TaskTimeoutError is raised, running tasks are stopped, the rest never starts."""
    tasks = [
        ask("stop", environment={"work": 60}, timeout_seconds=0.5, timeout_action=TimeoutAction.RAISE),
        *[ask(f"long{number}", environment={"work": 60}) for number in range(5)],
    ]
    benchmark = Gauged()
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError) as caught:
        benchmark.run(tasks, max_workers=workers)
    assert time.monotonic() - began < 30
    assert caught.value.timeout == 0.5 and caught.value.elapsed >= 0.5
    assert len(benchmark.order) == workers
    assert statuses(benchmark.reports) == ["task_timeout"]


def test_backstop():
    """A task that never looks at its clock is given up `grace` seconds after its limit; the others go on."""
    deaf = ask("deaf", environment={"sleep": 1.5}, timeout_seconds=0.05)
    reports = Echo().run([deaf, ask("fine")], grace=0.1)
    assert statuses(reports) == ["task_timeout", "success"]
    assert reports[0]["error"]["error_type"] == "TaskTimeoutError"


def test_one_repetition_by_itself():
    """S0-35: _execute_task_repetition(task, repeat_idx, context)."""
    benchmark = Echo()
    report = benchmark._execute_task_repetition(ask("t"), 3, TaskContext())
    assert (report["status"], report["repeat_idx"]) == ("success", 3)
    late = TaskContext(deadline=0.001)
    while not late.is_expired:
        time.sleep(0.001)
    assert benchmark._execute_task_repetition(ask("t"), 0, late)["status"] == "task_timeout"
    assert current() is None


# Callbacks


class Listener(BenchmarkCallback):
    def __init__(self):
        self.heard, self.inside = [], 0

    def note(self, *what):
        self.inside += 1
        assert self.inside == 1, "two callbacks at once"
        time.sleep(0.001)
        self.heard.append(what)
        self.inside -= 1

    def on_run_start(self, benchmark):
        self.note("run start", type(benchmark).__name__)

    def on_task_start(self, benchmark, task):
        self.note("task start", task.id)

    def on_task_repeat_start(self, benchmark, task, repeat_idx):
        self.note("repeat start", task.id, repeat_idx)

    def on_task_repeat_end(self, benchmark, report):
        self.note("repeat end", report["task_id"], report["repeat_idx"])

    def on_task_end(self, benchmark, task, report):
        self.note("task end", task.id, report["task_id"])

    def on_run_end(self, benchmark, results):
        self.note("run end", len(results))


@pytest.mark.parametrize("workers", [1, 4])
def test_callbacks(workers):
    """S0-34: each hook the right number of times with the right arguments, never two at once."""
    listener = Listener()
    Gauged(callbacks=[listener], n_task_repeats=2).run(asks(6), max_workers=workers)
    heard = listener.heard
    assert heard[0] == ("run start", "Gauged") and heard[-1] == ("run end", 12)
    for number in range(6):
        name = f"t{number}"
        own = [what[0] for what in heard if what[1] == name]
        assert sorted(own) == sorted(["task start", *["repeat start", "repeat end"] * 2, "task end"])
        assert own[0] == "task start" and own[-1] == "task end"
        assert {what[2] for what in heard if what[:2] == ("repeat end", name)} == {0, 1}


class Rude(BenchmarkCallback):
    def on_run_start(self, benchmark):
        raise RuntimeError("rude")

    on_task_start = on_task_repeat_start = on_task_repeat_end = on_task_end = on_run_end = lambda self, *args: (
        self.on_run_start(None)
    )


def test_callbacks_that_raise(caplog):
    """S0-34: logged; neither the run nor the other callbacks are disturbed."""
    caplog.set_level(logging.WARNING, "necrocode.benchmark")
    listener = Listener()
    assert statuses(Echo(callbacks=[Rude(), listener]).run(asks(2))) == ["success"] * 2
    assert len(listener.heard) == 10
    assert sum("Rude.on_" in record.message for record in caplog.records) == 10


def test_a_callback_that_is_interrupted():
    """Ctrl-C is no failure of a callback: it ends the run."""

    class Interrupted(BenchmarkCallback):
        def on_task_repeat_end(self, benchmark, report):
            raise KeyboardInterrupt

    benchmark = Echo(callbacks=[Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(asks(5))
    assert len(benchmark.reports) == 1


def test_invoke_callbacks_by_name():
    """S0-34."""
    listener = Listener()
    benchmark = Echo(callbacks=[listener, object()])
    benchmark._invoke_callbacks("on_task_start", benchmark, ask("x"))
    assert listener.heard == [("task start", "x")]


def test_append_report_safe():
    """S0-33: from many threads, nothing lost."""
    benchmark = Echo()
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(benchmark._append_report_safe, ({"number": number} for number in range(500))))
    assert sorted(report["number"] for report in benchmark.reports) == list(range(500))


# Bad input and the rest of the face


@pytest.mark.parametrize("workers", [0, -1, True, "4", 2.5, None])
def test_impossible_numbers_of_workers(workers):
    with pytest.raises(ConfigError, match="max_workers"):
        Echo().run(asks(1), max_workers=workers)


@pytest.mark.parametrize(
    "terms", [{"queue": 3}, {"queue": PriorityQueue}, {"grace": "x"}, {"grace": -1}, {"store": 3}, {"executor": "x"}],
    ids=str,
)  # fmt: skip
def test_impossible_terms_of_a_run(terms):
    with pytest.raises(ConfigError, match=r"not possible|not known"):
        Echo().run(asks(1), **terms)


def test_impossible_parts():
    with pytest.raises(ConfigError, match="callbacks"):
        Echo(callbacks=3)
    with pytest.raises(ConfigError, match="protocol"):
        Task("q", protocol=3)


def test_a_coroutine_where_a_function_is_needed():
    """It is the benchmark's mistake, told before anything starts, or by the report of the phase; never a success."""

    class Async(Echo):
        async def run_agents(self, agents, task, environment, query):
            return query

    class Hidden(Echo):
        def run_agents(self, agents, task, environment, query):
            return Async.run_agents(self, agents, task, environment, query)

    with pytest.raises(ConfigError, match="run_agents is a coroutine function"):
        Async().run(asks(1))
    (report,) = Hidden().run(asks(1))
    assert report["status"] == "unknown_execution_error" and "coroutine" in report["error"]["error_message"]


@pytest.mark.parametrize("tasks", [None, "text", [5], [{"no": "field"}]], ids=["none", "text", "number", "mapping"])
def test_what_is_no_task(tasks):
    with pytest.raises(ConfigError):
        Echo().run(tasks)


def test_agent_data():
    """One for all tasks, or one for each."""
    seen = []

    class Noting(Echo):
        def setup_environment(self, agent_data, task):
            seen.append(agent_data)
            return super().setup_environment(agent_data, task)

    Noting({"model": "m"}).run(asks(2))
    Noting(["a", "b"]).run(asks(2))
    assert seen == [{"model": "m"}, {"model": "m"}, "a", "b"]
    with pytest.raises(ConfigError):
        Noting(["a"]).run(asks(2))


def test_mappings_are_tasks_too():
    assert statuses(Echo().run([{"query": "a"}, {"query": "b"}])) == ["success"] * 2
    assert statuses(Echo().run({"query": "alone"})) == ["success"]
    assert Echo().run([]) == []


def test_a_benchmark_needs_agents():
    with pytest.raises(TypeError):
        Benchmark()
    with pytest.raises(ConfigError):
        Echo().get_model_adapter("x")


def test_any_executor():
    with ThreadPoolExecutor(2) as executor:
        assert statuses(Echo().run(asks(5), max_workers=4, executor=executor)) == ["success"] * 5
    with pytest.raises(ConfigError):
        Echo().run(asks(1), executor="pigeon")


def test_agents_of_one_repetition_are_not_those_of_another():
    assert Agent("a").said is not Agent("a").said


def test_worker_processes(tmp_path):
    """Real limits: what does not listen is killed; a process that dies is an infrastructure failure."""
    tasks = [
        ask("fine"), ask("deaf", environment={"sleep": 300}, timeout_seconds=1.0),
        ask("dies", environment={"die": True}), ask("bad", environment={"raise": "agent"}),
    ]  # fmt: skip
    reports = Plain().run(tasks, max_workers=2, executor="process", grace=0.5)
    assert statuses(reports) == ["success", "task_timeout", "infrastructure_error", "agent_error"]
    assert reports[0]["traces"]["agents"] == {"main": {"said": ["q fine"]}}
    assert reports[3]["error"]["error_type"] == "AgentError"


def test_nine_names():
    """S0-37: exported from the face; none of those that collide at the top of the package."""
    for name in (
        "TaskProtocol", "TimeoutAction", "ComponentRegistry", "TaskContext", "TaskQueue", "SequentialQueue",
        "PriorityQueue", "AdaptiveQueue", "TaskTimeoutError",
    ):  # fmt: skip
        assert name in face.__all__ and hasattr(face, name)
    for name in ("PriorityQueue", "TimeoutError", "EnvironmentError"):
        with pytest.raises(AttributeError):
            getattr(necrocode, name)


def test_sequential_queue_is_the_default():
    """S0-31."""
    assert isinstance(Echo()._queue(asks(1), None), SequentialQueue)
