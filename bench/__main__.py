"""python -m bench [NAME...], python -m bench readme: see README.md."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from bench import curves, disk, store
from bench.compare import QUICK, TABLES, machine

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
        print(f"README {'shows' if shown else 'did not show'} {store.newest().name}")
        return int(asked.check and not shown)
    if unknown := [name for name in asked.names if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    if asked.quick:
        os.environ[QUICK] = "1"
    if asked.where:
        with disk.on(asked.where):
            _run(asked.names or NAMES)
            saved = store.save(TABLES) if asked.save else None
    else:
        _run(asked.names or NAMES)
        saved = store.save(TABLES) if asked.save else None
    OUT.mkdir(exist_ok=True)
    for curve in curves.curves(TABLES):
        print(f"drawn: {curves.write(curve, OUT)}")
    if saved:
        print(f"kept: {saved}")
    return 0


def _run(names: tuple[str, ...] | list[str]) -> None:
    print(machine())
    for name in names:
        print(f"\n=== {name}")
        import_module(f"bench.{name}").main()


if __name__ == "__main__":
    sys.exit(main())
