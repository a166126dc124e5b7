"""necrocode schema: the JSON Schema of task files, for editors and checks."""

from __future__ import annotations

from necrocode.door import Door, verb


@verb("schema")
def command(door: Door) -> None:
    """Print the JSON Schema of a task file (also shipped as necrocode/tasks.schema.json).

    `necrocode init` puts it beside the first task file, where editors find it; check-jsonschema and the like take
    it too."""
    from necrocode.taskmodels import schema

    door.emit(schema())
