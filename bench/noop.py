"""Many commands that do nothing: what it costs to start, coordinate and record one. Durable results, no workspaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.compare import interleaved, place, timed, told

COUNT, ROUNDS = 500, 3


def main() -> None:
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
    try:
        tasks = "".join(f'[[task]]\nid = "t{n}"\ncommand = "true"\n' for n in range(COUNT))
        (root / "tasks.toml").write_text(tasks)
        (root / "Makefile").write_text("all:" + "".join(f" t{n}" for n in range(COUNT)) + "\nt%:\n\t@true\n")
        for slots in (2, 8):
            told(f"{COUNT} commands, {slots} at once", interleaved(_peers(root, slots), ROUNDS), "ms")
    finally:
        shutil.rmtree(root)


def _peers(root: Path, slots: int) -> dict[str, Callable[[], float]]:
    numbers = "\n".join(map(str, range(COUNT)))
    ours = [sys.executable, "-m", "necrocode", "--state-dir", str(root / "state"), "run", "-q", "--workspace", "none"]
    argvs = {
        "necrocode run": [*ours, "-n", str(slots), str(root / "tasks.toml")],
        "xargs -P": ["xargs", "-P", str(slots), "-n1", "true"],
        "make -j": ["make", "-s", "-j", str(slots), "-C", str(root)],
        "GNU parallel": ["parallel", "-j", str(slots), "true"],
    }
    missing = [name for name, argv in argvs.items() if shutil.which(argv[0]) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    peers = {name: partial(_run, argv, numbers, root) for name, argv in argvs.items() if name not in missing}
    return {**peers, "a thread pool, subprocess.run": partial(_threads, slots)}


def _run(argv: list[str], numbers: str, cwd: Path) -> float:
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return timed(
        lambda: subprocess.run(argv, input=numbers, text=True, cwd=cwd, env=env, capture_output=True, check=True)
    )


def _threads(slots: int) -> float:
    def all_of_them() -> None:
        with ThreadPoolExecutor(slots) as pool:
            list(pool.map(lambda _: subprocess.run(["true"], check=True), range(COUNT)))

    return timed(all_of_them)
