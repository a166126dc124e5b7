"""What a task file may hold, as pydantic models: the one declaration of its keys, their types and their meaning.

Imported only where a task file is read or its schema is asked for, since pydantic is slow to import."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.types import StringConstraints

from necrocode.lease import PRIORITIES
from necrocode.tasktext import Path, near

Text = Annotated[str, StringConstraints(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Command = Annotated[
    Text | Annotated[list[str], Field(min_length=1)],
    Field(description="A command: text, split into arguments as a shell does but never given to one, or a list."),
]
Commands = Annotated[Text | list[Command], Field(description="A command, or a list of commands.")]
Place = Literal["worktree", "clone", "none"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StepModel(_Model):
    """One command of a playbook."""

    name: Annotated[Text, Field(description="What to call this step.")]
    command: Command
    condition: Annotated[str | None, Field(description="Run the step only if this holds.")] = None
    fail_fast: Annotated[bool, Field(description="Whether a failure here ends the playbook.")] = True
    timeout_seconds: Annotated[Seconds, Field(description="Seconds for one try of this step.")] = 300.0
    retry_count: Annotated[int, Field(ge=0, description="Further tries after the first.")] = 0


class _Shared(_Model):
    agent: Annotated[str, Field(description="The preset of the agent that gets the prompt.")] = ""
    timeout: Annotated[Seconds | None, Field(description="Seconds for one attempt; unset: no limit.")] = None
    silent_timeout: Annotated[
        Seconds | None, Field(description="Seconds an attempt may go without any output; unset: no limit.")
    ] = None
    retries: Annotated[int | None, Field(ge=0, description="Further attempts after the first fails.")] = None
    verify: Annotated[Commands | None, Field(description="Commands that judge the work; all must succeed.")] = None
    workspace: Annotated[
        Place | None,
        Field(description="Where to work: an own git worktree (default), a shared clone, or none: in place."),
    ] = None
    env: Annotated[dict[str, str], Field(description="Environment variables for the task.")] = {}


class DefaultsModel(_Shared):
    """What holds for every task that does not say otherwise."""

    setup: Annotated[Commands | None, Field(description="Commands run in each fresh workspace.")] = None
    jobs: Annotated[int | None, Field(ge=1, description="How many tasks to run at once.")] = None


class TaskModel(_Shared):
    """One task; exactly one of prompt, command and playbook says what to do."""

    id: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$",
            description="The task's name: up to 64 letters, digits, '.', '_' and '-', not starting with '.'.",
        ),
    ]
    title: Annotated[str, Field(description="One line for people.")] = ""
    spec: Annotated[str, Field(description="The specification or project this belongs to; quotas count by it.")] = ""
    prompt: Annotated[Text | None, Field(description="What to tell the agent.")] = None
    command: Annotated[Command | None, Field(description="A command to run instead of an agent.")] = None
    playbook: Annotated[
        list[StepModel] | None, Field(min_length=1, description="Steps to run one after the other.")
    ] = None
    files: Annotated[
        list[Text],
        Field(description="Paths or patterns, from the repository's root on, that this task changes; others wait."),
    ] = []
    claims: Annotated[
        list[Text],
        Field(description="Other things held while it runs: KIND:NAME, as in port:8080; shared:KIND:NAME shares."),
    ] = []
    branch: Annotated[str, Field(description="The branch to work on; unset: one of its own.")] = ""
    after: Annotated[list[Text], Field(description="Ids of tasks that must succeed first.")] = []
    priority: Annotated[
        int, Field(ge=PRIORITIES.start, le=PRIORITIES.stop - 1, description="-50 (last) to 49 (first).")
    ] = 0
    tags: Annotated[list[Text], Field(description="Words of your own; nothing is done with them.")] = []


class TaskFileModel(_Model):
    """A necrocode task file."""

    defaults: DefaultsModel = DefaultsModel()
    task: Annotated[list[TaskModel], Field(description="The tasks, in order.")]


Mistake = tuple[Path, str]
"""Where in the file, and what is wrong there."""


def schema() -> dict[str, Any]:
    """The JSON Schema of a task file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "necrocode task file",
        **{key: value for key, value in TaskFileModel.model_json_schema().items() if key != "title"},
    }


def validated(model: type[_Model], data: Any, path: Path, mistakes: list[Mistake]) -> dict[str, Any] | None:
    """The values of a table that lies at `path`; or None, with everything wrong about it added to `mistakes`."""
    try:
        return model.model_validate(data).model_dump()
    except ValidationError as error:
        wrongs = [(_place(wrong["loc"]), wrong) for wrong in error.errors(include_url=False)]
        told = {place for place, wrong in wrongs if wrong["type"] == "string_unicode"}  # every text was looked at
        for place, wrong in wrongs:
            if place not in told:
                told.add(place)
                mistakes.append(((*path, *place), _told(model, place, dict(wrong))))
        return None


def _place(loc: Path) -> Path:
    """pydantic's location without the names of union members, which mean nothing to who wrote the file."""
    kept: Path = ()
    for part in loc:
        if isinstance(part, str) and kept and kept[-1] in _COMMANDS:
            break
        kept = (*kept, part)
    return kept


_COMMANDS = {"command": "text, or a list of texts", "verify": "a list of commands", "setup": "a list of commands"}
_EXPECTED = {
    "string_type": "must be text", "int_type": "must be a whole number", "float_type": "must be a number",
    "bool_type": "must be true or false", "list_type": "must be a list", "dict_type": "must be a table",
    "model_type": "must be a table", "model_attributes_type": "must be a table",
    "string_pattern_mismatch": "must be 1 to 64 letters, digits, '.', '_' and '-', not starting with '.'",
    "string_too_short": "must not be empty", "too_short": "must not be empty",
    "finite_number": "must be a finite number",
}  # fmt: skip


def _told(model: type[_Model], place: Path, wrong: dict[str, Any]) -> str:
    kind, found, limits = wrong["type"], wrong["input"], wrong.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "unknown key" + near(str(place[-1]), _keys(model, place))
    if found == []:
        return "must not be empty"
    if place and place[-1] in _COMMANDS and kind not in ("string_too_short", "too_short"):
        return f"must be {_COMMANDS[str(place[-1])]}, not {_shown_items(found, place[-1] != 'command')}"
    if kind in ("greater_than", "greater_than_equal", "less_than_equal"):
        sign = {"gt": "more than", "ge": "at least", "le": "at most"}
        return "must be " + " and ".join(f"{sign[key]} {value:g}" for key, value in limits.items()) + f", not {found}"
    if kind == "literal_error":
        return f"must be {limits['expected']}, not {_shown(found)}" + near(str(found), ["worktree", "clone", "none"])
    expected = _EXPECTED.get(kind) or wrong["msg"]
    return expected if "empty" in expected else f"{expected}, not {_shown(found)}"


def _keys(model: type[_Model], place: Path) -> list[str]:
    inside_step = len(place) > 1 and place[0] == "playbook"
    return list((StepModel if inside_step else model).model_fields)


def _shown_items(value: Any, of_commands: bool) -> str:
    """A list by its first item that has no place there."""
    for item in value if isinstance(value, list) else ():
        if of_commands and item in ("", []):
            return "a list with an empty command"
        odd = [part for part in item if not isinstance(part, str)] if of_commands and isinstance(item, list) else []
        if odd:
            return f"a list with a command with {_shown(odd[0])}"
        if not isinstance(item, list if of_commands else str) and not isinstance(item, str):
            return f"a list with {_shown(item)}"
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
