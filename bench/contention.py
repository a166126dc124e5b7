"""Many processes at once that register and release, each for itself: how long one takes when all of them want in."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from bench.compare import interleaved, less, place, told
from bench.rivals import Sqlite, forked
from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger

ROUNDS, SECONDS = 3, 1.5

Work = Callable[[], None]


def main() -> None:
    for processes in (8, 16, 64):
        root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
        try:
            FileLedger(root / "state")
            with closing(Sqlite(root / "peer.db")) as table:
                table.make()
            (root / "peer").mkdir()
            peers: dict[str, Callable[[], float]] = {
                "necrocode": partial(_all, processes, partial(_ledger, root)),
                "SQLite WAL, same work": partial(_all, processes, partial(_sqlite, root)),
                "filelock, JSON read anew": partial(_all, processes, partial(_filelock, root)),
            }
            told(f"{processes} processes at once, for each register and release", interleaved(peers, less(ROUNDS)))
        finally:
            shutil.rmtree(root)


def _all(processes: int, made: Callable[[int], Work]) -> float:
    """Seconds of this machine for one register and release, when so many processes do nothing else."""
    began, go = os.pipe()
    counts, say = os.pipe()
    pids = [forked(partial(_again_and_again, made, number, began, say)) for number in range(processes)]
    for _ in pids:
        os.read(counts, 1)  # it has imported and opened what it needs
    os.write(go, b"!" * processes)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    os.close(say)
    with os.fdopen(counts) as told_counts:
        done = sum(map(int, told_counts.read().split()))
    os.close(began)
    os.close(go)
    return SECONDS / max(1, done)


def _again_and_again(made: Callable[[int], Work], number: int, began: int, say: int) -> None:
    work, count = made(number), 0
    work()
    os.write(say, b"!")
    os.read(began, 1)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        work()
        count += 1
    os.write(say, f"{count}\n".encode())


def _ledger(root: Path, number: int) -> Work:
    ledger = FileLedger(root / "state")
    request = Request(f"p{number}", (Claim.file(f"src/m{number}.py"), Claim.branch(f"b{number}")))
    return lambda: ledger.release(ledger.register(request))


def _sqlite(root: Path, number: int) -> Work:
    table, owner, claims = (
        Sqlite(root / "peer.db"),
        f"p{number}",
        (("file", f"src/m{number}.py"), ("branch", f"b{number}")),
    )

    def both() -> None:
        table.take(owner, claims)
        table.give(owner)

    return both


def _filelock(root: Path, number: int) -> Work:
    from filelock import FileLock

    folder, wanted = root / "peer", {f"src/m{number}.py", f"b{number}"}
    lock = FileLock(folder / "lock")

    def both() -> None:
        with lock:
            held = [json.loads(path.read_text()) for path in folder.glob("*.json")]
            assert not any(wanted & set(record["claims"]) for record in held)
            record = json.dumps({"id": f"p{number}", "pid": os.getpid(), "claims": sorted(wanted)}, indent=2)
            (folder / "new").write_text(record)
            os.replace(folder / "new", folder / f"p{number}.json")
        with lock:
            os.unlink(folder / f"p{number}.json")

    return both
