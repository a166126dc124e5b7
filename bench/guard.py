"""python -m bench.guard: fails when something has become much dearer than it was, measured as ratios inside one run.

Never an absolute time: a slow or busy machine makes everything slower alike. The bounds are generous, and a figure
beyond its bound is measured twice more, the least counts: this finds what went wrong by a factor, not by a tenth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import faces
from bench.compare import interleaved, machine, place, timed
from bench.ledger import Table, growth
from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger

FEW, MANY = 10, 1000
GROWTH = 2.0
"""From FEW to MANY live records; the target is 1.3, from 10 to 10 000."""
AGAINST_SQLITE = 6.0
"""Register and release beside FEW live records; the target is 3."""
HEARTBEAT = 6.0
"""Against one write in place and one look at a file's entry, which is what it is made of."""
IMPORT = 4.0
"""`import necrocode` against python alone; the target is 30 ms more."""
POOL = 2.5
"""Calls through a WorkerPool against a bare ThreadPoolExecutor; the target is 2."""
GROUP = 4.0
"""Coroutines through a group of `necrocode.parallel` against asyncio.gather; the target is 3."""
LOOKS = 3


class Bound(NamedTuple):
    """What is compared, how dear it may be, and how it is found out."""

    name: str
    most: float
    ratio: Callable[[], float]


def grows() -> float:
    """The worse of: register and release, claim and drop."""
    found = growth((FEW, MANY), 60)

    def both(one: str, other: str) -> float:
        return (found[one][MANY] + found[other][MANY]) / (found[one][FEW] + found[other][FEW])

    return max(both("register", "release"), both("claim", "drop"))


def against_sqlite() -> float:
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-guard-"))
    try:
        ledger, peer = FileLedger(root / "state"), Table(root / "peer.db", FEW)
        kept = [ledger.register(Request(f"held{n}", (Claim.file(f"src/m{n}.py"),))) for n in range(FEW)]
        claims = (Claim.file("src/mine.py"), Claim.branch("mine"))
        ours = lambda: timed(lambda: ledger.release(ledger.register(Request("bench", claims))))  # noqa: E731
        samples = interleaved({"ours": ours, "SQLite": peer.round}, 100)
        for lease in kept:
            ledger.release(lease)
    finally:
        shutil.rmtree(root)
    return median(samples["ours"]) / median(samples["SQLite"])


def heartbeat() -> float:
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-guard-"))
    try:
        ledger = FileLedger(root / "state")
        lease = ledger.register(Request("bench"))
        name = str(root / "file")
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT)

        def bare() -> None:
            os.pwrite(descriptor, b"0" * 17, 0)
            os.stat(name)

        samples = interleaved({"ours": lambda: timed(lambda: ledger.renew(lease)), "bare": lambda: timed(bare)}, 500)
        ledger.release(lease)
        os.close(descriptor)
    finally:
        shutil.rmtree(root)
    return median(samples["ours"]) / median(samples["bare"])


def importing() -> float:
    def run(code: str) -> Callable[[], float]:
        return lambda: timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    samples = interleaved({"ours": run("import necrocode"), "bare": run("pass")}, 7)
    return median(samples["ours"]) / median(samples["bare"])


def _face(ours: Callable[[], object], bare: Callable[[], object]) -> float:
    samples = faces.compared({"ours": ours, "bare": bare})
    return median(samples["ours"]) / median(samples["bare"])


BOUNDS = (
    Bound(f"changes beside {MANY} records against {FEW}", GROWTH, grows),
    Bound("register and release against SQLite", AGAINST_SQLITE, against_sqlite),
    Bound("a heartbeat against its two system calls", HEARTBEAT, heartbeat),
    Bound("import necrocode against python alone", IMPORT, importing),
    Bound("a worker pool against a bare one", POOL,
          partial(_face, partial(faces.by_pool, 50), partial(faces.by_executor, 50))),
    Bound("a group of coroutines against gather", GROUP,
          partial(_face, partial(faces.by_group, faces.nothing, 100), partial(faces.by_gather, faces.nothing))),
)  # fmt: skip


def main() -> int:
    print(machine())
    beyond = 0
    for bound in BOUNDS:
        found = bound.ratio()
        looks = 1
        while found > bound.most and looks < LOOKS:
            found, looks = min(found, bound.ratio()), looks + 1
        well = found <= bound.most
        beyond += not well
        print(f"  {bound.name:<44} {found:>6.2f}x   at most {bound.most:g}x   {'ok' if well else 'BEYOND'}", flush=True)
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
