"""Runners side by side: basic coordination, conflicts, the wait estimate, and the orchestrator.

Run it: python examples/parallel_execution_example.py
It works in a temporary directory and needs nothing but git.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from necrocode.agent_runner import (
    ParallelCoordinator,
    ParallelExecutionContext,
    ResourceLimitError,
    RunnerConfig,
    RunnerOrchestrator,
    TaskContext,
)


def basic_coordination(place: Path) -> None:
    """Three runners fit, the fourth is told why it does not, and may wait for its turn."""
    print("Basic coordination")
    coordinator = ParallelCoordinator(place / "basic", max_parallel_runners=3)
    for number in (1, 2, 3):
        registered = coordinator.register_runner(f"runner-{number}", f"task-{number}", "demo", place / f"ws{number}")
        print(f"  runner-{number} registered: {registered}")
    refused = coordinator.try_register("runner-4", "task-4", "demo", place / "ws4")
    print(f"  runner-4 registered: {refused.granted}, because of: {refused.reason}")

    threading.Timer(0.2, coordinator.unregister_runner, ["runner-1"]).start()
    with ParallelExecutionContext(coordinator, "runner-4", "task-4", "demo", place / "ws4", wait=True) as context:
        print(f"  runner-4 waited {context.waited:.1f} s and works now: {coordinator.get_concurrent_count()} at once")
    try:
        coordinator.register_runner("runner-1", "task-1", "demo", place / "ws1")
        with ParallelExecutionContext(coordinator, "runner-5", "task-5", "demo", place / "ws5"):
            print("  this is never printed")
    except ResourceLimitError as error:
        print(f"  {error}")
    for number in (1, 2, 3):
        coordinator.unregister_runner(f"runner-{number}")
    print(f"  at the end: {coordinator.get_concurrent_count()} runners\n")


def conflicts(place: Path) -> None:
    """A question names who has what; a claim is refused or granted as a whole."""
    print("Conflicts")
    coordinator = ParallelCoordinator(place / "conflicts")
    coordinator.register_runner("runner-1", "task-1", "demo", place / "ws1", ["src/main.py"], ["feature/login"])
    coordinator.register_runner("runner-2", "task-2", "demo", place / "ws2")
    for line in coordinator.detect_conflicts(
        "runner-2", files=["./src/main.py", "README.md"], branches=["feature/login"]
    ):
        print(f"  {line}")
    refused = coordinator.try_register("runner-3", "task-3", "demo", place / "ws3", files=["src/main.py"])
    print(f"  runner-3: {refused.holders[0]}")
    coordinator.update_resources("runner-2", files=["README.md"])
    print(f"  runner-2 holds {sorted(coordinator.get_runners()[1].files_locked)}")
    for number in (1, 2):
        coordinator.unregister_runner(f"runner-{number}")
    print()


def wait_estimate(place: Path) -> None:
    """Unknown at first, then from how long runners have really taken."""
    print("Wait estimate")
    coordinator = ParallelCoordinator(place / "estimate", max_parallel_runners=1)
    print(f"  nobody there: {coordinator.get_wait_time():.1f} s")
    with ParallelExecutionContext(coordinator, "runner-1", "task-1", "demo", place / "ws1"):
        print(f"  full, nothing known yet: {coordinator.get_wait_time()} s")
        time.sleep(0.5)
    with ParallelExecutionContext(coordinator, "runner-2", "task-2", "demo", place / "ws2"):
        print(f"  full, after one runner of half a second: {coordinator.get_wait_time():.1f} s\n")


def orchestrator(place: Path) -> None:
    """Four tasks with real commands for agents, two at once, each on its branch of one repository."""
    print("Orchestrator")
    repository = made_repository(place / "repository")
    config = RunnerConfig(
        max_parallel_runners=2,
        default_timeout_seconds=60,
        coordination_dir=place / "orchestrator",
        repository_path=repository,
        artifact_store_url=f"file://{place}/artifacts",
        agent=["sh", "-c", 'sleep 0.3; printf "%s\\n" "$1" > "$2.txt"', "agent", "{prompt}", "{task_id}"],
    )
    threads = [threading.Thread(target=run_one, args=(config, number)) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    branches = git(repository, "branch", "--list", "--format=%(refname:short)  %(subject)", "feature/*")
    print("  " + branches.replace("\n", "\n  "))


def run_one(config: RunnerConfig, number: int) -> None:
    task = TaskContext(
        task_id=f"task-{number}",
        spec_name="demo",
        title=f"Write file {number}",
        branch_name=f"feature/task-{number}",
        test_commands=[f"test -s task-{number}.txt"],
    )
    result = RunnerOrchestrator(config).run(task)
    print(
        f"  task-{number}: {'done' if result.success else result.error}, "
        f"{result.concurrent_runners} at once, waited {result.waited_seconds:.1f} s"
    )


def made_repository(path: Path) -> Path:
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / "README.md").write_text("A repository to work on.\n")
    git(path, "add", ".")
    git(path, "-c", "user.name=Example", "-c", "user.email=example@localhost", "commit", "--quiet", "-m", "Begin")
    return path


def git(where: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=where, check=True, capture_output=True, text=True).stdout.rstrip()


def main() -> None:
    logging.getLogger("necrocode").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="necrocode-example-") as folder:
        place = Path(folder)
        basic_coordination(place)
        conflicts(place)
        wait_estimate(place)
        orchestrator(place)


if __name__ == "__main__":
    main()
