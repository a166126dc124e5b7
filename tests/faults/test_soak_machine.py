"""The parts of the soak that lie about the machine: a small share of each, and that they see what is broken on purpose.

The rest of them is `make soak`."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from proofs import only_in_the_gate

from necrocode.testing import wait_for
from tests.soak.history import lines_of, verdict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"power": 0.002, "full": 0.01, "clocks": 0.01, "gits": 0.01, "agents": 0.02}
_NO_SYNC = "import os; os.fsync = lambda handle: None"
_NO_TOKENS = "from necrocode.ledger.gate import Gate; Gate._write_counter = lambda gate: None"


@pytest.fixture
def mounted() -> Iterator[None]:
    """Nothing may stay mounted, and no loop device attached."""

    def left() -> list[str]:
        # Whose image was removed; another soak that goes on beside this has its own.
        attached = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
        lines = [*Path("/proc/self/mounts").read_text().splitlines(), *attached]
        return [line for line in lines if "necrocode-soak" in line and "deleted" in line]

    yield
    wait_for(lambda: not left(), told=left)


def lacking(name: str) -> str:
    missing: str = importlib.import_module(f"tests.soak.{name}").PART.lacking()
    return missing


def played(name: str, share: float, where: Path, broken: str = "") -> list[str]:
    """What was found wrong; `broken` is executed first."""
    script = f"{broken}\nimport sys\nfrom tests.soak.__main__ import main\nsys.exit(main())"
    argv = [sys.executable, "-c", script, name, "--here", f"--share={share}", f"--history={where}"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = verdict(lines_of(where / f"{name}.jsonl"))
    assert found.injected.total() > 0 or found.wrong
    return found.wrong


@only_in_the_gate
@pytest.mark.parametrize("name", SHARES)
def test_a_small_share_of(name: str, tmp_path: Path, mounted: None) -> None:
    if missing := lacking(name):
        pytest.skip(f"no {missing} here")
    assert played(name, SHARES[name], tmp_path) == []


@only_in_the_gate
@pytest.mark.parametrize("broken", [_NO_SYNC, _NO_TOKENS], ids=["nothing is flushed", "no token is written down"])
def test_power_cuts_find_what_is_not_on_the_disk(broken: str, tmp_path: Path, mounted: None) -> None:
    if missing := lacking("power"):
        pytest.skip(f"no {missing} here")
    assert played("power", 0.002, tmp_path, broken)


def test_power_is_cut_where_nothing_stays(tmp_path: Path, mounted: None) -> None:
    if missing := lacking("power"):
        pytest.skip(f"no {missing} here")
    assert played("power", 0.0002, tmp_path) == []
