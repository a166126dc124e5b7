"""python -m bench [NAME...], python -m bench readme: see README.md."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

from bench import curves, disk, store
from bench.compare import QUICK, TABLES, Table, machine, play

NAMES = ("startup", "ledger", "contention", "handover", "waiters", "noop", "workspaces", "faces")
OUT = Path(__file__).resolve().parent / "out"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Peers side by side: medians and ratios.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; or readme")
    parser.add_argument("--where", choices=disk.KINDS, help="the file system (default: BENCH_DIR, or memory)")
    parser.add_argument("--save", action="store_true", help="keep the result in bench/results")
    parser.add_argument("--quick", action="store_true", help="small loads: to see that it works, not how fast")
    parser.add_argument("--check", action="store_true", help="readme: only say whether it shows the newest result")
    asked = parser.parse_args()
    if asked.names == ["readme"]:
        shown = store.readme(check=asked.check)
        print(f"README and docs/figures {'show' if shown else 'did not show'} the newest results")
        return int(asked.check and not shown)
    if unknown := [name for name in asked.names if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    # As an exception, so that what is mounted and made is unmounted and removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if asked.quick:
        os.environ[QUICK] = "1"
    with disk.on(asked.where) if asked.where else nullcontext():
        _run(asked.names or NAMES, save=asked.save)
    OUT.mkdir(exist_ok=True)
    for curve in curves.curves(TABLES):
        print(f"drawn: {curves.write(curve, OUT)}")
    return 0


def _run(names: Sequence[str], *, save: bool) -> None:
    """One after the other; what is to be kept is kept after each, since all of them take long."""
    began = datetime.now(UTC)
    print(machine())
    for name in names:
        print(f"\n=== {name}", flush=True)
        TABLES.extend(_played(name))
        if save:
            print(f"kept: {store.save(TABLES, began)}")


def _played(name: str) -> list[Table]:
    """The tables of one benchmark, in a process of its own: what another one left in memory would be forked again and
    again by the next."""
    context = get_context("spawn")
    tables, told = context.Pipe(duplex=False)
    child = context.Process(target=play, args=(name, told))
    child.start()
    told.close()
    try:
        found: list[Table] = tables.recv()
        child.join()
        return found
    except EOFError:
        raise SystemExit(f"bench {name} failed") from None
    finally:
        child.terminate()
        child.join()


if __name__ == "__main__":
    sys.exit(main())
