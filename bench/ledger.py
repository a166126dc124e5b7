"""Register and release, claim and drop, heartbeat, beside 1 to 10 000 live records; against SQLite and filelock; and
how each of them grows with the number of live records."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench.compare import interleaved, less, place, timed, told
from bench.rivals import Sqlite
from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger

ROUNDS = 200
LIVE = (1, 10, 100, 1000, 10_000)
MOST_HOLDERS = 40
HOLDERS = """
import sys
from necrocode.ledger.files import FileLedger
from necrocode.claim import Claim
from necrocode.lease import Request
ledger, first, count = FileLedger(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
claims = lambda n: (Claim.file(f"src/m{n}.py"), Claim.branch(f"b{n}"))
kept = [ledger.register(Request(f"held{n}", claims(n))) for n in range(first, first + count)]
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    possible = _possible()
    for live in possible:
        _beside(live)
    found = growth(possible)
    print("\nGrowth: medians, all sizes in turn, by two who change the same state in turn")
    for operation, medians in found.items():
        figures = "   ".join(f"{live}: {seconds * 1e6:.1f} us" for live, seconds in medians.items())
        base = medians.get(10) or next(iter(medians.values()))
        print(f"  {operation:<10} {figures}   ({medians[max(medians)] / base:.2f}x from 10 to {max(medians)})")


def growth(sizes: tuple[int, ...] = LIVE, rounds: int = ROUNDS) -> dict[str, dict[int, float]]:
    """Seconds (medians) of register, claim, drop, renew and release beside so many live records, by operation and
    number. Two ledgers take turns, so that each has to learn what the other did; all sizes take turns as well."""
    samples: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as stack:
        pairs = {live: _pair(stack.enter_context(_held(live))) for live in sizes}
        for turn in range(less(rounds) + 2):
            for live, pair in pairs.items():
                for operation, seconds in _round(pair[turn % 2]).items():
                    taken = samples.setdefault(operation, {}).setdefault(live, [])
                    taken += [seconds] if turn > 1 else []  # the first ones list and read everything
    return {operation: {live: median(taken) for live, taken in by.items()} for operation, by in samples.items()}


def _pair(root: Path) -> tuple[FileLedger, FileLedger]:
    return FileLedger(root / "state"), FileLedger(root / "state")


def _round(ledger: FileLedger) -> Mapping[str, float]:
    more, kept = [Claim.file("src/more.py")], []
    claims = (Claim.file("src/mine.py"), Claim.branch("mine"))
    return {
        "register": timed(lambda: kept.append(ledger.register(Request("bench", claims)))),
        "claim": timed(lambda: ledger.claim(kept[0], more)),
        "drop": timed(lambda: ledger.drop(kept[0], more)),
        "first beat": timed(lambda: ledger.renew(kept[0])),
        "heartbeat": timed(lambda: ledger.renew(kept[0])),
        "release": timed(lambda: ledger.release(kept[0])),
    }


def _possible() -> tuple[int, ...]:
    """As many live records as the limit of open files allows; what is left out is told."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = MOST_HOLDERS * _most_each()
    for live in LIVE:
        if live > most:
            print(f"\n{live} live records left out: {hard} open files are allowed")
    return tuple(live for live in LIVE if live <= most)


def _most_each() -> int:
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 600)  # lifelines have numbers from 500 on


def _beside(live: int) -> None:
    with _held(live) as root:
        _measure(root, root / "state", live)


@contextmanager
def _held(live: int) -> Iterator[Path]:
    """A folder with a state directory in which so many leases are held by a few processes."""
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
    holders: list[subprocess.Popen[bytes]] = []
    try:
        state = root / "state"
        FileLedger(state)
        share = min(max(1, -(-live // 4)), _most_each())
        for first in range(0, live, share):
            argv = [sys.executable, "-c", HOLDERS, str(state), str(first), str(min(share, live - first))]
            holders.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for holder in holders:
            assert holder.stdout is not None
            holder.stdout.readline()
        yield root
    finally:
        for holder in holders:
            holder.communicate()
        shutil.rmtree(root)


def _measure(root: Path, state: Path, live: int) -> None:
    ledger, peers = FileLedger(state), {}
    claims = (Claim.file("src/mine.py"), Claim.branch("mine"))

    def registered() -> None:
        ledger.release(ledger.register(Request("bench", claims)))

    lister = FileLedger(state)

    def listed() -> None:
        lister._door.ring.forget()
        lease = lister.register(Request("bench", claims))
        lister._door.ring.forget()
        lister.release(lease)

    peers["necrocode"] = lambda: timed(registered)
    peers["without the ring, listing each time"] = lambda: timed(listed)
    peers["SQLite WAL, same work"] = Table(root / "peer.db", live).round
    if live <= 1000:
        peers["filelock, JSON read anew"] = Filelock(root / "peer", live).round
    told(f"register and release, {live} live", interleaved(peers, ROUNDS))

    lease = ledger.register(Request("bench", claims))
    more = [Claim.file("src/more.py")]

    def claimed() -> None:
        ledger.claim(lease, more)
        ledger.drop(lease, more)

    told(f"necrocode alone, {live} live", interleaved({"claim and drop": lambda: timed(claimed)}, ROUNDS))
    ledger.renew(lease)
    told("", interleaved({"heartbeat": lambda: timed(lambda: ledger.renew(lease))}, ROUNDS))
    ledger.release(lease)


class Table:
    """SQLite beside so many others."""

    def __init__(self, path: Path, live: int) -> None:
        self._table = Sqlite(path).make()
        for n in range(live):
            self._table.take(f"held{n}", (("file", f"src/m{n}.py"), ("branch", f"b{n}")))

    def round(self) -> float:
        def both() -> None:
            self._table.take("bench", (("file", "src/mine.py"), ("branch", "mine")))
            self._table.give("bench")

        return timed(both)


class Filelock:
    """The usual way: a global filelock, every record read anew, one written and replaced."""

    def __init__(self, folder: Path, live: int) -> None:
        from filelock import FileLock

        folder.mkdir()
        self._folder, self._lock = folder, FileLock(folder / "lock")
        for n in range(live):
            (folder / f"held{n}.json").write_text(json.dumps({"id": f"held{n}", "claims": [f"src/m{n}.py", f"b{n}"]}))

    def round(self) -> float:
        return timed(self._both)

    def _both(self) -> None:
        with self._lock:
            held = [json.loads(path.read_text()) for path in self._folder.glob("*.json")]
            assert not any("src/mine.py" in record["claims"] for record in held)
            (self._folder / "new").write_text(json.dumps({"id": "bench", "claims": ["src/mine.py", "mine"]}, indent=2))
            os.replace(self._folder / "new", self._folder / "bench.json")
        with self._lock:
            os.unlink(self._folder / "bench.json")
