"""S2-49: the example runs as a script, and shows what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from s2_runners import Runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "parallel_execution_example.py"


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
