"""Repositories, tasks and settings for the tests of the S2 orchestrator."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from necrocode.agent_runner import RunnerConfig, TaskContext
from necrocode.testing import check

WRITE = ["sh", "-c", 'printf "%s" "$1" > done.txt', "agent", "{prompt}"]


def git(repo: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=repo, check=True, capture_output=True, text=True).stdout.strip()


def made_repository(path: Path) -> Path:
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    git(path, "config", "user.name", "Test")
    git(path, "config", "user.email", "test@example.org")
    (path / "main.py").write_text("print('hello')\n")
    git(path, "add", ".")
    git(path, "commit", "-qm", "first")
    return path


def clone(repo: Path, name: str) -> Path:
    """Another slot of the same repository."""
    git(repo.parent, "clone", "-q", str(repo), name)
    return repo.parent / name


def settings(place: Path, **more) -> RunnerConfig:
    """A configuration with everything below `place`."""
    known = {
        "coordination_dir": place / "state",
        "artifact_store_url": f"file://{place}/artifacts",
        "agent": WRITE,
        "grace_seconds": 0.2,
    }
    return RunnerConfig(**{**known, **more})


def task(repo: Path | None, number: int = 1, **more) -> TaskContext:
    known = {"spec_name": "spec", "title": f"Task {number}", "slot_path": repo, "branch_name": f"feature/task-{number}"}
    return TaskContext(**{"task_id": f"{number}", **known, **more})


def events(state: Path) -> list[dict]:
    lines = [line for path in sorted((state / "events").iterdir()) for line in path.read_text().split("\n")]
    return [json.loads(line) for line in lines if line]


def nothing_is_held(state: Path) -> bool:
    return not list((state / "runners").iterdir()) and not list((state / "queue").iterdir()) and check(state)
