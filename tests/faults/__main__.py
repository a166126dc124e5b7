"""python -m tests.faults [--thorough] [--seed N] [--write]: run the fault tests and tell what was injected.

Prints a table of goals; `--write` also puts it into docs/proof.md, and its sum into README. `--thorough` takes every
fault instead of a sample, and some minutes more. Ends with pytest's exit code."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs" / "proof.md", ROOT / "README.md"
TESTS = ("tests/faults", "tests/storms/test_ledger_storm.py::test_three_hundred_at_one_gate",
         "--ignore=tests/faults/test_soak.py", "--ignore=tests/faults/test_soak_machine.py")  # fmt: skip
_MARKS = re.compile(r"(<!-- made by python -m tests.faults -->\n).*?(<!-- end -->\n)", re.DOTALL)

GOALS = {
    "Q1": ("every change killed at every system call: nothing unreadable, lost or given twice; the next one works",
           "kill -9"),
    "Q2": ("every change with ENOSPC, EIO, EMFILE, EDQUOT, EROFS, EINTR, ENOMEM or short writes, once and lasting: "
           "a typed error, nothing damaged, and it goes on when the trouble is over", "errors"),
    "CLI": ("the command line under strace, its real system calls killed or refused", "kills and errors"),
    "Q3": ("eight workers, fifty tasks, killed at any moment: none lost, none published twice, no slot leaked",
           "kill -9"),
    "Q4": ("300 processes at one gate, at most four inside, all served", "processes"),
    "Q5": ("random operations on real files against a model in plain Python", "examples of 30 steps"),
    "Q7": ("Spin: claim, fence, wait queue, workspaces: no reachable state breaks an invariant", "states"),
    "Q7 mutants": ("the same models with one rule taken out: each must fail", "mutants"),
    "Q8": ("damaged files: an answer or a typed error, nothing else harmed", "damages"),
    "Q9": ("hostile agents (daemons, deaf, stopped, forged, a storm of 200 forks): none left after the cancel",
           "agents"),
}  # fmt: skip
"""What is promised, and what the figure counts."""
_BY_TEST = {"test_three_hundred_at_one_gate": ("Q4", 300), "TestLedgerModel": ("Q5", 100)}
"""Tests that do not tell by themselves."""


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        proof, report = Path(folder, "proof.jsonl"), Path(folder, "report.xml")
        env = {**os.environ, "NECROCODE_PROOF": str(proof), "NECROCODE_SEED": str(options.seed)}
        if options.thorough:
            env["NECROCODE_THOROUGH"] = "1"
        argv = [sys.executable, "-m", "pytest", "-n", "4", "-q", "-r", "s", f"--junitxml={report}", "--timeout", "1200"]
        began = time.monotonic()
        code = subprocess.run([*argv, *TESTS], cwd=ROOT, env=env, check=False).returncode
        lines = [json.loads(line) for line in proof.read_text().splitlines()] if proof.exists() else []
        lines += _told_by_name(report)
        table = _table(lines, time.monotonic() - began, code, options)
    print(table)
    if options.write:
        for page, text in ((PAGE, table), (README, _sum(lines, code))):
            page.write_text(_MARKS.sub(lambda match, text=text: match[1] + text + match[2], page.read_text()))
    return code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--thorough", action="store_true", help="every fault at every call")
    parser.add_argument("--seed", type=int, default=1, help="of what is random (default 1)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/proof.md")
    return parser.parse_args()


def _told_by_name(report: Path) -> list[dict[str, object]]:
    """What the report says of tests that count by being passed."""
    from xml.etree import ElementTree

    found: list[dict[str, object]] = []
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        for part, (goal, count) in _BY_TEST.items():
            if part in f"{case.get('classname')}.{case.get('name')}":
                survived = 0 if len(case) else count
                found.append({"goal": goal, "injected": count, "survived": survived,
                              "seconds": float(case.get("time", 0))})  # fmt: skip
    return found


def _sum(lines: list[dict[str, object]], code: int) -> str:
    """The run in a sentence."""
    counts = Counter[str]()
    for line in lines:
        counts[str(line["goal"])] += int(str(line["injected"]))
    many = {goal: f"{count:,}".replace(",", " ") for goal, count in counts.items()}
    return (
        f"On {datetime.now(UTC):%Y-%m-%d}: {many['Q1']} kills and {many['Q2']} errors at single system calls,\n"
        f"{many['Q3']} kills at random, {many['Q8']} damaged files, {many['Q9']} hostile agents,\n"
        f"{many['Q7']} states of four models; {'nothing was lost' if code == 0 else 'NOT ALL TESTS PASSED'}.\n"
    )


def _table(lines: list[dict[str, object]], seconds: float, code: int, options: argparse.Namespace) -> str:
    injected, survived, spent = Counter[str](), Counter[str](), Counter[str]()
    for line in lines:
        injected[str(line["goal"])] += int(str(line["injected"]))
        survived[str(line["goal"])] += int(str(line["survived"]))
        spent[str(line["goal"])] += float(str(line["seconds"]))  # type: ignore[assignment]
    rows = ["| goal | injected | | survived | seconds |", "|---|--:|---|--:|--:|"]
    for goal, (words, what) in GOALS.items():
        count = f"{injected[goal]:,}".replace(",", " ")
        if goal in injected:
            rows.append(
                f"| {words} | {count} | {what} | {survived[goal] * 100 // injected[goal]} % | {spent[goal]:.0f} |"
            )
        else:
            rows.append(f"| {words} | - | not run, or failed | - | - |")
    how = "all tests passed" if code == 0 else f"NOT ALL TESTS PASSED (pytest ended with {code})"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    machine = f"{os.cpu_count()} cores (load {os.getloadavg()[1]:.0f}), {system}"
    tier = "thorough" if options.thorough else "quick"
    told = f"{datetime.now(UTC):%Y-%m-%d}, {machine}; {tier} tier, seed {options.seed}; {how} in {seconds:.0f} s"
    return "\n".join([told, "", *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
