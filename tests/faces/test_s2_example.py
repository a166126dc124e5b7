"""S2-49: the example runs as a script, and shows what it says; and the page about the document tells what is there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from s2_runners import Runner

import necrocode.agent_runner as face

EXAMPLE = Path(__file__).parents[2] / "examples" / "parallel_execution_example.py"
PAGE = Path(__file__).parents[2] / "docs" / "coming-from-agent-runner.md"


def test_the_example(tmp_path):
    ended = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env=Runner.environment({"NECROCODE_STATE_DIR": str(tmp_path / "never-used"), "HOME": str(tmp_path)}),
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    for line in (
        "runner-3 registered: True",
        "runner-4 registered: False, because of: limit",
        "File conflict with runner runner-1: src/main.py",
        "Branch conflict with runner runner-1: feature/login",
        "full, nothing known yet: inf s",
        "feature/task-4  Write file 4",
    ):
        assert line in ended.stdout, line
    assert ended.stdout.count(": done, ") == 4
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


@pytest.mark.parametrize(
    "name", ["ParallelCoordinator", "ParallelExecutionContext", "ResourceMonitor", "RetryConfig", "Workspace"]
)
def test_the_page_tells_the_signatures_that_are_here(name):
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    here = " ".join(row[0] if row[1] == "the same" else row[1] for row in rows)
    told = re.search(rf"`{name}\(([^`]*)\)`", here)
    assert told, f"{name} is on the page without its arguments"
    arguments = [argument.partition("=")[0].strip() for argument in told[1].split(",")]
    assert arguments == list(inspect.signature(getattr(face, name)).parameters)[: len(arguments)]


def test_the_page_names_what_was_not_carried_over():
    """WorkspaceManager is no name of this package, and the page does not say that it is."""
    (row,) = [line for line in PAGE.read_text().splitlines() if "`WorkspaceManager`" in line]
    assert row.startswith("| `WorkspaceManager` | not carried over |")
    assert not hasattr(face, "WorkspaceManager")
