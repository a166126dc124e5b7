"""necrocode doctor: checks the machine and the state directory; each finding comes with its fix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from necrocode.door import Door, verb
from necrocode.errors import NecrocodeError
from necrocode.screen import clean, counted, styled

if TYPE_CHECKING:
    from necrocode.machine import Finding


_ROUNDS = 3


@verb("doctor")
@click.option(
    "--fix", is_flag=True, help="Put right what can be put right safely: sweep the dead, close the directory."
)
def command(door: Door, fix: bool) -> int:
    """Check git, the file system, locks, limits, and what lies in the state directory.

    Exit code 0 when all is well, 1 otherwise. Nothing is changed without --fix."""
    from necrocode import checkup

    findings = list(checkup.check(door.root, Path.cwd()))
    for _ in range(_ROUNDS if fix else 0):  # what was mended may have hidden more
        if not _mend(door, findings):
            break
        findings = list(checkup.check(door.root, Path.cwd()))
    bad = sum(not finding.ok for finding in findings)
    if door.as_json:
        facts = [{key: value for key, value in one._asdict().items() if key != "mend"} for one in findings]
        door.emit({"ok": not bad, "state_dir": str(door.root), "findings": facts})
    else:
        _show(door, findings)
        door.say("all is well" if not bad else f"{counted(bad, 'finding')}")
    return int(bad > 0)


def _mend(door: Door, findings: list[Finding]) -> int:
    """Do what the findings say can be done; how many were tried."""
    tried = 0
    for finding in findings:
        if finding.ok or finding.mend is None:
            continue
        tried += 1
        try:
            finding.mend()
            door.say(f"necrocode: mended: {finding.name}")
        except (NecrocodeError, OSError) as error:
            door.say(f"necrocode: {finding.name} could not be mended: {error}")
    return tried


def _show(door: Door, findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark, style = ("ok  ", "green") if finding.ok else ("BAD ", "red")
        door.show(f"{styled(mark, style, door.colored())} {finding.name:<{width}}  {clean(finding.said)}")
        if finding.fix:
            door.show(f"     {'':<{width}}  fix: {clean(finding.fix)}")
