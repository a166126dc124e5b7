"""Every example is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_runs_by_itself(script: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NECROCODE_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_example_is_told_about() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    assert [script.name for script in SCRIPTS if f"]({script.name})" not in page] == []


def test_the_task_file_of_the_demo_is_one() -> None:
    """The demo itself fetches from a package index; the gate runs it."""
    from necrocode.taskfile import read_tasks

    tasks = read_tasks(ROOT / "examples" / "real_package" / "tasks.toml").tasks
    assert len(tasks) >= 8
    assert sum("src/" in task.files for task in tasks) >= 2
