"""necrocode report: what a run came to, for a terminal, a browser, a trace viewer, or a CI system."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from necrocode import names as known
from necrocode.door import Door, verb
from necrocode.errors import ConfigError
from necrocode.screen import clean

_FILE = click.Path(dir_okay=False)


@verb("report")
@click.argument("run_id", default="last", metavar="[RUN]", type=known.RUN)
@click.option("--html", "page", type=_FILE, metavar="FILE", help="One page with everything in it (necrocode[report]).")
@click.option("--trace", type=_FILE, metavar="FILE", help="A trace for ui.perfetto.dev or chrome://tracing.")
@click.option("--junit", type=_FILE, metavar="FILE", help="JUnit's XML, for CI.")
def command(door: Door, run_id: str, page: str | None, trace: str | None, junit: str | None) -> None:
    """What RUN (default: the newest) came to: who worked when, where time went, waits, conflicts, and what is not
    done with the command to go on with.

    With --html, --trace or --junit these files are written instead ("-": stdout)."""
    from necrocode import chronicle, drawing, exports, lookup
    from necrocode.screen import columns

    if not door.existing():
        raise ConfigError(f"there is no state directory at {door.root} yet", hint="start a run: necrocode run FILE")
    told = chronicle.told(door.state(), lookup.run(door.state(), run_id, door.note))
    written = [(page, exports.html), (trace, exports.trace), (junit, exports.junit)]
    for file, form in written:
        if file:
            _write(door, file, form(told))
    if door.as_json:
        return door.emit(told.to_dict())
    if not any(file for file, _ in written):
        width = columns(sys.stdout.isatty())
        door.show("\n".join(drawing.lines(told, width, colored=door.colored())))
    return None


def _write(door: Door, file: str, text: str) -> None:
    if file == "-":
        return door.show(text)
    Path(file).write_text(text, encoding="utf-8")
    return door.say(f"necrocode: wrote {clean(str(file))}")
