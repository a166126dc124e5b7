"""Task calls: agents as functions and programs, batches, progress, resources, cancelling, figures.

Run it: python examples/task_calls_example.py
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from necrocode.task_calls import (
    AgentResult,
    AgentTask,
    MCPIntegrationLayer,
    batch_task_calls,
    create_task_call,
    execute_task_batches,
)


async def backend(task: AgentTask, progress: Any) -> AgentResult:
    """An agent as a coroutine: says how far it is, and how sure."""
    for step in range(1, 5):
        await asyncio.sleep(0.02)
        await progress(step / 4)
    return AgentResult(data={"endpoints": task.context_data["endpoints"]}, confidence_score=0.9)


def frontend(task: AgentTask, progress: Any) -> str:
    """An agent as a plain function, in a thread."""
    time.sleep(0.05)
    progress(0.5)
    return "components: " + ", ".join(task.context_data["components"])


async def sleeper(task: AgentTask, progress: Any) -> None:
    await asyncio.sleep(3600)


async def basic() -> None:
    layer = MCPIntegrationLayer(
        workflow_id="my_workflow",
        max_concurrent_tasks=8,
        executor={
            "backend_specialist_1": backend,
            "frontend_specialist_1": frontend,
            "documentation_specialist_1": ["sh", "-c", 'echo "documented: $1"', "agent", "{title}"],
        },
    )

    async def track_progress(instance_id: str, progress: float) -> None:
        if instance_id.startswith("backend"):
            print(f"  backend: {progress:.0%} complete")

    layer.parallel_task_manager.add_progress_callback(track_progress)
    results = await layer.execute_multiple_task_calls(
        [
            create_task_call(
                "backend_specialist_1", "api_implementation", "Implement REST API endpoints",
                {"endpoints": ["users", "projects"]},
            ),
            create_task_call(
                "frontend_specialist_1", "component_development", "Develop React components",
                {"components": ["UserList", "ProjectCard"]},
            ),
            create_task_call("documentation_specialist_1", "api_documentation", "Create API documentation"),
            create_task_call("nobody", "anything", "This agent is not configured"),
        ]
    )  # fmt: skip
    for result in results:
        print(f"  {result.agent_id}: {result.data if result.success else result.error_message}")
    metrics = layer.get_task_execution_metrics()
    print(f"  success rate: {metrics['successful_tasks']}/{metrics['total_tasks']}")


async def batches() -> None:
    layer = MCPIntegrationLayer(executor=lambda task, progress: task.context_data["item_id"] ** 2)
    calls = [create_task_call(f"agent_{i % 5}", "square", f"Item {i}", {"item_id": i}) for i in range(20)]
    results = await execute_task_batches(layer, batch_task_calls(calls, batch_size=5))
    print(f"  {len(results)} results, the last is {results[-1].data}")


async def resources() -> None:
    """Who needs the same goes one after the other, and takes no slot while it waits."""
    inside: list[str] = []

    async def work(task: AgentTask, progress: Any) -> int:
        inside.append(task.agent_id)
        await asyncio.sleep(0.05)
        together = len(inside)
        inside.remove(task.agent_id)
        return together

    layer = MCPIntegrationLayer(executor=work)
    wanted = {"resources": ["database_config"]}
    results = await layer.execute_multiple_task_calls(
        [create_task_call(f"migration_{number}", "migrate", "Change the schema", wanted) for number in range(3)]
    )
    waits = layer.parallel_task_manager.get_resource_contention()["database_config"]["waits"]
    print(f"  most at once: {max(result.data for result in results)}; waits: {waits:.0f}")


async def cancelling() -> None:
    layer = MCPIntegrationLayer(executor=sleeper)
    running = asyncio.create_task(
        layer.execute_multiple_task_calls([create_task_call("problematic_agent", "t", "Never ends")])
    )
    completed = await layer.wait_for_all_tasks_completion(timeout=0.1)
    cancelled = await layer.cancel_running_tasks(["problematic_agent"])
    print(f"  completed: {completed}, cancelled: {cancelled}, {(await running)[0].status}")
    late = create_task_call("slow", "t", "Takes too long", timeout_seconds=0.1)
    print(f"  {(await layer.execute_task_call(late)).error_message}")


async def main() -> None:
    for step in (basic, batches, resources, cancelling):
        print(step.__name__)
        await step()


if __name__ == "__main__":
    asyncio.run(main())
