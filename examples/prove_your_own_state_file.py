"""Prove the code that writes your own state file: kill it, and fail it, at each of its system calls.

Two ways to add a line to a list in a JSON file. One is how most programs do it, the other one holds. Both are told by
`necrocode.testing`, which knows nothing of them: give it what to do, what was there before, and what must hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import sys
from pathlib import Path

from necrocode.testing import everywhere, storm

NAME = "list.json"


def careless(place: Path) -> None:
    """Read, change, write over it."""
    lines = json.loads((place / NAME).read_text())
    (place / NAME).write_text(json.dumps([*lines, f"line {len(lines)}"]))


def careful(place: Path) -> None:
    """Under a lock; a new file, whole and on the disk, takes the old one's place in one step."""
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = json.loads((place / NAME).read_text())
        draft = place / f"{NAME}.new"
        with open(draft, "w") as file:
            json.dump([*lines, f"line {len(lines)}"], file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, place / NAME)


def before(place: Path) -> None:
    (place / NAME).write_text(json.dumps([f"line {number}" for number in range(100)]))


def after(place: Path, done: bool) -> None:
    """What must hold: every earlier line is there, and ours, too, if it was said to be done."""
    lines = json.loads((place / NAME).read_text())
    assert lines == [f"line {number}" for number in range(len(lines))], "lines are missing"
    assert len(lines) >= 100 + done, f"only {len(lines)} lines"


def counted(place: Path, chance: random.Random) -> None:
    """One worker's round: a line, and a file of its own that says that it was written."""
    careful(place)
    (place / f"wrote-{chance.randrange(1 << 60)}").touch()


def main() -> int:
    unsafe = everywhere(careless, before=before, after=after)
    print(f"careless: {len(unsafe.wrong)} of {unsafe.cases} cases went wrong before we stopped; the first:")
    print("   ", unsafe.wrong[0].splitlines()[0])
    print("   ", unsafe.wrong[0].splitlines()[-1])

    safe = everywhere(careful, before=before, after=after)
    print(f"careful: {safe.cases} cases at {safe.calls} system calls, {len(safe.wrong)} went wrong")

    place = Path.cwd() / "storm"
    place.mkdir()
    before(place)
    counts = storm(counted, place, seconds=2, workers=4, seed=7)
    lines, wrote = json.loads((place / NAME).read_text()), len(list(place.glob("wrote-*")))
    print(f"storm: {counts['rounds']} rounds by 4 processes, {counts['killed']} killed -9 meanwhile; {wrote} were told")
    # Who was killed between the two steps wrote a line that nobody told of; the reverse would be a loss.
    lost = max(0, 100 + wrote - len(lines))
    print(f"lost: {lost}")
    return 0 if unsafe.wrong and not safe.wrong and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
