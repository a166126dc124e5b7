"""necrocode why: what a task or runner waits for and who holds it, what it holds, or what it came to."""

from __future__ import annotations

import click

from necrocode import names as known
from necrocode.door import Door, verb
from necrocode.errors import ConfigError
from necrocode.screen import clean

_STORY = 12


@verb("why")
@click.argument("name", metavar="TASK|RUNNER", type=known.ANY)
@click.option("--story", is_flag=True, help="All that was told of it, not just the end.")
def command(door: Door, name: str, story: bool) -> None:
    """What TASK or RUNNER waits for, who holds that and since when; what it holds, when it runs; how it ended.

    A task is named RUN/TASK, RUN.TASK, or TASK alone (that of the newest run which has it)."""
    from necrocode import explain, lookup

    state = door.knowing(name)
    found = lookup.find(state, name)
    if found.run_id and not found.task_id:
        tasks = lookup.task_ids(state, found.run_id)
        raise ConfigError(f"{name} is a run; name one of its tasks", hint=f"its tasks: {', '.join(tasks[:20])}")
    answer = explain.explain(door.ledger(), found)
    if door.as_json:
        return door.emit(explain.facts(answer))
    if found.also:
        door.say(f"necrocode: that of the newest run; also in {', '.join(found.also[:5])}")
    first, *rest = answer.sentences
    told = explain.worth_telling(answer.story)
    lines = [f"{found}: {first}", *(f"  {sentence}" for sentence in rest)]
    shown = told if story else told[-_STORY:]
    lines += ["", *(explain.told(event) for event in shown)] if shown else []
    return door.show("\n".join(map(clean, lines)))
