"""python -m tests.soak [PART ...] [--share S] [--seed N] [--history DIR] [--write]: the long tests.

Plays the parts, two at once, each in a process of its own, checks their histories and prints a table. `--share 0.01`
plays a hundredth of each. `--write` puts the rows of what was played into the table of docs/proof.md. `--check FILE
...` only checks histories that were kept. Ends with 1 when anything was wrong."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tests.soak.history import History, Verdict, lines_of, verdict
from tests.soak.part import Part, Soak

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "proof.md"
_MARKS = re.compile(r"(<!-- made by python -m tests.soak -->\n).*?(<!-- end -->\n)", re.DOTALL)

PARTS = ("kills", "power", "commands", "model", "clocks", "agents", "gits", "crowds", "full")
"""In the order in which they are begun: the longest first, so that both lanes end at about the same time."""
LANES = 2
"""Parts at once."""


class Played(NamedTuple):
    name: str
    verdict: Verdict
    seconds: float
    lacking: str = ""


def main() -> int:
    options = _options()
    if options.check:
        return _check([Path(name) for name in options.check])
    if options.here:
        return _play_here(options)
    options.history.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(LANES) as lanes:
        played = list(lanes.map(lambda name: _play(name, options), options.part or PARTS))
    rows = {_part(one.name).goal: _row(one, options) for one in played}
    print(_table(rows))
    if options.write:
        PAGE.write_text(
            _MARKS.sub(lambda match: match[1] + _table(_kept(match[0]) | rows) + match[2], PAGE.read_text())
        )
    return int(any(one.verdict.wrong for one in played))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of faults (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of what is random (default 1)")
    parser.add_argument("--history", type=Path, default=Path(tempfile.gettempdir(), "necrocode-soak"),
                        help="where the histories go (default: %(default)s)")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="put the table into docs/proof.md")
    parser.add_argument("--check", nargs="+", metavar="FILE", help="only check these histories")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.part) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def _part(name: str) -> Part:
    found = importlib.import_module(f"tests.soak.{name}").PART
    assert isinstance(found, Part)
    return found


def _play(name: str, options: argparse.Namespace) -> Played:
    """The part in a process of its own, which may fork: no threads there, and nothing of another part."""
    if lacking := _part(name).lacking():
        return Played(name, verdict([]), 0, lacking)
    path, began = options.history / f"{name}.jsonl", time.monotonic()
    path.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.soak", name, "--here", f"--share={options.share}", f"--seed={options.seed}"]
    with open(options.history / f"{name}.log", "wb") as log:
        code = subprocess.run(
            [*argv, f"--history={options.history}"], cwd=ROOT, stdout=log, stderr=log, check=False
        ).returncode
    found = verdict(lines_of(path) if path.exists() else [])
    if code:
        found.wrong.append(f"the part ended with {code}, see {log.name}")
    played = Played(name, found, time.monotonic() - began)
    print(f"{_told(played)}", file=sys.stderr, flush=True)
    return played


def _told(played: Played) -> str:
    head = f"{played.name}: {played.verdict.injected.total()} in {played.seconds:.0f} s"
    return "\n  ".join([head, *played.verdict.wrong[:10]])


def _play_here(options: argparse.Namespace) -> int:
    (name,) = options.part
    part = _part(name)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    place = Path(tempfile.mkdtemp(prefix=f"necrocode-soak-{name}-", dir=memory))
    try:
        history = History(options.history / f"{name}.jsonl")
        part.play(Soak(place, history, max(1, round(part.full * options.share)), options.seed))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def _check(paths: Sequence[Path]) -> int:
    wrong = 0
    for path in paths:
        found = verdict(lines_of(path))
        wrong += len(found.wrong)
        counts = ", ".join(f"{count} {fault}" for fault, count in sorted(found.injected.items()))
        print("\n  ".join([f"{path}: {counts or 'nothing injected'}", *found.wrong]))
    return int(wrong > 0)


def _row(one: Played, options: argparse.Namespace) -> str:
    part, count = _part(one.name), f"{one.verdict.injected.total():,}".replace(",", " ")
    when = f"{datetime.now(UTC):%Y-%m-%d}, seed {options.seed}"
    if one.lacking:
        return f"| {part.goal} | - | not played: no {one.lacking} here | - | - | {when} |"
    what = ", ".join(f"{many:,} {kind}".replace(",", " ") for kind, many in sorted(one.verdict.injected.items()))
    what = part.counts if len(one.verdict.injected) < 2 else f"{part.counts}: {what}"
    return f"| {part.goal} | {count} | {what} | {len(one.verdict.wrong)} | {one.seconds:.0f} | {when} |"


def _kept(block: str) -> dict[str, str]:
    """The rows that are there, by their goals."""
    return {row.split(" | ")[0].removeprefix("| "): row for row in block.splitlines() if row.startswith("| ")}


def _table(rows: Mapping[str, str]) -> str:
    """Those of parts that there are, in their order."""
    head = ["| goal | injected | | broken | seconds | when |", "|---|--:|---|--:|--:|---|"]
    told = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    goals = [_part(name).goal for name in PARTS]
    return "\n".join([told, "", *head, *(rows[goal] for goal in goals if goal in rows), ""])


if __name__ == "__main__":
    sys.exit(main())
