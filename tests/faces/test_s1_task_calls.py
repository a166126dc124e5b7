"""S1, task calls: the document's examples, results, limits, resources, cancelling, figures."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time

import pytest
from loops import Gauge, on_loop, pid_in, until

from necrocode import task_calls
from necrocode.context import check_timeout
from necrocode.errors import ConfigError, NecrocodeError, TaskTimeoutError
from necrocode.schedule import Schedule
from necrocode.task_calls import (
    AgentInstance,
    AgentResult,
    AgentTask,
    InvalidTaskCall,
    MCPIntegrationLayer,
    NoExecutor,
    ParallelTaskManager,
    ResourceLock,
    batch_task_calls,
    create_task_call,
    execute_task_batches,
    get_mcp_integration_layer,
    reset_mcp_integration_layer,
)
from necrocode.task_calls.executors import argv_of
from necrocode.testing import is_alive


async def good(task, progress):
    """Does its work in five steps, and says how sure it is."""
    for step in range(1, 6):
        await asyncio.sleep(0.001)
        await progress(step / 5)
    return AgentResult(data={"did": task.description}, confidence_score=0.8, evidence=["looked"])


async def bad(task, progress):
    raise ValueError(f"{task.agent_id} cannot")


async def forever(task, progress):
    await asyncio.sleep(3600)


def call(agent_id="agent", description="work", **more):
    context = {key: more.pop(key) for key in ("resources", "agent_type") if key in more}
    return create_task_call(agent_id, "processing_task", description, context, **more)


def calls(count, **more):
    return [call(f"agent_{number}", f"item {number}", **more) for number in range(count)]


# ---- the document's examples


@on_loop
async def test_s1_basic_parallel_execution_as_printed():
    """S1-01, S1-21, S1-23, S1-28: three agents at once; results in the order of the calls."""
    # Initialize with custom concurrency limit
    integration_layer = MCPIntegrationLayer(workflow_id="my_workflow", max_concurrent_tasks=8, executor=good)

    # Create multiple task calls
    task_calls = [
        create_task_call(
            agent_id="backend_specialist_1",
            task_type="api_implementation",
            description="Implement REST API endpoints",
            context_data={"endpoints": ["users", "projects"]},
        ),
        create_task_call(
            agent_id="frontend_specialist_1",
            task_type="component_development",
            description="Develop React components",
            context_data={"components": ["UserList", "ProjectCard"]},
        ),
        create_task_call(
            agent_id="documentation_specialist_1",
            task_type="api_documentation",
            description="Create API documentation",
            context_data={"apis": ["REST", "GraphQL"]},
        ),
    ]

    # Execute all tasks in parallel
    results = await integration_layer.execute_multiple_task_calls(task_calls)

    # Check results
    successful_tasks = sum(1 for r in results if r.success)
    print(f"Completed {successful_tasks}/{len(results)} tasks successfully")
    assert successful_tasks == 3
    assert [result.agent_id for result in results] == [one["agent_id"] for one in task_calls]
    assert all(type(one) is dict for one in task_calls)


@on_loop
async def test_s1_30_and_31_batches_as_printed():
    integration_layer = MCPIntegrationLayer(executor=good)
    task_calls = []
    for i in range(20):
        task_calls.append(
            create_task_call(
                agent_id=f"agent_{i % 5}",
                task_type="processing_task",
                description=f"Process item {i + 1}",
                context_data={"item_id": i + 1},
            )
        )
    batches = batch_task_calls(task_calls, batch_size=5)
    all_results = await execute_task_batches(integration_layer, batches)
    print(f"Processed {len(all_results)} tasks in {len(batches)} batches")
    assert len(batches) == 4 and len(all_results) == 20
    assert [result.data["did"] for result in all_results] == [f"Process item {i + 1}" for i in range(20)]


@on_loop
async def test_s1_13_24_and_25_progress_monitoring_as_printed():
    integration_layer, told = MCPIntegrationLayer(executor=good), {}

    # Add custom progress callback
    async def track_progress(instance_id: str, progress: float):
        told.setdefault(instance_id, []).append(progress)
        print(f"Instance {instance_id}: {progress:.1%} complete")

    integration_layer.parallel_task_manager.add_progress_callback(track_progress)
    running = asyncio.create_task(integration_layer.execute_multiple_task_calls(calls(2)))
    await until(lambda: integration_layer.get_parallel_execution_status()["running_instances"])

    # Monitor execution status
    status = integration_layer.get_parallel_execution_status()
    print(f"Running instances: {len(status['running_instances'])}")
    print(f"Resource locks: {len(status['resource_locks'])}")

    # Wait for completion with timeout
    completed = await integration_layer.wait_for_all_tasks_completion(timeout=300)
    assert completed
    results = await running
    assert set(told) == {result.instance_id for result in results}
    assert all(shares == [0.2, 0.4, 0.6, 0.8, 1.0] for shares in told.values())


@on_loop
async def test_s1_error_handling_and_recovery_as_printed():
    """S1-11, S1-19, S1-29."""
    integration_layer = MCPIntegrationLayer(executor={"agent_0": good, "agent_1": bad, "problematic_agent_1": forever})
    results = await integration_layer.execute_multiple_task_calls(calls(2))
    for result in results:
        if result.success:
            print(f"Task {result.task_id} completed successfully")
            print(f"Confidence: {result.confidence_score}")
            print(f"Evidence: {result.evidence}")
        else:
            print(f"Task {result.task_id} failed: {result.error_message}")
    assert [result.success for result in results] == [True, False]
    assert (results[0].confidence_score, results[0].evidence) == (0.8, ["looked"])
    assert results[1].error_message == "ValueError: agent_1 cannot" and isinstance(results[1].error, ValueError)

    running = asyncio.create_task(integration_layer.execute_multiple_task_calls([call("problematic_agent_1")]))
    await until(lambda: integration_layer.get_parallel_execution_status()["running_instances"])
    cancelled_count = await integration_layer.cancel_running_tasks(agent_ids=["problematic_agent_1"])
    print(f"Cancelled {cancelled_count} tasks")
    assert cancelled_count == 1 and (await running)[0].status == "cancelled"


@pytest.mark.parametrize("ran", [False, True])
@on_loop
async def test_s1_15_performance_metrics_as_printed(ran):
    integration_layer = MCPIntegrationLayer("w", executor={"agent_0": good, "agent_1": bad})
    if ran:
        await integration_layer.execute_multiple_task_calls(calls(2))
    metrics = integration_layer.get_task_execution_metrics()

    print(f"Total tasks: {metrics['total_tasks']}")
    print(f"Success rate: {metrics['successful_tasks']}/{metrics['total_tasks']}")
    print(f"Average execution time: {metrics.get('average_execution_time_ms', 0):.2f}ms")

    # Agent-specific metrics
    for agent_id, agent_metrics in metrics["agent_metrics"].items():
        success_rate = agent_metrics["successes"] / agent_metrics["tasks"]
        print(f"{agent_id}: {success_rate:.1%} success rate")
    assert metrics["total_tasks"] == 2 * ran and metrics["successful_tasks"] == metrics["failed_tasks"] == ran
    if ran:
        assert 0 <= metrics["min_execution_time_ms"] <= metrics["average_execution_time_ms"]
        assert metrics["average_execution_time_ms"] <= metrics["max_execution_time_ms"] < 60_000
        assert metrics["agent_metrics"]["agent_0"]["tasks"] == 1 and metrics["average_confidence"] == 0.8
        assert metrics["workflow_id"] == "w"


@on_loop
async def test_s1_35_custom_resource_identification_as_printed():
    class CustomParallelTaskManager(ParallelTaskManager):
        def _identify_required_resources(self, task: AgentTask) -> set[str]:
            resources = super()._identify_required_resources(task)

            # Add custom resource logic
            if task.context_data.get("requires_gpu"):
                resources.add("gpu_compute")
            if task.context_data.get("requires_external_api"):
                resources.add("external_api_quota")

            return resources

    gauge = Gauge()

    async def on_gpu(task, progress):
        with gauge:
            await asyncio.sleep(0.002)
            return sorted(manager.get_resource_locks())

    manager = CustomParallelTaskManager(5)
    layer = MCPIntegrationLayer(executor=on_gpu)
    layer.parallel_task_manager = manager
    context = {"requires_gpu": True, "requires_external_api": True}
    results = await layer.execute_multiple_task_calls([create_task_call(f"a{n}", "t", "d", context) for n in range(4)])
    assert gauge.most == 1 and {tuple(result.data) for result in results} == {("external_api_quota", "gpu_compute")}


@on_loop
async def test_s1_33_custom_progress_tracking_as_printed():
    class ProgressTracker:
        def __init__(self):
            self.progress_data = {}

        async def track_progress(self, instance_id: str, progress: float):
            self.progress_data[instance_id] = {
                "progress": progress,
                "timestamp": time.time(),
                "estimated_completion": self._estimate_completion(progress),
            }

            # Custom progress logic (notifications, UI updates, etc.)
            await self._update_ui_progress(instance_id, progress)

        def _estimate_completion(self, progress):
            return time.time() + (1 - progress)

        async def _update_ui_progress(self, instance_id, progress):
            pass

    integration_layer = MCPIntegrationLayer(executor=good)
    tracker = ProgressTracker()
    integration_layer.parallel_task_manager.add_progress_callback(tracker.track_progress)
    await integration_layer.execute_multiple_task_calls(calls(3))
    assert [data["progress"] for data in tracker.progress_data.values()] == [1.0, 1.0, 1.0]


@on_loop
async def test_s1_57_remedies_as_printed():
    integration_layer = MCPIntegrationLayer(max_concurrent_tasks=3, executor=good)
    task_calls = calls(5)
    batches = batch_task_calls(task_calls, batch_size=2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert all(result.success for result in await execute_task_batches(integration_layer, batches))
    completed = await integration_layer.wait_for_all_tasks_completion(timeout=600)
    assert completed
    tasks = [AgentTask.of(one) for one in task_calls]
    for task in tasks:
        task.timeout_seconds = 600  # 10 minutes
    batch_size = 3  # Smaller batches
    batches = batch_task_calls(task_calls, batch_size)
    assert [len(batch) for batch in batches] == [3, 2]
    assert all(result.success for result in await integration_layer.execute_multiple_task_calls(tasks))
    status = integration_layer.get_parallel_execution_status()
    assert status["resource_locks"] == {}
    assert await integration_layer.cancel_running_tasks(["problematic_agent"]) == 0


@on_loop
async def test_s1_38_sequential_and_single_use_mix_with_parallel():
    layer = MCPIntegrationLayer(executor=good)
    results = [await layer.execute_task_call(one) for one in calls(2)]
    results += await layer.execute_multiple_task_calls(calls(2))
    results.append(await layer.execute_single_task(call()))
    assert len(results) == 5 and all(result.success for result in results)


# ---- limits


@pytest.mark.parametrize("limit", [3, 5, 8, 20, None])
@on_loop
async def test_s1_02_the_limit_holds_and_is_ten_by_default(limit):
    gauge, number = Gauge(), limit or 10

    async def work(task, progress):
        with gauge:
            await until(lambda: gauge.most == number)
            await asyncio.sleep(0.002)

    layer = MCPIntegrationLayer(executor=work, **({"max_concurrent_tasks": limit} if limit else {}))
    results = await layer.execute_multiple_task_calls(calls(25))
    assert gauge.most == number and gauge.entered == 25 and all(result.success for result in results)


@on_loop
async def test_s1_03_the_limit_belongs_to_the_layer():
    gauge = Gauge()

    async def work(task, progress):
        with gauge:
            await asyncio.sleep(0.005)

    layer = MCPIntegrationLayer(max_concurrent_tasks=2, executor=work)
    await asyncio.gather(*(layer.execute_multiple_task_calls(calls(3)) for _ in range(3)))
    assert gauge.most == 2 and gauge.entered == 9


@on_loop
async def test_s1_04_several_instances_of_one_agent():
    gauge = Gauge()

    async def work(task, progress):
        with gauge:
            await until(lambda: gauge.most == 3)

    layer = MCPIntegrationLayer(executor=work)
    layer.register_agent("same", "backend", ["api"], ["rest"])
    results = await layer.execute_multiple_task_calls([call("same") for _ in range(3)])
    assert len({result.instance_id for result in results}) == 3


@on_loop
async def test_the_limit_may_be_changed_while_tasks_run():
    """S1-46's way in: whoever watches the machine may set it."""
    gauge, gate = Gauge(), asyncio.Event()

    async def work(task, progress):
        with gauge:
            await gate.wait()

    manager = ParallelTaskManager(1, executor=work)
    running = asyncio.gather(manager.execute_parallel_tasks([AgentTask("a", "t", "d") for _ in range(4)]))
    await until(lambda: gauge.now == 1)
    manager.max_concurrent_tasks = 3
    await until(lambda: gauge.now == 3)
    gate.set()
    ((first, *_),) = await running
    assert first.success
    with pytest.raises(InvalidTaskCall):
        manager.max_concurrent_tasks = 0


@on_loop
async def test_s1_40_waiting_work_gets_faster_with_the_limit():
    async def work(task, progress):
        await asyncio.sleep(0.1)

    async def seconds(limit):
        began = time.monotonic()
        await MCPIntegrationLayer(max_concurrent_tasks=limit, executor=work).execute_multiple_task_calls(calls(6))
        return time.monotonic() - began

    one, two, six = [min([await seconds(limit) for _ in range(3)]) for limit in (1, 2, 6)]
    assert one >= 0.6 and two < 0.8 * one and six < 0.5 * one


@on_loop
async def test_s1_40_programs_really_run_beside_each_other(tmp_path):
    """Work of other processes: each waits for a file of the other, so both must run at once."""
    script = 'touch "$TASK_ID"; until [ -e a ] && [ -e b ]; do sleep 0.01; done'
    layer = MCPIntegrationLayer(max_concurrent_tasks=2, executor={"*": ["sh", "-c", f"cd {tmp_path}; {script}"]})
    results = await layer.execute_multiple_task_calls([call(task_id=name, timeout_seconds=60) for name in "ab"])
    assert all(result.success for result in results)


# ---- resources


def test_s1_34_resource_types_are_recognised():
    manager = ParallelTaskManager()
    found = {
        kind: manager._identify_required_resources(AgentTask("a", "t", "d", {"agent_type": kind}))
        for kind in ("backend-developer", "frontend", "documentation_writer", "database admin", "ui", "build-guide")
    }
    assert found["backend-developer"] == {"backend_services"} and found["ui"] == {"ui_components"}
    assert found["frontend"] == {"frontend_assets", "ui_components"} and found["build-guide"] == set()
    assert found["documentation_writer"] == {"documentation_files"} and found["database admin"] == {"database_config"}
    explicit = AgentTask("a", "t", "d", {"resources": ["file:src/a.py", "shared:cache"]})
    assert manager._identify_required_resources(explicit) == {"file:src/a.py", "shared:cache"}


def test_s1_10_tasks_fall_into_five_groups():
    manager = ParallelTaskManager()
    tasks = [
        AgentTask(name, kind, "d")
        for name, kind in (
            ("backend_1", "t"),
            ("frontend_1", "t"),
            ("x", "documentation"),
            ("x", "test"),
            ("guide", "t"),
        )
    ]
    groups = manager._group_tasks_by_resource_requirements(tasks)
    assert list(groups) == [
        "backend_tasks", "frontend_tasks", "documentation_tasks", "validation_tasks", "general_tasks",
    ]  # fmt: skip
    assert [len(some) for some in groups.values()] == [1, 1, 1, 1, 1]


@on_loop
async def test_s1_10_the_grouping_may_be_overridden():
    class Mine(ParallelTaskManager):
        def _group_tasks_by_resource_requirements(self, tasks):
            return {"mine": tasks}

    manager = Mine(executor=forever)
    running = asyncio.create_task(manager.execute_parallel_tasks([AgentTask("a", "t", "d")]))
    await until(manager.get_running_instances)
    assert [job.group for job in manager._jobs()] == ["mine"]
    await manager.cancel()
    await running


@on_loop
async def test_s1_06_07_and_18_resources_are_held_alone_and_given_back():
    gauges = {"db": Gauge(), "web": Gauge()}
    both = Gauge()

    async def work(task, progress):
        (name,) = task.context_data["resources"]
        with gauges[name], both:
            await asyncio.sleep(0.005)
            if task.agent_id == "agent_1":
                raise ValueError

    layer = MCPIntegrationLayer(executor=work)
    wanted = [call(f"agent_{n}", resources=["db" if n % 2 else "web"]) for n in range(8)]
    results = await layer.execute_multiple_task_calls(wanted)
    assert gauges["db"].most == gauges["web"].most == 1 and both.most == 2
    assert [result.success for result in results] == [n != 1 for n in range(8)]
    status = layer.get_parallel_execution_status()
    assert status["running_instances"] == status["resource_locks"] == {}
    assert layer.parallel_task_manager.ledger.view.standing == {}


@on_loop
async def test_waiting_for_a_resource_takes_no_slot():
    gate, free = asyncio.Event(), []

    async def work(task, progress):
        if task.agent_id == "holder":
            await gate.wait()
        elif task.agent_id == "free":
            free.append(1)

    layer = MCPIntegrationLayer(max_concurrent_tasks=2, executor=work)
    wanted = [call(name, resources=["db"]) for name in ("holder", "waits_1", "waits_2", "waits_3")]
    running = asyncio.create_task(layer.execute_multiple_task_calls([*wanted, call("free")]))
    await until(lambda: free)
    gate.set()
    assert all(result.success for result in await running)


@on_loop
async def test_waiting_for_a_strangers_resource_takes_no_slot_either():
    """S1-48: two managers on one ledger; with a limit of one, a task that waits for the other does not hold it up."""
    gate, free, gauge = asyncio.Event(), [], Gauge()

    async def holds(task, progress):
        await gate.wait()

    async def work(task, progress):
        with gauge:
            if task.agent_id == "free":
                free.append(1)
                await asyncio.sleep(0.02)

    first = ParallelTaskManager(executor=holds)
    second = ParallelTaskManager(1, executor=work, coordinator=first.ledger)
    need = {"resources": ["db"]}
    holding = asyncio.create_task(first.execute_parallel_tasks([AgentTask("a", "t", "d", need)]))
    await until(first.get_resource_locks)
    waiting = [AgentTask(f"b{n}", "t", "d", need) for n in range(2)]
    running = asyncio.create_task(second.execute_parallel_tasks([*waiting, AgentTask("free", "t", "d")]))
    await until(lambda: free)
    assert len(second.get_waiting_instances()) >= 2
    gate.set()
    results = [*await holding, *await running]
    assert all(result.success for result in results) and gauge.most == 1
    contention = second.get_resource_contention()["db"]
    assert contention["waits"] == 2 and contention["longest"] > 0


@on_loop
async def test_s1_09_waiting_has_a_timeout_that_says_so():
    gate = asyncio.Event()

    async def holds(task, progress):
        await gate.wait()

    first = ParallelTaskManager(executor=holds, resource_timeout=0.3)
    need = {"resources": ["db"]}
    other = ParallelTaskManager(executor=good, resource_timeout=0.3, coordinator=first.ledger)
    holding = asyncio.create_task(
        first.execute_parallel_tasks([AgentTask("a", "t", "d", need), AgentTask("b", "t", "d", need)])
    )
    await until(first.get_resource_locks)
    (stranger,) = await other.execute_parallel_tasks([AgentTask("c", "t", "d", need)])
    gate.set()
    results = await holding
    assert results[0].success
    for result in (results[1], stranger):
        assert not result.success and result.status == "failed"
        assert "timeout waiting for resource" in result.error_message and "a." in result.error_message
    assert results[1].attempts == 0


@on_loop
async def test_s1_08_22_26_and_27_locks_and_instances_while_they_live():
    manager = ParallelTaskManager(executor=forever)
    need = {"resources": ["backend_services", "file:src/a.py", "file:docs/", "frontend_assets"]}
    running = asyncio.create_task(manager.execute_parallel_tasks([AgentTask("a", "t", "d", need)]))
    await until(manager.get_resource_locks)
    locks, instances = manager.get_resource_locks(), manager.get_running_instances()
    ((name, instance),) = instances.items()
    assert isinstance(instance, AgentInstance) and instance.status == "running" and instance.instance_id == name
    assert instance.resources_locked == set(need["resources"]) == set(locks)
    assert {lock.lock_type for lock in locks.values()} == {"service", "file", "directory"}
    lock = locks["backend_services"]
    assert isinstance(lock, ResourceLock) and lock.locked_by == name and lock.lock_type == "service"
    assert lock.expires_at > time.time() + 200
    beat = instance.heartbeat
    await until(lambda: instance.heartbeat > beat)  # S1-16: fresh by itself
    assert manager.get_resource_locks()["backend_services"].expires_at > lock.expires_at
    assert await manager.cancel([name]) == 1
    assert instance.status == "cancelled" and manager.get_running_instances() == manager.get_resource_locks() == {}
    await running


@on_loop
async def test_shared_resources_are_shared():
    gauge = Gauge()

    async def work(task, progress):
        with gauge:
            await until(lambda: gauge.most == 2)

    layer = MCPIntegrationLayer(executor=work)
    await layer.execute_multiple_task_calls([call(f"a{n}", resources=["shared:cache"]) for n in range(2)])


@on_loop
async def test_s1_42_opposite_orders_cannot_lock_each_other_out():
    layer = MCPIntegrationLayer(executor=good)
    wanted = [call(f"a{n}", resources=["x", "y"] if n % 2 else ["y", "x"]) for n in range(10)]
    assert all(result.success for result in await layer.execute_multiple_task_calls(wanted))


# ---- order, timeouts, retries, cancelling


@on_loop
async def test_s1_37_priority_and_dependencies_have_an_effect():
    order = []

    async def work(task, progress):
        order.append(task.agent_id)
        if task.agent_id == "bad":
            raise ValueError

    manager = ParallelTaskManager(1, executor=work)
    first, last = AgentTask("first", "t", "d", priority=5), AgentTask("last", "t", "d")
    after = AgentTask("after", "t", "d", priority=9, dependencies=[last.task_id])
    broken = AgentTask("bad", "t", "d", priority=0)
    never = AgentTask("never", "t", "d", dependencies=[broken.task_id])
    results = await manager.execute_parallel_tasks([never, after, last, first, broken])
    assert order == ["first", "last", "after", "bad"]
    assert [result.status for result in results] == ["cancelled", *["completed"] * 3, "failed"]
    assert "comes after" in results[0].error_message and results[0].attempts == 0
    (later,) = await manager.execute_parallel_tasks([AgentTask("later", "t", "d", dependencies=[last.task_id])])
    (no,) = await manager.execute_parallel_tasks([AgentTask("no", "t", "d", dependencies=[broken.task_id])])
    assert later.success and not no.success and no.attempts == 0
    assert no.error_message == f"cancelled: comes after {broken.task_id}, which failed"
    (no,) = await manager.execute_parallel_tasks([AgentTask("no", "t", "d", dependencies=[never.task_id])])
    assert no.error_message == f"cancelled: comes after {never.task_id}, which was cancelled"
    (no,) = await manager.execute_parallel_tasks([AgentTask("no", "t", "d", dependencies=["nobody"])])
    assert no.error_message == "cancelled: comes after 'nobody', which is not there"


@on_loop
async def test_s1_37_a_dependency_that_is_done_again_is_waited_for():
    """However it ended before, and wherever in the call it stands."""
    good, order = [], []

    async def work(task, progress):
        order.append(task.task_id)
        if task.agent_id == "flaky" and not good:
            raise ValueError

    manager = ParallelTaskManager(1, executor=work)
    flaky = AgentTask("flaky", "t", "d", task_id="flaky")
    await manager.execute_parallel_tasks([flaky])
    good.append(1)
    after = AgentTask("a", "t", "d", dependencies=["flaky"], task_id="after", priority=9)
    results = await manager.execute_parallel_tasks([after, flaky])
    assert [result.success for result in results] == [True, True] and order == ["flaky", "flaky", "after"]


@pytest.mark.parametrize("kind", ["coroutine", "thread", "program"])
@on_loop
async def test_s1_36_a_tasks_timeout_ends_its_work(kind, tmp_path):
    ended, place = [], tmp_path / "pid"

    async def slow(task, progress):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(1)

    def deaf(task, progress):
        try:
            while True:
                check_timeout()
                time.sleep(0.005)
        finally:
            ended.append(1)

    program = ["sh", "-c", f"sleep 600 & echo $! > {place}.new; mv {place}.new {place}; wait"]
    layer = MCPIntegrationLayer(executor={"a": {"coroutine": slow, "thread": deaf, "program": program}[kind]})
    began = time.monotonic()
    result = await layer.execute_task_call(call("a", timeout_seconds=0.5))
    assert not result.success and isinstance(result.error, TaskTimeoutError) and "limit 0.5 s" in result.error_message
    assert time.monotonic() - began < 20 and result.execution_time_ms >= 400
    if kind == "program":
        assert not is_alive(pid_in(place))
    else:
        await until(lambda: ended == [1])


@on_loop
async def test_a_deaf_coroutine_costs_its_result_no_more_than_the_grace():
    gate = asyncio.Event()

    async def deaf(task, progress):
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                pass

    manager = ParallelTaskManager(1, executor=deaf, grace=0.2)
    (result,) = await manager.execute_parallel_tasks([AgentTask("a", "t", "d", timeout_seconds=0.5)])
    assert not result.success and "timed out" in result.error_message
    gate.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    await until(lambda: manager.ledger.view.standing == {})


@on_loop
async def test_s1_12_transient_failures_are_tried_again():
    tries = []

    async def flaky(task, progress):
        tries.append(task.agent_id)
        if tries.count(task.agent_id) < 3:
            raise OSError("not yet") if task.agent_id != "fatal" else ValueError("never")
        return "ok"

    manager = ParallelTaskManager(
        executor=flaky, max_retries=2, retry_delay=0, retry_on=lambda error: isinstance(error, OSError)
    )
    results = await manager.execute_parallel_tasks(
        [AgentTask("a", "t", "d"), AgentTask("fatal", "t", "d"), AgentTask("once", "t", "d", retries=0)]
    )
    assert [(result.success, result.attempts) for result in results] == [(True, 3), (False, 1), (False, 1)]
    assert results[0].data == "ok"


@on_loop
async def test_s1_19_cancelling_stops_exactly_those_and_kills(tmp_path):
    place, threads = tmp_path / "pid", []

    def in_thread(task, progress):
        threads.append(threading.current_thread())
        while True:
            progress(0.5)  # raises once the task was stopped
            time.sleep(0.005)

    program = ["sh", "-c", f"trap '' TERM; sleep 600 & echo $! > {place}.new; mv {place}.new {place}; wait; sleep 600"]
    executor = {"program": program, "thread": in_thread, "coroutine": forever, "other": forever}
    layer = MCPIntegrationLayer(max_concurrent_tasks=4, executor=executor)
    names = ["program", "thread", "coroutine", "other", "coroutine"]
    running = asyncio.create_task(layer.execute_multiple_task_calls([call(name) for name in names]))
    await until(lambda: pid_in(place) and threads and len(layer.parallel_task_manager.get_running_instances()) == 4)
    assert await layer.cancel_running_tasks(["program", "thread", "coroutine"]) == 4
    assert not is_alive(pid_in(place))
    await until(lambda: not threads[0].is_alive())
    left = layer.get_parallel_execution_status()["running_instances"].values()
    assert [instance["agent_id"] for instance in left] == ["other"]
    assert await layer.cancel_running_tasks() == 1
    results = await running
    assert {result.status for result in results} == {"cancelled"} and not any(result.success for result in results)
    assert results[4].attempts == 0 and "cancel" in results[0].error_message
    assert await layer.cancel_running_tasks() == 0


@on_loop
async def test_whoever_waits_is_cancelled_and_so_are_the_tasks():
    layer = MCPIntegrationLayer(executor=forever)
    running = asyncio.create_task(layer.execute_multiple_task_calls(calls(3, resources=["db"])))
    await until(lambda: layer.parallel_task_manager.get_running_instances())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    status = layer.get_parallel_execution_status()
    assert status["running_instances"] == status["waiting_instances"] == {}


@on_loop
async def test_a_waiter_for_a_strangers_resource_is_cancelled_at_once():
    first = ParallelTaskManager(executor=forever)
    second = ParallelTaskManager(executor=good, coordinator=first.ledger)
    need = {"resources": ["db"]}
    holding = asyncio.create_task(first.execute_parallel_tasks([AgentTask("a", "t", "d", need)]))
    await until(first.get_resource_locks)
    waiting = asyncio.create_task(second.execute_parallel_tasks([AgentTask("b", "t", "d", need)]))
    await until(lambda: first.ledger.view.waiting)
    assert await second.cancel() == 1 and (await waiting)[0].status == "cancelled"
    assert not first.ledger.view.waiting
    await first.cancel()
    await holding


@on_loop
async def test_s1_24_waiting_for_all():
    layer = MCPIntegrationLayer(executor=forever)
    assert await layer.wait_for_all_tasks_completion(timeout=0)
    running = asyncio.create_task(layer.execute_multiple_task_calls(calls(2)))
    assert not await layer.wait_for_all_tasks_completion(timeout=0.05)
    async with layer:
        pass  # the end of the context cancels what runs
    assert await layer.wait_for_all_tasks_completion(timeout=None)
    await running


# ---- executors


@on_loop
async def test_s1_53_without_an_executor_the_failure_says_so():
    (result,) = await MCPIntegrationLayer().execute_multiple_task_calls([call("lonely")])
    assert not result.success and result.error_message == "no executor for agent lonely"
    assert isinstance(result.error, NoExecutor) and result.attempts == 1
    layer = MCPIntegrationLayer(executor={"other": good}, max_retries=3)
    assert (await layer.execute_task_call(call("lonely"))).error_message == "no executor for agent lonely"


@on_loop
async def test_s1_53_functions_coroutines_programs_and_known_agents(tmp_path):
    def function(task, progress):
        progress(0.5)
        return task.description.upper()

    told = []
    layer = MCPIntegrationLayer(
        executor={
            "function": function,
            "coroutine": good,
            "typed": good,
            "program": [
                "sh",
                "-c",
                'echo "progress: 0.25"; echo "$TASK_CONTEXT"; printf "%s" "$1" >&2',
                "x",
                "{prompt}",
            ],
            "text": "printf %s {prompt}",
            "unknown": "no-such-agent",
            "breaks": ["sh", "-c", "echo half; exit 3"],
            "says no": lambda task, progress: AgentResult(success=False, error_message="did not work", data=1),
        }
    )
    layer.register_agent("by type", "typed")
    layer.parallel_task_manager.add_progress_callback(lambda name, share: told.append((name.partition(".")[0], share)))
    names = ["function", "coroutine", "by type", "program", "text", "unknown", "breaks", "says no"]
    results = await layer.execute_multiple_task_calls([call(name, resources=["r-" + name]) for name in names])
    function_, coroutine, typed, program, text, unknown, breaks, says_no = results
    assert function_.data == "WORK" and coroutine.success and typed.success
    assert program.data["exit_code"] == 0 and '"resources"' in program.data["stdout"]
    assert program.data["stderr"].startswith("work\n\nContext:\n") and ("program", 0.25) in told
    assert text.data["stdout"].startswith("work")
    assert "neither known" in unknown.error_message and breaks.error.exit_code == 3
    assert (says_no.success, says_no.error_message, says_no.data, says_no.status) == (
        False,
        "did not work",
        1,
        "failed",
    )


@on_loop
async def test_s1_11_one_failure_touches_nobody():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    def odd(task, progress):
        raise Odd

    def leaves(task, progress):
        raise SystemExit(2)

    async def cancels_itself(task, progress):
        raise asyncio.CancelledError

    layer = MCPIntegrationLayer(executor={"odd": odd, "leaves": leaves, "cancels": cancels_itself, "good": good})
    results = await layer.execute_multiple_task_calls([call(name) for name in ("odd", "leaves", "cancels", "good")])
    assert [result.status for result in results] == ["failed", "failed", "cancelled", "completed"]
    assert "SystemExit" in results[1].error_message


# ---- progress, events, extension


@on_loop
async def test_s1_32_a_broken_callback_does_no_harm(caplog):
    told = []

    async def broken(instance_id, progress):
        raise RuntimeError("broken callback")

    layer = MCPIntegrationLayer(executor=good)
    layer.parallel_task_manager.add_progress_callback(broken)
    layer.parallel_task_manager.add_progress_callback(lambda name, share: told.append(share))
    with caplog.at_level(logging.WARNING):
        (result,) = await layer.execute_multiple_task_calls(calls(1))
    assert result.success and told[-1] == 1.0 and "broken callback" in caplog.text
    with pytest.raises(TypeError):
        layer.parallel_task_manager.add_progress_callback(None)


@on_loop
async def test_progress_is_a_share():
    told = []

    async def work(task, progress):
        await progress(-1)
        await progress(7)
        with pytest.raises(ValueError):
            progress(float("nan"))
        with pytest.raises(ValueError):
            progress("half")

    manager = ParallelTaskManager(executor=work)
    manager.add_progress_callback(lambda name, share: told.append(share))
    (result,) = await manager.execute_parallel_tasks([AgentTask("a", "t", "d")])
    assert result.success and told == [0.0, 1.0] and result.progress == 1.0


@on_loop
async def test_s1_17_and_52_everything_that_happens_can_be_listened_to():
    events, errors = [], []

    async def failed(task, error):
        errors.append((task.agent_id, type(error)))

    manager = ParallelTaskManager(executor={"agent_0": good, "agent_1": bad}, listen=events.append, on_error=failed)
    await manager.execute_parallel_tasks([AgentTask.of(one) for one in calls(2)])
    kinds = [event.kind for event in events]
    assert kinds.count("task.queued") == kinds.count("attempt.started") == kinds.count("attempt.finished") == 2
    assert {event.facts["status"] for event in events if event.kind == "attempt.finished"} == {"done", "failed"}
    assert errors == [("agent_1", ValueError)]


@on_loop
async def test_s1_50_and_52_resources_order_and_schedule_are_replaceable():
    order, made = [], []

    def schedule(limit):
        made.append(limit)
        return Schedule(limit=limit)

    async def work(task, progress):
        order.append(task.agent_id)

    manager = ParallelTaskManager(
        1, executor=work, schedule=schedule, identify_resources=lambda task: {"everything"},
        prioritise=lambda task: int(task.agent_id),
    )  # fmt: skip
    await manager.execute_parallel_tasks([AgentTask(str(n), "t", "d") for n in range(4)])
    assert order == ["3", "2", "1", "0"] and made == [1]


@on_loop
async def test_s1_44_detailed_logging_can_be_switched_on(caplog):
    with caplog.at_level(logging.DEBUG, "necrocode.task_calls"):
        await MCPIntegrationLayer(executor=good).execute_multiple_task_calls(calls(1))
    assert "attempt.finished agent_0" in caplog.text


@on_loop
async def test_s1_45_and_55_what_failed_can_be_found_and_redone():
    fails = {"agent_1"}

    async def work(task, progress):
        if task.agent_id in fails:
            raise OSError
        return task.agent_id

    layer, wanted = MCPIntegrationLayer(executor=work), calls(3)
    results = await layer.execute_multiple_task_calls(wanted)
    again = [one for one, result in zip(wanted, results, strict=True) if not result.success]
    fails.clear()
    (redone,) = await layer.execute_multiple_task_calls(again)
    assert redone.data == "agent_1" and redone.idempotency_key == results[1].idempotency_key
    assert len({result.idempotency_key for result in results}) == 3


@on_loop
async def test_s1_20_the_manager_by_itself():
    """ParallelTaskManager(max_concurrent_tasks=10).execute_parallel_tasks(list of AgentTask) -> list of AgentResult."""
    manager = ParallelTaskManager(max_concurrent_tasks=10, executor=good)
    tasks = [AgentTask(f"agent_{number}", "task", f"item {number}") for number in range(3)]
    results = await manager.execute_parallel_tasks(tasks)
    assert type(results) is list and all(type(result) is AgentResult for result in results)
    assert [result.task_id for result in results] == [task.task_id for task in tasks]
    assert await manager.execute_parallel_tasks([]) == []


@on_loop
async def test_s1_43_contention_is_measured_and_expiry_can_be_watched():
    """Three tasks want one thing, each for 20 ms: two waited, the second of them for both."""
    seen = []

    async def work(task, progress):
        lock = manager.get_resource_locks()["cache"]
        seen.append((lock.locked_by, lock.expires_at > lock.locked_at))
        await asyncio.sleep(0.02)

    manager = ParallelTaskManager(executor=work)
    results = await manager.execute_parallel_tasks(
        [AgentTask(f"a{number}", "t", "d", {"resources": ["cache"]}) for number in range(3)]
    )
    found = manager.get_resource_contention()["cache"]
    assert found["waits"] == 2 and 0.06 <= found["seconds"] <= 2 * found["longest"]
    assert seen == [(result.instance_id, True) for result in results]


@on_loop
async def test_s1_41_nothing_of_a_finished_task_is_kept():
    manager = ParallelTaskManager(executor=good)
    await manager.execute_parallel_tasks([AgentTask(f"a{n % 3}", "t", "d") for n in range(30)])
    carrying = manager._carrying
    assert not carrying.jobs and not carrying.engine.schedule._lives and not manager.ledger.view.standing


def test_a_layer_serves_one_loop_after_another():
    layer = MCPIntegrationLayer(executor=good)
    for _ in range(2):
        (result,) = asyncio.run(layer.execute_multiple_task_calls(calls(1)))
        assert result.success
    assert layer.get_task_execution_metrics()["total_tasks"] == 2


# ---- bad input, names


@pytest.mark.parametrize("limit", [0, -1, True, "3", 1.5, None])
def test_impossible_limits(limit):
    with pytest.raises(InvalidTaskCall) as caught:
        MCPIntegrationLayer(max_concurrent_tasks=limit)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, NecrocodeError) and caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [{"max_retries": -1}, {"retry_delay": "x"}, {"retry_delay": -1}, {"resource_timeout": -1}, {"grace": "x"},
     {"resource_timeout": "x"}, {"executor": 3}, {"executor": "claude"}, {"executor": ["prog"]}, {"schedule": 3},
     {"executor": {"*": 3}}, {"executor": {"a": []}}, {"identify_resources": 3}, {"prioritise": "x"}, {"retry_on": 3},
     {"coordinator": 3}],
    ids=str,
)  # fmt: skip
def test_impossible_settings(setting):
    with pytest.raises(ConfigError, match=r"not possible|has no ledger"):
        MCPIntegrationLayer(**setting)


@on_loop
async def test_what_is_asked_of_a_layer_is_looked_at():
    layer = MCPIntegrationLayer(executor=good)
    for calls_ in (None, 3, {}, call()):
        with pytest.raises(InvalidTaskCall, match="no task calls"):
            await layer.execute_multiple_task_calls(calls_)
    with pytest.raises(InvalidTaskCall):
        await layer.wait_for_all_tasks_completion("soon")
    with pytest.raises(InvalidTaskCall):
        layer.parallel_task_manager = 3
    with pytest.raises(InvalidTaskCall):
        layer.executor = "claude"
    assert (await layer.execute_task_call(call())).success


@pytest.mark.parametrize(
    "broken",
    [{}, {"agent_id": "a"}, 3, None, call(timeout_second=3), call(timeout_seconds=0), call(timeout_seconds="1"),
     call(priority="high"), call(retries=-1), call(agent_id=""), call(agent_id=7), call(dependencies="x"),
     call(resources=["../../x"]), call(resources=3), {**call(), "context_data": 3}],
)  # fmt: skip
@on_loop
async def test_broken_calls_start_nothing(broken):
    began = []

    async def work(task, progress):
        began.append(1)

    layer = MCPIntegrationLayer(executor=work)
    with pytest.raises(NecrocodeError):
        await layer.execute_multiple_task_calls([call(), broken])
    assert began == [] and await layer.wait_for_all_tasks_completion(0)


@on_loop
async def test_one_id_cannot_be_there_twice():
    layer = MCPIntegrationLayer(executor=good)
    with pytest.raises(InvalidTaskCall, match="already"):
        await layer.execute_multiple_task_calls([call(task_id="x"), call(task_id="x")])
    assert (await layer.execute_task_call(call(task_id="x"))).success
    assert (await layer.execute_task_call(call(task_id="x"))).task_id == "x"
    assert await layer.execute_multiple_task_calls([]) == []


@pytest.mark.parametrize("size", [0, -1, True, "2", None])
def test_impossible_batches(size):
    with pytest.raises(ValueError):
        batch_task_calls(calls(3), size)


def test_the_processes_layers_by_workflow():
    reset_mcp_integration_layer()
    layer = get_mcp_integration_layer("w", executor=good)
    assert get_mcp_integration_layer("w") is layer and get_mcp_integration_layer() is not layer
    reset_mcp_integration_layer()
    assert get_mcp_integration_layer("w") is not layer
    reset_mcp_integration_layer()


@on_loop
async def test_a_layer_knows_its_workflow():
    layer = MCPIntegrationLayer("w")
    assert layer.start_workflow(phase=3) == "w" and layer.start_workflow("v") == "v"
    status = layer.get_parallel_execution_status()
    assert (status["workflow_id"], status["total_tasks_completed"], status["successful_tasks"]) == ("v", 0, 0)


def test_coordinators_that_are_none():
    with pytest.raises(InvalidTaskCall):
        ParallelTaskManager(coordinator=3)


SIGNATURES = {
    "AgentTask": "agent_id task_type description context_data priority dependencies timeout_seconds created_at "
    "workflow_id phase",
    "AgentResult": "agent_id task_id success data confidence_score evidence execution_time_ms error_message "
    "created_files start_time end_time progress status",
    "AgentInstance": "instance_id agent_id task_id status resources_locked start_time heartbeat",
    "ResourceLock": "resource_id locked_by lock_type locked_at expires_at",
    "ParallelTaskManager": "max_concurrent_tasks",
    "MCPIntegrationLayer": "workflow_id max_concurrent_tasks",
    "create_task_call": "agent_id task_type description context_data",
    "batch_task_calls": "task_calls batch_size",
    "execute_task_batches": "integration_layer batches",
    "get_mcp_integration_layer": "workflow_id",
    "reset_mcp_integration_layer": "",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_s1_56_public_signatures_stay(name):
    parameters = list(inspect.signature(getattr(task_calls, name)).parameters)
    wanted = SIGNATURES[name].split()
    assert parameters[: len(wanted)] == wanted
    assert name in task_calls.__all__ and name in dir(task_calls)


def test_s1_39_no_such_name():
    with pytest.raises(AttributeError):
        task_calls.Simulation


@pytest.mark.parametrize("agent", [["sh", "-c", "echo {prompt}"], "sh -c 'echo {prompt}'"])
def test_no_prompt_reaches_a_shell(agent):
    if not isinstance(agent, str):
        with pytest.raises(ConfigError, match=r"executor of 'a': \{prompt\} stands in the script of sh"):
            MCPIntegrationLayer(executor={"a": agent})
    with pytest.raises(ConfigError, match="stands in the script of sh"):
        argv_of(agent)
