"""The page about proving one's own state files shows what runs, and names all that there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from necrocode import testing

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()


def test_its_python_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_it_names_what_there_is() -> None:
    left = set(testing.__all__) - {"Injection", "Broken", "Died"}
    assert not [name for name in left if not re.search(rf"`{name}\b|, `{name}\b", PAGE)]
