"""necrocode metrics: how many at once, how long they waited, what conflicts there were, and where time went."""

from __future__ import annotations

import sys

import click

from necrocode import names as known
from necrocode.door import Door, verb
from necrocode.errors import ConfigError


@verb("metrics")
@click.option("--run", "run_id", metavar="RUN", type=known.RUN, help="Only of this run ('last': the newest).")
@click.option("--since", metavar="10m|TIME", help="Only what happened so long ago or later.")
@click.option("--prometheus", is_flag=True, help="In the text format of Prometheus (needs necrocode[metrics]).")
def command(door: Door, run_id: str | None, since: str | None, prometheus: bool) -> None:
    """Figures folded from events: runners at once, waits (p50, p95, max), conflicts detected and avoided, hand-over
    latency, phases, retries, errors, memory and processor use.

    \b
    necrocode metrics --prometheus > /var/lib/node_exporter/necrocode.prom"""
    from necrocode import figures, lookup, when
    from necrocode.metrics import fold
    from necrocode.screen import columns

    if prometheus and door.as_json:
        raise ConfigError("--prometheus and --json are two forms of the same", hint="give one of them")
    state, begin = door.existing(), when.moment(since) if since else None
    if run_id:
        if state is None:
            raise ConfigError(f"there is no run {run_id!r}: there is no state directory at {door.root} yet")
        run_id = lookup.run(state, run_id, door.note)
    found = figures.of_events(state.events, since=begin, run_id=run_id or "") if state else fold(())
    if prometheus:
        from necrocode.exposition import text

        return door.show(text(found))
    if door.as_json:
        return door.emit(found.to_dict())
    return door.show("\n".join(figures.lines(figures.shown(found), columns(sys.stdout.isatty()))))
