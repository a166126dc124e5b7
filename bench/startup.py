"""What a person waits for before anything happens."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial

from bench.compare import interleaved, timed, told

ROUNDS = 25


def main() -> None:
    with tempfile.TemporaryDirectory() as empty:
        run = partial(_run, empty)
        imports = {"bare python": lambda: run("-c", "pass"), "import necrocode": lambda: run("-c", "import necrocode")}
        told("import", interleaved(imports, ROUNDS), "ms")
        commands = {
            "import click": lambda: run("-c", "import click"),
            "necrocode status, nothing there": lambda: run("-m", "necrocode", "status"),
            "necrocode --help": lambda: run("-m", "necrocode", "--help"),
        }
        told("commands", interleaved(commands, ROUNDS), "ms")


def _run(empty: str, *argv: str) -> float:
    env = {**os.environ, "NECROCODE_STATE_DIR": f"{empty}/state"}
    return timed(lambda: subprocess.run([sys.executable, *argv], env=env, capture_output=True, check=True))
